"""From measurements of tokenizers to the parts of a report: figures, table, pictures and curves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alight.config import EvaluateTokenizerConfig, ImagesConfig, MeasureTokenizerConfig
from alight.data.decode import WHITE
from alight.evaluation.assessment import F16D32
from alight.evaluation.batches import evenly_spread
from alight.evaluation.geometry import STEP
from alight.evaluation.reconstruction import Measurements
from alight.evaluation.tokenizers import EvaluatedTokenizer, MetricNetworks
from alight.models.foundation import FoundationModel
from alight.reporting.pictures import comparison_strip
from alight.reporting.report import Comparison, Conditions, Curve, Figure, Measure, Picture
from alight.runtime.pixels import UINT8_RULE
from alight.runtime.run_log import read_log

DIFFERENCE_GAIN = 4
QUANTILES = 40  # of the curve over the images; few enough that it is drawn as it is


ALIGNMENT_TERMS = {  # of the training log, by the names of the page
    "mcos": "marginal cosine",
    "mdms": "marginal distance matrix",
    "gram": "Gram",
    "pooled_cosine": "pooled cosine",
    "patch_cosine": "cosine of patches",
}
TRAINING_LOSS = "The loss of training on these images, through the trained projection."
MEASURES = {
    "reconstruction_psnr": Measure(
        *("Reconstruction PSNR", "dB", 2, "higher"),
        "Peak signal-to-noise ratio of decoded images; higher is closer to the original.",
    ),
    "reconstruction_ssim": Measure(
        *("Reconstruction SSIM", "", 4, "higher"),
        "Structural similarity with the original; 1 is identical.",
        conditions={"window": "Gaussian 11x11, sigma 1.5"},
    ),
    "reconstruction_lpips": Measure(
        *("Reconstruction LPIPS", "", 4, "lower"),
        "Perceptual distance from the original in the features of VGG16; 0 is identical.",
        conditions={"network": "VGG16, LPIPS v0.1"},
    ),
    "reconstruction_fid": Measure(
        *("rFID", "", 2, "lower"),
        "Frechet distance of Inception features of decoded images and originals; 0 is equal.",
        conditions={"network": "Inception-v3", "resize": "as pytorch-fid", "reference": "the same crops"},
    ),
    "reconstruction_observed": Measure(
        *("Frechet distance of reconstructions, observer", "", 4, "lower"),
        "From the originals, in the features of a network that took no part in training; 0 is equal.",
        headline=False,
    ),
    "alignment_cosine": Measure(
        *("Alignment", "", 3, "higher"),
        "Mean cosine between projected latents and the foundation model's patch features.",
    ),
    "alignment_mcos": Measure("Marginal cosine loss", "", 4, "lower", TRAINING_LOSS, headline=False),
    "alignment_mdms": Measure("Marginal distance matrix loss", "", 4, "lower", TRAINING_LOSS, headline=False),
    "latent_mdms": Measure(
        *("Relations in the raw latent", "", 4, "lower"),
        "Difference between the similarities of positions in the latent and in the features; 0 is equal.",
        headline=False,
    ),
    "linear_cosine": Measure(
        *("Features read off linearly", "", 3, "higher"),
        "Mean cosine of the features and the best linear map of the latents; 1 is all of them.",
        headline=False,
    ),
    "gram_agreement": Measure(
        *("Gram agreement", "", 3, "higher"),
        "Correlation of similarities between positions of the latents with those of the features; 1 is equal.",
        headline=False,
    ),
    "decoder_drift": Measure(
        *("Decoder drift", "", 3, "lower"),
        "Change of decoded images by noise in the latents, relative to the spread of the images.",
        headline=False,
        conditions={"noise": f"{STEP:g} of the latent"},
    ),
    "neighbour_accuracy": Measure(
        *("Nearest-neighbour accuracy", "", 3, "higher"),
        "Share of images whose nearest latent, averaged over positions, has their class.",
        headline=False,
    ),
}


def crop_condition(images: ImagesConfig) -> str:
    """The squares that images are measured as, without augmentation; the background only where it shows."""
    place, side = ("padded", "long") if images.crop == "pad" else ("centre", "short")
    background = f", on {images.background}" if images.crop == "pad" or images.background != WHITE else ""
    return f"{images.size} pixels, {place}, {side} side scaled by box halvings and bicubic{background}"


def tokenizer_figures(
    measured: Measurements, config: MeasureTokenizerConfig, networks: MetricNetworks
) -> list[Figure]:
    """Every figure of one tokenizer, with its conditions."""
    conditions: Conditions = {
        "images": len(measured.scores["psnr"]),
        "split": config.split.replace("_", " "),
        "crop": crop_condition(config.images),
        "latent": f"posterior {config.posterior}",
        "seed": config.seed,
        "uint8 rule": UINT8_RULE,
        "tokenizer": measured.tokenizer.artifact.hash[:12],
    }
    known = [name for name in ("psnr", "ssim", "lpips") if name in measured.scores]
    scores: dict[str, float] = {name: measured.mean(name) for name in known}
    if measured.fid is not None:
        scores["fid"] = measured.fid.value
    if measured.observed is not None:
        scores["observed"] = measured.observed.value
    anchors = F16D32._asdict() if isinstance(config, EvaluateTokenizerConfig) else {}
    figures = []
    for name, value in scores.items():
        anchor = ("f16d32 on ImageNet", anchors[name]) if name in anchors else None
        full = f"reconstruction_{name}"
        figures.append(MEASURES[full].figure(full, value, conditions, reference=anchor))
    if networks.foundation is not None:
        figures += alignment_figures(measured, conditions, networks.foundation)
    if measured.drift is not None:
        figures.append(MEASURES["decoder_drift"].figure("decoder_drift", measured.drift, conditions))
    if "neighbour_accuracy" in measured.scores:
        accuracy = measured.mean("neighbour_accuracy")
        figures.append(MEASURES["neighbour_accuracy"].figure("neighbour_accuracy", accuracy, conditions))
    return figures


def alignment_figures(measured: Measurements, conditions: Conditions, foundation: FoundationModel) -> list[Figure]:
    """Figures of the alignment between latents and the features of the foundation model."""
    conditions = {**conditions, "foundation": foundation.name, "input": foundation.input_mode}
    if foundation.layers is not None:
        conditions["layers"] = ", ".join(map(str, foundation.layers))
    own: dict[str, Conditions] = {}
    if "alignment_cosine" in measured.scores:
        assert measured.tokenizer.projection is not None
        settings = measured.tokenizer.projection.settings
        own["alignment_cosine"] = {}
        own["alignment_mcos"] = {"margin": settings["cosine_margin"]}
        distance_on = settings.get("distance_on", "projected")
        own["alignment_mdms"] = {"margin": settings["distance_margin"], "on": distance_on}
    own["latent_mdms"] = {"margin": 0}
    if measured.linear_map is not None:
        fitted = f"fitted to {measured.linear_map.images:,} training crops"
        own["linear_cosine"] = {"map": f"1x1 without bias, ridge, {fitted}"}
    if "gram_agreement" in measured.scores:
        own["gram_agreement"] = {}
    return [MEASURES[name].figure(name, measured.mean(name), conditions | more) for name, more in own.items()]


def side_by_side(measured: Sequence[Measurements], figures: Sequence[Sequence[Figure]]) -> Comparison:
    """The figures of several tokenizers, a row per measure."""
    labels = {figure.name: figure.label for each in figures for figure in each}
    by_name = [{figure.name: figure for figure in each} for each in figures]
    rows = {label: [each.get(name) for each in by_name] for name, label in labels.items()}
    return Comparison([each.tokenizer.name for each in measured], rows)


def numbered(figures: Sequence[Figure], tokenizer: EvaluatedTokenizer, number: int) -> list[Figure]:
    """The same figures as those of one of several tokenizers: `reconstruction_psnr_2` is that of the second."""
    suffix = "" if number == 1 else f"_{number}"
    return [
        replace(figure, name=f"{figure.name}{suffix}", label=f"{figure.label}, {tokenizer.name}", headline=False)
        for figure in figures
    ]


def chosen_images(psnr: Tensor, count: int) -> dict[str, list[int]]:
    """Choose the images to show: the worst, some ordinary ones, the best."""
    order = psnr.argsort(stable=True).tolist()
    count = min(count, len(order))
    ordinary = [order[rank] for rank in evenly_spread(len(order), count)]
    return {"worst": order[:count], "ordinary": ordinary, "best": order[::-1][:count]}


def difference_strip(title: str, caption: str, originals: np.ndarray, decoded: Mapping[str, np.ndarray]) -> Picture:
    """Originals, and below them the reconstructions of each tokenizer and the amplified difference."""
    image = comparison_strip(originals, list(decoded.values()), difference_gain=DIFFERENCE_GAIN)
    difference = f"difference × {DIFFERENCE_GAIN}"
    names = list(decoded) if len(decoded) > 1 else ["decoded"]
    labels = ["original", *(label for name in names for label in (name, difference))]
    return Picture(title, caption, image, magnification(originals), labels)


def magnification(images: np.ndarray) -> int:
    """Small images are shown at 64 pixels at least."""
    return max(1, 64 // images.shape[2])


def psnr_distribution(measured: Sequence[Measurements]) -> Curve:
    """PSNR over the images, sorted from the worst to the best."""
    share = torch.linspace(0, 1, QUANTILES + 1, dtype=torch.float64)
    series = {
        each.tokenizer.name: (
            (100 * share).tolist(),
            each.scores["psnr"].quantile(share, interpolation="nearest").tolist(),
        )
        for each in measured
    }
    return Curve("PSNR of each image, from the worst to the best", "% of the images", "dB", series)


def tokenizer_curves(tokenizers: Sequence[EvaluatedTokenizer]) -> list[Curve]:
    """The training losses that are comparable from step to step and from tokenizer to tokenizer."""
    folders = {tokenizer.name: tokenizer.artifact.path for tokenizer in tokenizers}
    curves: list[Curve | None]
    if len(tokenizers) == 1:
        (folder,) = folders.values()
        curves = [
            log_curve("Tokenizer: reconstruction", folder, {"l1": "L1 per pixel"}, log_y=True),
            log_curve("Tokenizer: alignment", folder, ALIGNMENT_TERMS),
            log_curve("Tokenizer: continuity of the decoder", folder, {"continuity": "squared error"}),
        ]
    else:
        curves = [
            compared_curve("Tokenizers: reconstruction", folders, "l1", log_y=True),
            compared_curve("Tokenizers: marginal cosine loss", folders, "mcos"),
            compared_curve("Tokenizers: marginal distance matrix loss", folders, "mdms"),
        ]
    return [curve for curve in curves if curve is not None]


def log_curve(title: str, folder: Path, names: Mapping[str, str], log_y: bool = False) -> Curve | None:
    """Some scalars of one training log, by the names that the page gives them; None if it has none of them."""
    lines = read_log(folder / "training")
    series = {label: _series(lines, name) for name, label in names.items()}
    series = {label: points for label, points in series.items() if points[0]}
    return Curve(title, "step", "loss", series, log_y) if series else None


def compared_curve(title: str, folders: Mapping[str, Path], name: str, log_y: bool = False) -> Curve | None:
    """One scalar of several training logs; a log without it keeps its place, and so its colour."""
    series = {label: _series(read_log(folder / "training"), name) for label, folder in folders.items()}
    return Curve(title, "step", "loss", series, log_y) if any(steps for steps, _ in series.values()) else None


def _series(lines: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    found = [line for line in lines if name in line]
    return [line["step"] for line in found], [line[name] for line in found]
