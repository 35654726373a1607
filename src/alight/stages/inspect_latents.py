"""A look at a folder of latents: whether every byte is what was written, and what a generator will see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alight.artifacts import Artifact, check_output, library_versions, read_artifact
from alight.config import InspectLatentsConfig
from alight.data.latents import LatentDataset
from alight.metrics.latent_figures import (
    covariance_spectrum,
    density_evenness,
    effective_dimension,
    latent_vectors,
    power_spectrum,
)
from alight.metrics.report import Curve, Figure, Report
from alight.metrics.report_files import write_report
from alight.runtime.seeding import derive_seed, random_stream

CHECKED = 2_000  # latents, from first to last, that are read for everything but the checksums
MAPPED = 10_000  # latents that the density figures draw from
BINS = np.linspace(-5, 5, 42)  # of the histogram; training expects values of about unit size


@dataclass(frozen=True)
class Inspection:
    """What was seen; `facts` by name as they are printed, `report` where one was written."""

    path: Path
    hash: str
    facts: Mapping[str, str]
    checked: int
    figures: Sequence[Figure]
    report: Path | None = None

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        figures = {figure.name: figure.value for figure in self.figures}
        report = str(self.report) if self.report is not None else None
        facts = {**self.facts, "checked": self.checked}
        return {"kind": "latents", "path": str(self.path), "hash": self.hash, "facts": facts, "figures": figures} | (
            {"report": report} if report else {}
        )

    def __str__(self) -> str:
        lines = [
            *(f"{name:<12} {fact}" for name, fact in self.facts.items()),
            f"hash         {self.hash[:12]}",
            "",
            f"After normalisation, over {self.checked:,} latents:",
            *(f"{figure.label:<24} {figure.value:.{figure.digits}f}" for figure in self.figures),
        ]
        return "\n".join([*lines, *(["", f"Report: {self.report}"] if self.report is not None else [])])


def run(config: InspectLatentsConfig) -> Inspection:
    """Check all shards, and describe the latents as training will see them, after normalisation.

    Returns:
        What was seen, as text and `as_data`; with `output` also a report with plots is written there.

    Raises:
        InputError: if the folder is no finished latents artifact, or anything in it is damaged.
    """
    artifact = read_artifact(config.latents, "latents")
    if config.output is not None:
        check_output(config.output, {}, "report")
    dataset = LatentDataset(config.latents)
    dataset.check_bytes(artifact.hash)
    latents = read_some(dataset, CHECKED, config.seed)
    figures = measure(dataset, latents, config)
    counts = np.bincount(dataset.labels.numpy(), minlength=dataset.num_classes)
    names = ", ".join(dataset.class_names[:8]) + (", ..." if dataset.num_classes > 8 else "")
    facts = {
        "latents": f"{describe(dataset)}; all checksums are right",
        "classes": f"{dataset.num_classes}: {names}",
        "per class": f"{counts.min():,} to {counts.max():,}",
        "tokenizer": artifact.inputs.get("tokenizer", "")[:12] or "unknown",
    }
    report = None
    if config.output is not None:
        report = write_report(config.output, build_report(artifact, dataset, latents, figures))
    return Inspection(config.latents, artifact.hash, facts, len(latents), figures, report)


def read_some(dataset: LatentDataset, count: int, seed: int) -> np.ndarray:
    """Normalised latents (N, C, h, w) from first to last; of stored moments, samples."""
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), count)).astype(np.int64)
    return dataset.gather(chosen, generator=random_stream(seed, "inspected")).latents.numpy()


def describe(dataset: LatentDataset) -> str:
    """How many latents of which shape."""
    text = f"{len(dataset):,} of shape {' x '.join(map(str, dataset.shape))}"
    text += ", mean and log-variance" if dataset.has_moments else ""
    return text + (", each also mirrored" if dataset.has_flips else "")


def measure(dataset: LatentDataset, latents: np.ndarray, config: InspectLatentsConfig) -> list[Figure]:
    """What can be said in single numbers."""
    mean, std = latents.mean((0, 2, 3), dtype=np.float64), latents.std((0, 2, 3), dtype=np.float64)
    generator = np.random.default_rng(derive_seed(config.seed, "positions"))
    vectors = latent_vectors(latents, generator)
    norms = np.linalg.norm(vectors, axis=1)
    conditions: dict[str, str | int | float] = {"latents": len(latents), "seed": config.seed}

    def figure(name: str, label: str, value: float, explanation: str, digits: int = 3, **more: float) -> Figure:
        return Figure(name, label, float(value), digits=digits, conditions=conditions | more, explanation=explanation)

    figures = [
        figure(
            "largest_mean",
            "largest channel mean",
            np.abs(mean).max(),
            "Of any channel, in absolute value; 0 is ideal.",
        ),
        figure("smallest_std", "smallest channel std", std.min(), "Of any channel; 1 is ideal."),
        figure("largest_std", "largest channel std", std.max(), "Of any channel; 1 is ideal."),
        figure("largest_value", "largest value", np.abs(latents).max(), "Of any channel at any position.", 1),
        figure("mean_norm", "mean vector norm", norms.mean(), "Length of the vector at one position.", 2),
        figure(
            "effective_dimension",
            "effective dimension",
            effective_dimension(covariance_spectrum(vectors)),
            f"Participation ratio of the covariance between the {dataset.shape[0]} channels.",
            1,
        ),
    ]
    if config.density_runs:
        many = latent_vectors(read_some(dataset, MAPPED, config.seed), generator)
        evenness = density_evenness(many, generator, config.density_runs)
        more = {"vectors": evenness.vectors, "maps": evenness.runs}
        figures += [
            figure("density_cv", "density CV", evenness.density_cv, "Of a t-SNE map; 0 = evenly filled.", **more),
            figure("density_gini", "density Gini", evenness.gini, "Of a t-SNE map; 0 = evenly filled.", **more),
            figure("density_entropy", "density entropy", evenness.entropy, "Normalised; 1 = evenly filled.", **more),
        ]
    return figures


def build_report(artifact: Artifact, dataset: LatentDataset, latents: np.ndarray, figures: list[Figure]) -> Report:
    """The figures, and plots of what they summarise."""
    return Report(
        title="Latents",
        summary=f"{artifact.path}: {describe(dataset)}, in {dataset.num_classes} classes. All checksums are right. "
        f"The figures and plots are of {len(latents):,} latents after normalisation, as training sees them.",
        figures=figures,
        distributions=plots(latents, latent_vectors(latents, np.random.default_rng(0))),
        configuration=artifact.config,
        versions=library_versions(),
        notes=[f"Latents {artifact.hash}, of tokenizer {artifact.inputs.get('tokenizer') or 'unknown'}."],
    )


def plots(latents: np.ndarray, vectors: np.ndarray) -> list[Curve]:
    """How normalised latents (N, C, h, w), and vectors (N, C) from them, are distributed."""
    channels = np.arange(latents.shape[1])
    mean, std = latents.mean((0, 2, 3), dtype=np.float64), latents.std((0, 2, 3), dtype=np.float64)
    values, density = histogram(latents, BINS)
    normal = np.exp(-(values**2) / 2) / np.sqrt(2 * np.pi)
    norms = np.linalg.norm(vectors, axis=1)
    spectrum, power = covariance_spectrum(vectors), power_spectrum(latents)
    return [
        curve("Channels", "channel", "after normalisation", mean=(channels, mean), std=(channels, std)),
        curve("Values", "value", "density", latents=(values, density), normal=(values, normal)),
        curve("Lengths of the vectors", "norm", "density", latents=histogram(norms, np.linspace(0, norms.max(), 41))),
        curve("Covariance of channels", "eigenvalue", "variance", True, latents=(np.arange(len(spectrum)), spectrum)),
        curve("Spatial frequencies", "cycles per grid", "power", True, latents=(np.arange(len(power)), power)),
    ]


def histogram(values: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the bins and the density of values in each."""
    counts, _ = np.histogram(values, edges)
    return (edges[1:] + edges[:-1]) / 2, counts / (values.size * np.diff(edges))


def curve(
    title: str, x_label: str, y_label: str, log_y: bool = False, **series: tuple[np.ndarray, np.ndarray]
) -> Curve:
    """A plot of arrays."""
    return Curve(title, x_label, y_label, {name: (x.tolist(), y.tolist()) for name, (x, y) in series.items()}, log_y)
