"""Stage 5: reconstructions and samples -> figures, each with its conditions, and the report that shows them."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from alight.artifacts import (
    Artifact,
    check_output,
    file_hash,
    library_versions,
    read_artifact,
    write_manifest,
    writing_folder,
)
from alight.config import EvaluateConfig, EvaluateTokenizerConfig
from alight.data.image_dataset import ImageDataset
from alight.data.loading import open_dataset, sequential_batches
from alight.metrics.features import FeatureExtractor, GreyPixels, ModelFeatures, feature_statistics
from alight.metrics.frechet import frechet_distance
from alight.metrics.label_accuracy import DigitJudge, SVCJudge
from alight.metrics.pictures import image_grid, pair_strip
from alight.metrics.reconstruction import ReconstructionMetrics, ReconstructionScores
from alight.metrics.report import Curve, Figure, Picture, Report, Stage
from alight.metrics.report_files import write_report
from alight.models.foundation import FoundationModel
from alight.models.vavae import VAVAE
from alight.runtime.console import progress_bar
from alight.runtime.device import resolve_device
from alight.runtime.errors import InputError
from alight.runtime.pixels import to_uint8, unit_range
from alight.runtime.seeding import random_stream
from alight.training.run import read_log

UINT8_RULE = "clamp(127.5 x + 128, 0, 255), truncated"
SHOWN_PER_CLASS, SHOWN_CLASSES, SHOWN_PAIRS = 10, 10, 16


class Samples(NamedTuple):
    """Generated images (N, H, W, 3) uint8 with their labels (N,), and the settings that made them."""

    images: np.ndarray
    labels: np.ndarray
    settings: dict[str, Any]


@dataclass
class Reconstructions:
    """Scores over a split, and the first images with their reconstructions, (N, H, W, 3) uint8."""

    scores: ReconstructionScores
    alignment: float | None  # mean cosine of projected latents and foundation features
    originals: np.ndarray
    reconstructed: np.ndarray


def run(config: EvaluateTokenizerConfig, timings: Mapping[str, float] | None = None) -> Artifact:
    """Measure a tokenizer, and with `EvaluateConfig` also samples, and write `report.json` and `report.html`.

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


def measure(config: EvaluateTokenizerConfig, timings: Mapping[str, float] | None = None) -> Report:
    """Everything that the report says."""
    started = time.perf_counter()
    device = resolve_device(config.device)
    tokenizer = read_artifact(config.tokenizer, "tokenizer")
    split = config.split
    reconstructions = reconstruct(config, tokenizer, open_dataset(config.images, split, augment=False), device)
    figures = reconstruction_figures(config, tokenizer, reconstructions)
    pictures = [reconstruction_picture(reconstructions)]
    artifacts = [tokenizer]
    curves = tokenizer_curves(config.tokenizer)
    notes = ["PSNR and SSIM compare with the same centre crops that the tokenizer saw."]
    summary = f"A tokenizer, measured on {reconstructions.scores.n} images ({split.replace('_', ' ')})."
    if isinstance(config, EvaluateConfig):
        transformer, made = read_artifact(config.transformer, "transformer"), read_artifact(config.samples, "samples")
        made.require_input(transformer)
        made.require_input(tokenizer)
        samples = read_samples(config.samples)
        figures += generation_figures(config, samples, device)
        pictures.insert(0, samples_picture(samples))
        artifacts += [transformer, made]
        curves += transformer_curves(config.transformer)
        aligned = "whose latents are aligned with a vision foundation model"
        summary = (
            f"A tokenizer {aligned if tokenizer.facts.get('foundation') else 'without alignment'}, a LightningDiT of "
            f"{transformer.facts['parameters'] / 1e6:.1f} million parameters trained on these latents with rectified "
            f"flow, and {len(samples.images)} images that it made."
        )
        notes += [
            "A Frechet distance in other features than Inception's is no FID, and compares with nothing published.",
            "Distances are biased upwards for few images; compare only runs with the same count.",
        ]
    stages = [Stage(artifact.kind, artifact.seconds, _brief(artifact)) for artifact in artifacts]
    if timings is not None:
        stages = [Stage(name, seconds) for name, seconds in timings.items()]
    stages.append(Stage("report", time.perf_counter() - started))
    configuration = {artifact.kind: artifact.config for artifact in artifacts}
    return Report(
        title=f"Report on {Path(config.images.source).name}",
        summary=summary,
        figures=figures,
        pictures=pictures,
        curves=curves,
        stages=stages,
        configuration=configuration | {"evaluate": config.model_dump(mode="json")},
        versions=library_versions(),
        notes=notes,
    )


# --- reconstruction ---------------------------------------------------------------------------------------------


