"""Latents in figures and plots, as a generator sees them in training."""

import numpy as np

from alight.data.latents import LatentDataset
from alight.metrics.latent_figures import (
    LatentMap,
    covariance_spectrum,
    density_evenness,
    effective_dimension,
    latent_vectors,
    power_spectrum,
)
from alight.reporting.pictures import scatter
from alight.reporting.report import Curve, Figure, Picture
from alight.runtime.seeding import derive_seed, random_stream

CHECKED = 2_000  # latents, from first to last, that are read for everything but the checksums
MAPPED = 10_000  # latents that the density figures draw from
BINS = np.linspace(-5, 5, 42)  # of the histogram; training expects values of about unit size


def read_some(dataset: LatentDataset, seed: int, count: int = CHECKED) -> np.ndarray:
    """Normalised latents (N, C, h, w) from first to last; of stored moments, samples."""
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), count)).astype(np.int64)
    return dataset.gather(chosen, generator=random_stream(seed, "inspected")).latents.numpy()


def latent_figures(dataset: LatentDataset, latents: np.ndarray, seed: int) -> list[Figure]:
    """Figures of normalised latents (N, C, h, w)."""
    mean, std = latents.mean((0, 2, 3), dtype=np.float64), latents.std((0, 2, 3), dtype=np.float64)
    generator = np.random.default_rng(derive_seed(seed, "positions"))
    vectors = latent_vectors(latents, generator)
    norms = np.linalg.norm(vectors, axis=1)
    conditions: dict[str, str | int | float] = {"latents": len(latents), "seed": seed}

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
    return figures


def density_figures(dataset: LatentDataset, seed: int, runs: int) -> tuple[list[Figure], Picture]:
    """The evenness with which the latent space is filled (paper, Table 6), and the last map of it."""
    generator = np.random.default_rng(derive_seed(seed, "density"))
    evenness, plane = density_evenness(latent_vectors(read_some(dataset, seed, MAPPED), generator), generator, runs)
    conditions: dict[str, str | int | float] = {"vectors": evenness.vectors, "maps": evenness.runs, "seed": seed}
    values = {
        "density_cv": ("density CV", evenness.density_cv, "Of a t-SNE map; 0 = evenly filled."),
        "density_gini": ("density Gini", evenness.gini, "Of a t-SNE map; 0 = evenly filled."),
        "density_entropy": ("density entropy", evenness.entropy, "Normalised; 1 = evenly filled."),
    }
    figures = [
        Figure(name, label, value, digits=3, conditions=conditions, explanation=explanation)
        for name, (label, value, explanation) in values.items()
    ]
    return figures, map_picture(plane)


def map_picture(plane: LatentMap) -> Picture:
    """A t-SNE map of latent vectors, brighter where they crowd."""
    caption = f"t-SNE of {len(plane.points):,} latent vectors; the brighter a point, the denser its neighbourhood."
    return Picture("Map of the latent space", caption, scatter(plane.points, plane.densities))


def latent_plots(latents: np.ndarray) -> list[Curve]:
    """Distributions of normalised latents (N, C, h, w), and of vectors (N, C) from them."""
    vectors = latent_vectors(latents, np.random.default_rng(0))
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
