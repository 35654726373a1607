"""Assessment of generated images: their closeness to real ones in plain words, and the stage that limits it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alight.artifacts import Artifact
from alight.config.command_line import command_text
from alight.evaluation.bottleneck import Bottleneck, Distances
from alight.evaluation.generated import GeneratedImages
from alight.evaluation.label_figures import LabelScores
from alight.reporting.report import Answer
from alight.runtime.run_log import read_log

QUESTION = "Are the generated images as good as real ones, and if not, why?"
ANSWERS = ("Not yet", "Nearly", "Yes")
DISTANCES = (0.2, 0.05)  # excess distance, in variances of the training images, up to which: nearly, yes
DEFICITS = (0.4, 0.1)  # missing label accuracy, as a share of that of real images above chance, likewise
SMALLEST_MARGIN = 0.2  # by which a classifier must beat chance on real images to be evidence
TOKENIZER_HOLDS = 0.5  # share of the loss from which the tokenizer is named as its cause
STILL_FALLING = 0.01  # relative fall of the training loss over the last quarter of the log
FEWEST_LINES = 8  # of a log for its trend
STRONG_GUIDANCE = 2.0


class Evidence(NamedTuple):
    """One measure of generated images.

    Attributes:
        loss: 0 for images like real ones; 1 for those with nothing in common with them.
        tokenizer_share: the part of it that reconstructions of real images have too, in [0, 1].
        level: number of thresholds, of two, that it reaches.
        sentence: the numbers.
    """

    loss: float
    tokenizer_share: float
    level: int
    sentence: str


def assess_generation(
    images: GeneratedImages,
    labels: LabelScores | None,
    bottleneck: Bottleneck | None,
    tokenizer: Answer,
    tokenizer_level: int,
    artifacts: Mapping[str, Artifact],
) -> Answer | None:
    """Assess generated images by the weakest measure, and name the tokenizer or the transformer as its cause.

    Args:
        images: the generated images.
        labels: accuracy of their labels, if it was measured.
        bottleneck: distances of real, reconstructed and generated images.
        tokenizer: the assessment of the tokenizer alone.
        tokenizer_level: the level of that: 0 not yet, 1 nearly, 2 yes.
        artifacts: tokenizer, and transformer if it is known, by kind.

    Returns:
        None where nothing was measured that could answer.
    """
    if bottleneck is None:
        return None
    distances = [distance_evidence(each) for each in bottleneck.distances]
    accuracy = accuracy_evidence(images, labels, bottleneck)
    evidence = [*distances, *accuracy]
    weakest = min(evidence, key=lambda each: (each.level, -each.loss))
    limited, undertrained = tokenizer_level == 0, False
    if weakest.level < 2:
        limited |= weakest.tokenizer_share >= TOKENIZER_HOLDS
        undertrained = weakest.tokenizer_share < TOKENIZER_HOLDS
    level = min(weakest.level, 1) if limited else weakest.level
    reasons = [each.sentence for each in evidence]
    transformer = artifacts.get("transformer")
    if transformer is not None:
        reasons += training_trend(transformer)
    reasons.append(f"The tokenizer alone: {tokenizer.answer} {tokenizer.reasons[0]}")
    basis = (
        "Assessed by the weakest measure. Distances are Frechet distances from training images, divided by the "
        "variance of these; real images are at the distance of a good generator. The tokenizer is named where "
        "reconstructions of real images have lost at least half as much as generated images. Few images, and classes "
        "in other proportions than among the real ones, add to the distances."
    )
    advice = [
        *(tokenizer_advice(tokenizer) if limited else []),
        *(transformer_advice(transformer, limited) if undertrained else []),
        *(sampling_advice(images, distances, accuracy) if undertrained else []),
    ]
    return Answer(QUESTION, f"{ANSWERS[level]}: {cause(limited, undertrained)}.", reasons, advice, basis)


def cause(limited: bool, undertrained: bool) -> str:
    """The verdict in a few words."""
    if limited and undertrained:
        return "the transformer is undertrained, and held back by the tokenizer"
    if limited:
        return "held back by the tokenizer, whose reconstructions lose about as much as these images"
    if undertrained:
        return "undertrained, for the tokenizer could do better than the transformer"
    return "they are about as close to real images as the reconstructions of the tokenizer"


def distance_evidence(found: Distances) -> Evidence:
    """The excess distance of generated images."""
    sentence = (
        f"Distance from training images in {found.features}, of {found.images:,} images each: real ones "
        f"{found.real:.3f}, their reconstructions {found.reconstructed:.3f}, generated ones {found.generated:.3f}."
    )
    if found.generated < found.real:
        sentence += " Real images are farther here, so this distance says nothing against the generated ones."
    return Evidence(found.excess, found.tokenizer_share, level_of(found.excess, DISTANCES), sentence)


def accuracy_evidence(images: GeneratedImages, labels: LabelScores | None, found: Bottleneck) -> list[Evidence]:
    """The missing label accuracy, where the classifier knows real images well enough."""
    real, decoded = found.real_accuracy, found.reconstructed_accuracy
    if labels is None or images.labels is None or real is None or decoded is None:
        return []
    chance = 1 / max(len(np.unique(images.labels)), 1)
    if real - chance < SMALLEST_MARGIN:
        return []
    loss = max((real - labels.generated.value) / (real - chance), 0.0)
    lost = max((real - decoded) / (real - chance), 0.0)
    share = min(lost / loss, 1.0) if loss > 0 else 1.0
    sentence = (
        f"Label accuracy of an independent classifier: real images, held-out ones in their own proportions, "
        f"{real:.3f}, their reconstructions {decoded:.3f}, generated ones {labels.generated.value:.3f}; chance "
        f"is {chance:.3f}."
    )
    return [Evidence(loss, share, level_of(loss, DEFICITS), sentence)]


def level_of(loss: float, thresholds: tuple[float, float]) -> int:
    """Count the thresholds, of two, that a loss stays below."""
    return sum(loss <= threshold for threshold in thresholds)


def training_trend(transformer: Artifact) -> list[str]:
    """The training loss over the last two quarters of the log; empty where there is no log of use."""
    lines = [line for line in read_log(transformer.path / "training") if "loss" in line]
    if len(lines) < FEWEST_LINES:
        return []
    quarter = len(lines) // 4
    before, last = (
        float(np.mean([line["loss"] for line in part])) for part in (lines[-2 * quarter : -quarter], lines[-quarter:])
    )
    steps = int(lines[-1]["step"])
    fall = (before - last) / before if before > 0 else 0.0
    words = "was still falling" if fall >= STILL_FALLING else "hardly fell any more"
    return [f"The training loss of the transformer {words} at the end of its {steps:,} steps: {before:.4g} over the "
            f"third quarter of the log, {last:.4g} over the last."]  # fmt: skip


def tokenizer_advice(tokenizer: Answer) -> list[str]:
    """Improve the tokenizer first: everything after it is made again."""
    first = "Improve the tokenizer first; latents, transformer and samples are then made again from it."
    return [first, *tokenizer.advice[:2]]


def transformer_advice(transformer: Artifact | None, later: bool) -> list[str]:
    """Train the transformer longer, from where it stopped."""
    steps = transformer.facts.get("steps") if transformer is not None else None
    if transformer is None or not steps or later:
        return ["Train the transformer longer."]
    folder = str(transformer.path)
    words = ["--config", folder, "--output", folder, "--training.steps", str(2 * steps)]
    return [
        "Train the transformer longer, from where it stopped, and generate samples again into another folder: "
        f"'{command_text('transformer train', words)}'."
    ]


def sampling_advice(images: GeneratedImages, distances: Sequence[Evidence], accuracy: Sequence[Evidence]) -> list[str]:
    """The guidance, where it may be wrong."""
    scale = (images.settings or {}).get("sampling", {}).get("guidance_scale")
    if scale is None or not accuracy:
        return []
    if scale >= STRONG_GUIDANCE and min(each.level for each in distances) < accuracy[0].level:
        return [f"Guidance {scale:g} may be too strong: the labels are right, but the images are far from real ones."]
    if scale == 1 and accuracy[0].level < 2:
        return ["Sample with guidance (--sampling.guidance-scale 1.5): it makes the classes clearer."]
    return []
