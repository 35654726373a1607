"""Stage 5: samples, and what their tokenizer reconstructs -> figures with their conditions, and the report."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from alight.artifacts import (
    Artifact,
    check_output,
    file_hash,
    library_versions,
    read_artifact,
    write_manifest,
    writing_folder,
)
from alight.config import EvaluateConfig
from alight.data.image_dataset import ImageDataset
from alight.data.loading import open_dataset, sequential_batches
from alight.evaluation.measure import measure as measure_tokenizer
from alight.evaluation.measure import reconstruct
from alight.evaluation.subjects import Subject, open_judges, open_subjects
from alight.evaluation.tokenizer_report import log_curve, magnification, tokenizer_curves, tokenizer_figures
from alight.metrics.features import FeatureExtractor, GreyPixels, ModelFeatures, feature_statistics
from alight.metrics.frechet import frechet_distance
from alight.metrics.label_accuracy import DigitJudge, SVCJudge
from alight.metrics.pictures import image_grid, pair_strip
from alight.metrics.report import Curve, Figure, Picture, Report, Stage
from alight.metrics.report_files import write_report
from alight.models.foundation import FoundationModel
from alight.runtime.device import resolve_device
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError

HEADLINES = ("reconstruction_psnr", "alignment_cosine")  # of the tokenizer's figures
SHOWN_PER_CLASS, SHOWN_CLASSES, SHOWN_PAIRS = 10, 10, 16


class Samples(NamedTuple):
    """Generated images (N, H, W, 3) uint8 with their labels (N,), and the settings that made them."""

    images: np.ndarray
    labels: np.ndarray
    settings: dict[str, Any]


def run(config: EvaluateConfig, timings: Mapping[str, float] | None = None) -> Artifact:
    """Measure samples, and the tokenizer that decoded them, and write `report.json` and `report.html`.

    Args:
        config: what to measure.
        timings: seconds by stage, where somebody watched the stages from outside; otherwise each artifact's own.

    Returns:
        The report artifact.

    Raises:
        InputError: on unusable artifacts or images, or artifacts that do not belong together.
    """
    resolved = config.model_dump(mode="json")
    check_output(config.output, resolved, "report")
    report = measure(config, timings)
    with writing_folder(config.output) as staging:
        write_report(staging, report)
        digest = file_hash(staging / "report.json")
        write_manifest(staging, "report", resolved, digest)
    return read_artifact(config.output, "report")


def measure(config: EvaluateConfig, timings: Mapping[str, float] | None = None) -> Report:
    """Everything that the report says."""
    started = time.perf_counter()
    device = resolve_device(config.device)
    (subject,) = open_subjects([config.tokenizer])
    tokenizer = subject.artifact
    transformer, made = read_artifact(config.transformer, "transformer"), read_artifact(config.samples, "samples")
    made.require_input(transformer)
    made.require_input(tokenizer)
    samples = read_samples(config.samples)
    dataset = open_dataset(config.images, config.split, augment=False)
    judges, notes = open_judges(config, [subject])
    reconstructions = measure_tokenizer(subject, dataset, config, judges.to(device), Processes(0, 1, device))
    figures = [
        replace(figure, headline=figure.name in HEADLINES)
        for figure in tokenizer_figures(reconstructions, config, judges)
    ]
    artifacts = [tokenizer, transformer, made]
    stages = [Stage(artifact.kind, artifact.seconds, _brief(artifact)) for artifact in artifacts]
    if timings is not None:
        stages = [Stage(name, seconds) for name, seconds in timings.items()]
    figures += generation_figures(config, samples, device)
    pictures = [samples_picture(samples), reconstruction_picture(subject, dataset, config, device)]
    stages.append(Stage("report", time.perf_counter() - started))
    aligned = "whose latents are aligned with a vision foundation model"
    return Report(
        title=f"Report on {Path(config.images.source).name}",
        summary=(
            f"A tokenizer {aligned if tokenizer.facts.get('foundation') else 'without alignment'}, a LightningDiT of "
            f"{transformer.facts['parameters'] / 1e6:.1f} million parameters trained on these latents with rectified "
            f"flow, and {len(samples.images)} images that it made."
        ),
        figures=figures,
        pictures=pictures,
        curves=[*tokenizer_curves([subject]), *transformer_curves(config.transformer)],
        stages=stages,
        configuration={artifact.kind: artifact.config for artifact in artifacts}
        | {"evaluate": config.model_dump(mode="json")},
        versions=library_versions(),
        notes=[
            *notes,
            "PSNR and SSIM compare with the same centre crops that the tokenizer saw.",
            "A Frechet distance in other features than Inception's is no FID, and compares with nothing published.",
            "Distances are biased upwards for few images; compare only runs with the same count.",
        ],
    )


def reconstruction_picture(
    subject: Subject, dataset: ImageDataset, config: EvaluateConfig, device: torch.device
) -> Picture:
    """The first originals above their reconstructions."""
    shown = range(min(SHOWN_PAIRS, len(dataset)))
    originals, decoded = reconstruct(subject, dataset, shown, config, device)
    caption = "Originals above, what the tokenizer makes of them below."
    return Picture("Reconstructions", caption, pair_strip(originals, decoded), magnification(originals))


# --- generation -------------------------------------------------------------------------------------------------


def read_samples(folder: Path) -> Samples:
    """The generated images of a folder.

    Raises:
        InputError: if an image is missing or damaged.
    """
    settings = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    try:
        paths = [folder / "images" / f"{number:06d}.png" for number in range(settings["count"])]
        images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    except (OSError, ValueError) as error:
        raise InputError(f"The samples in {folder} are not complete ({error}). Generate them again.") from error
    return Samples(images, np.array(settings["labels"]), settings)


def generation_figures(config: EvaluateConfig, samples: Samples, device: torch.device) -> list[Figure]:
    """How well generated images show their class, and how far they are from real ones in named features."""
    real = open_dataset(config.images, "train", augment=False)
    conditions = _sampling_conditions(samples)
    figures = []
    if len(real.source.class_names) > 1:
        figures.append(label_accuracy_figure(config, samples, real, conditions))
    for extractor in _extractors(config, device):
        reference = feature_statistics(extractor, _pixel_batches(real, config))
        generated = feature_statistics(extractor, [samples.images])
        distance = frechet_distance(generated, reference)
        figures.append(
            Figure(
                f"frechet_distance_{'foundation' if isinstance(extractor, ModelFeatures) else 'grey_pixels'}",
                f"Frechet distance, {extractor.name}",
                distance.value,
                "",
                3,
                conditions | {"features": extractor.name, "reference": f"{len(real)} training images"},
                explanation="Distance of two Gaussians fitted to the features of generated and real images.",
                headline=False,
            )
        )
    return figures


def label_accuracy_figure(
    config: EvaluateConfig, samples: Samples, real: ImageDataset, conditions: dict[str, str | int | float]
) -> Figure:
    """The share of generated images in which an independent judge sees the class that was asked for."""
    if config.images.source == "digits":
        judge: SVCJudge = DigitJudge()
    else:
        images = np.concatenate(list(_pixel_batches(real, config)))
        judge = SVCJudge.fit(GreyPixels(8), images, real.source.labels)
    generated = judge.accuracy(samples.images, samples.labels)
    compare = None
    try:
        held_out = open_dataset(config.images, "held_out", augment=False)
    except InputError:  # nothing is held out of this folder
        held_out = None
    if held_out is not None:
        real_images = np.concatenate(list(_pixel_batches(held_out, config)))
        accuracy = judge.accuracy(real_images, held_out.source.labels)
        compare = Figure(
            "real_label_accuracy",
            "Real held-out images",
            accuracy.value,
            "",
            3,
            {"judge": accuracy.judge, "images": accuracy.n},
        )
    return Figure(
        "generated_label_accuracy",
        "Label accuracy",
        generated.value,
        "",
        3,
        {"judge": generated.judge} | conditions,
        explanation="Share of generated images in which an independent judge sees the class that was asked for.",
        compare=compare,
    )


def samples_picture(samples: Samples) -> Picture:
    """The first images of each class, a row per class."""
    names = samples.settings["class_names"]
    classes = list(dict.fromkeys(samples.labels.tolist()))[:SHOWN_CLASSES]
    rows = [samples.images[samples.labels == label][:SHOWN_PER_CLASS] for label in classes]
    columns = min(len(row) for row in rows)
    image = image_grid(np.concatenate([row[:columns] for row in rows]), columns)
    caption = "Generated images, a row per class: the first of each, not chosen."
    labels = [names[label] for label in classes]
    return Picture("Samples", caption, image, magnify=magnification(samples.images), row_labels=labels)


def _extractors(config: EvaluateConfig, device: torch.device) -> Iterator[FeatureExtractor]:
    yield GreyPixels(8)
    if config.foundation is not None:
        model = FoundationModel.from_pretrained(config.foundation).to(device)
        side = max(config.images.size // model.patch_size, 1)
        name = f"mean patch feature of {Path(config.foundation).name}"
        yield ModelFeatures(name, model.feature_dim, lambda images: model(images, (side, side)).mean((2, 3)), device)


def _pixel_batches(dataset: ImageDataset, config: EvaluateConfig) -> Iterator[np.ndarray]:
    for pixels, _ in sequential_batches(dataset, config.batch_size, config.images.workers):
        yield pixels.permute(0, 2, 3, 1).numpy()


def _sampling_conditions(samples: Samples) -> dict[str, str | int | float]:
    settings = samples.settings
    sampling = {name: "off" if value is None else value for name, value in settings["sampling"].items()}
    sampling["guidance_channels"] = settings["sampling"]["guidance_channels"] or "all"
    return {
        "images": settings["count"],
        "labels": settings["label_protocol"],
        **{name: value if isinstance(value, int | float) else str(value) for name, value in sampling.items()},
        "NFE": settings["nfe"],
        "seed": settings["seed"],
        "uint8 rule": settings["uint8_rule"],
        "transformer": settings["transformer"][:12],
        "tokenizer": settings["tokenizer"][:12],
    }


# --- training ---------------------------------------------------------------------------------------------------


def transformer_curves(folder: Path) -> list[Curve]:
    """Both parts of the flow's loss."""
    curve = log_curve("Transformer: rectified flow", folder, {"mse": "velocity", "cosine": "velocity direction"})
    return [curve] if curve is not None else []


def _brief(artifact: Artifact) -> dict[str, object]:
    return {key: artifact.facts[key] for key in ("steps", "count", "parameters") if key in artifact.facts}