@torch.no_grad()
def reconstruct(
    config: EvaluateTokenizerConfig, tokenizer: Artifact, dataset: ImageDataset, device: torch.device
) -> Reconstructions:
    """Encode to posterior samples, as the published evaluation does, and decode."""
    vae = VAVAE.from_pretrained(tokenizer.path).to(device)
    foundation, projection = _alignment_networks(tokenizer, device)
    metrics, cosines, shown = ReconstructionMetrics(), [], []
    batches = sequential_batches(dataset, config.batch_size, config.images.workers)
    for number, (pixels, _) in enumerate(progress_bar(batches, desc="reconstructions", unit="batch")):
        images = unit_range(pixels.to(device))
        raw = vae.encode_raw_latents(images, random_stream(config.seed, "evaluation", number))
        decoded = vae.decode_raw_latents(raw)
        metrics.update(decoded, images)
        if foundation is not None and projection is not None:
            features = foundation(images, grid=(raw.shape[2], raw.shape[3]))
            cosines.append(F.cosine_similarity(F.conv2d(raw, projection), features, dim=1).flatten().cpu())
        if number == 0:
            shown = [to_uint8(batch[:SHOWN_PAIRS]).cpu().numpy() for batch in (images, decoded)]
    alignment = torch.cat(cosines).mean().item() if cosines else None
    return Reconstructions(metrics.compute(), alignment, *shown)


def _alignment_networks(tokenizer: Artifact, device: torch.device) -> tuple[FoundationModel | None, Tensor | None]:
    """What the tokenizer was aligned with, if it was and if it is at hand."""
    name, weights = tokenizer.facts.get("foundation"), tokenizer.path / "projection.safetensors"
    if name is None or not weights.is_file():
        return None, None
    mode = tokenizer.config["alignment"]["foundation_input"]
    return FoundationModel.from_pretrained(name, mode).to(device), load_file(weights)["weight"].to(device)


def reconstruction_figures(
    config: EvaluateTokenizerConfig, tokenizer: Artifact, reconstructions: Reconstructions
) -> list[Figure]:
    """PSNR, SSIM and alignment of a tokenizer."""
    scores = reconstructions.scores
    conditions: dict[str, str | int | float] = {
        "images": scores.n,
        "split": config.split,
        "size": config.images.size,
        "latent": "posterior sample",
        "seed": config.seed,
        "uint8 rule": UINT8_RULE,
        "tokenizer": tokenizer.hash[:12],
    }
    figures = [
        Figure(
            "reconstruction_psnr",
            "Reconstruction PSNR",
            scores.psnr,
            "dB",
            2,
            conditions,
            explanation="Peak signal-to-noise ratio of decoded images; higher is closer to the original.",
        ),
        Figure(
            "reconstruction_ssim",
            "Reconstruction SSIM",
            scores.ssim,
            "",
            4,
            conditions,
            explanation="Structural similarity with the original; 1 is identical.",
            headline=False,
        ),
    ]
    if reconstructions.alignment is not None:
        figures.append(
            Figure(
                "alignment_cosine",
                "Alignment",
                reconstructions.alignment,
                "",
                3,
                conditions | {"foundation": str(tokenizer.facts["foundation"])},
                explanation="Mean cosine between projected latents and the foundation model's patch features.",
            )
        )
    return figures


def reconstruction_picture(reconstructions: Reconstructions) -> Picture:
    """Originals above their reconstructions."""
    image = pair_strip(reconstructions.originals, reconstructions.reconstructed)
    caption = "Originals above, what the tokenizer makes of them below."
    return Picture("Reconstructions", caption, image, magnify=_magnification(reconstructions.originals))


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
    return Picture("Samples", caption, image, magnify=_magnification(samples.images), row_labels=labels)


def _extractors(config: EvaluateConfig, device: torch.device) -> Iterator[FeatureExtractor]:
    yield GreyPixels(8)
    if config.foundation is not None:
        model = FoundationModel.from_pretrained(config.foundation).to(device)
        side = max(config.images.size // model.patch_size, 1)
        name = f"mean patch feature of {Path(config.foundation).name}"
        yield ModelFeatures(name, model.feature_dim, lambda images: model(images, (side, side)).mean((2, 3)), device)


def _pixel_batches(dataset: ImageDataset, config: EvaluateTokenizerConfig) -> Iterator[np.ndarray]:
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


# --- curves -----------------------------------------------------------------------------------------------------


def tokenizer_curves(folder: Path) -> list[Curve]:
    """The losses of the tokenizer that are comparable from step to step."""
    reconstruction = _curve("Tokenizer: reconstruction", folder, {"l1": "L1 per pixel"}, log_y=True)
    alignment = _curve("Tokenizer: alignment", folder, {"mcos": "marginal cosine", "mdms": "marginal distance matrix"})
    return [curve for curve in (reconstruction, alignment) if curve is not None]


def transformer_curves(folder: Path) -> list[Curve]:
    """Both parts of the flow's loss."""
    curve = _curve("Transformer: rectified flow", folder, {"mse": "velocity", "cosine": "velocity direction"})
    return [curve] if curve is not None else []


def _curve(title: str, folder: Path, names: Mapping[str, str], log_y: bool = False) -> Curve | None:
    lines = read_log(folder / "training")
    series = {
        label: ([line["step"] for line in lines if name in line], [line[name] for line in lines if name in line])
        for name, label in names.items()
    }
    series = {label: points for label, points in series.items() if points[0]}
    return Curve(title, "step", "loss", series, log_y) if series else None


def _magnification(images: np.ndarray) -> int:
    return max(1, 64 // images.shape[2])


def _brief(artifact: Artifact) -> dict[str, object]:
    return {key: artifact.facts[key] for key in ("steps", "count", "parameters") if key in artifact.facts}
