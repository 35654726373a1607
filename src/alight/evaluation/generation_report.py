"""Generated images in a report: scores with their conditions, samples, and their nearest training images."""

from dataclasses import replace

import numpy as np
import torch

from alight.evaluation.batches import load_batches
from alight.evaluation.features import DINOV2, INCEPTION, OBSERVER, ImageFeatures
from alight.evaluation.generated import GeneratedImages
from alight.evaluation.generation import Generation
from alight.evaluation.reference_set import ReferenceSet
from alight.evaluation.tokenizer_report import magnification
from alight.metrics.frechet import FrechetDistance, frechet_distance
from alight.metrics.inception_score import InceptionScore
from alight.metrics.inception_set import InceptionScores, inception_scores
from alight.metrics.manifold import authenticity, density_coverage, precision_recall
from alight.reporting.class_rows import MOST_COLUMNS, class_rows, left_out
from alight.reporting.pictures import image_grid
from alight.reporting.report import Conditions, Figure, Measure, Picture

PUBLISHED_COUNT = 50_000
SHOWN_UNLABELLED = 50
EVALUATOR = "Inception-v3 of 2015-12-05, TensorFlow resizing to 299, float64"
MANIFOLD_SPACES = {DINOV2: "DINOv2", OBSERVER: "observer"}  # beside Inception's, with their names
DGM_NEIGHBOUR = 5  # k of precision, recall, density and coverage beside FD-DINOv2
FEWEST_FOR_MANIFOLDS = 6
MEASURES = {
    "fid": Measure("FID", "", 2, "lower", "Frechet distance of Inception's pool features; 0 is equal."),
    "sfid": Measure("sFID", "", 2, "lower", "The same of spatial features, which see layout."),
    "inception_score": Measure(
        *("Inception score", "", 1, "higher"),
        "Are images of clear classes, and of many? For ImageNet models alone.",
        headline=False,
    ),
    "precision": Measure("Precision", "", 3, "higher", "Share: generated images among real ones.", headline=False),
    "recall": Measure("Recall", "", 3, "higher", "Share: real images among generated ones.", headline=False),
    "density": Measure(
        "Density", "", 3, "higher", "Share: real neighbourhoods around generated images.", headline=False
    ),
    "coverage": Measure(
        "Coverage", "", 3, "higher", "Share: real images with a generated one nearby.", headline=False
    ),
    "authenticity": Measure(
        *("Authenticity", "", 3, "higher"),
        "Share: generated images that copy no image of the reference; above 0.5 for new real ones.",
        headline=False,
    ),
    "kid": Measure(
        *("KID", "", 5, "lower"), "Kernel distance of the pool features, without bias for few images.", headline=False
    ),
    "fd_dinov2": Measure(
        *("FD-DINOv2", "", 1, "lower"),
        "Frechet distance in DINOv2's features, which follow human perception better than Inception's.",
    ),
    "frechet_distance": Measure(
        *("Frechet distance", "", 3, "lower"),
        "Distance of two Gaussians fitted to the features of generated and real images.",
        headline=False,
    ),
}


def generation_figures(
    images: GeneratedImages,
    generated: ImageFeatures,
    reference: ReferenceSet,
    seed: int,
    device: torch.device | str = "cpu",
) -> list[Figure]:
    """Every score that the networks and the reference allow; a device compares all images with each other."""
    conditions = {**images.conditions, "reference": reference.description}
    figures: list[Figure] = []
    if generated.inception is not None and reference.inception is not None:
        generator = torch.Generator().manual_seed(seed)
        real = reference.inception
        if min(images.count, len(reference.features.get(INCEPTION, ()))) < FEWEST_FOR_MANIFOLDS:
            real = replace(real, features=None)
        scores = inception_scores(generated.inception, real, generator, half_precision=True, device=device)
        figures += inception_figures(scores, conditions)
    elif generated.inception is not None:
        figures.append(inception_score_figure(generated.inception.classes.compute(), conditions))
    for key in generated.statistics:
        if key in reference.statistics:
            distance = frechet_distance(generated.statistics[key], reference.statistics[key])
            figures.append(space_figure(key, distance, conditions, generated.statistics[key].features or key))
        if key in MANIFOLD_SPACES:
            figures += manifold_figures(key, generated, reference, conditions, device)
    return figures


def short_count(count: int) -> str:
    """50,000 as 50k, 500 as 500: the number of images behind a score, as papers write it."""
    return f"{count / 1000:g}k" if count >= 1000 else str(count)


def comparable(distance: FrechetDistance, count: int) -> str:
    """The figures that a Frechet distance may be compared with."""
    if count <= distance.dimension:
        return f"no: {count:,} images for {distance.dimension:,} features; the value is far too high"
    if count < PUBLISHED_COUNT:
        return "with runs of the same count and reference"
    return "with published figures of 50,000 images and the same reference"


def comparability(distance: FrechetDistance, count: int) -> Conditions:
    """The limits of a comparison; the rank where too few images or constant features leave directions out."""
    limits: Conditions = {"comparable": comparable(distance, count)}
    if distance.rank_deficient:
        limits["rank of the covariance"] = f"{min(distance.rank_a, distance.rank_b):,} of {distance.dimension:,}"
    return limits


def inception_figures(scores: InceptionScores, conditions: Conditions) -> list[Figure]:
    """FID and every other score in the features of Inception."""
    count, evaluator = short_count(scores.n), {**conditions, "evaluator": EVALUATOR}
    figures = []
    for name, distance in (("fid", scores.fid), ("sfid", scores.sfid)):
        if distance is not None:
            limits, label = comparability(distance, scores.n), f"{MEASURES[name].label}-{count}"
            figures.append(MEASURES[name].figure(name, distance.value, evaluator | limits, label))
    figures.append(inception_score_figure(scores.inception_score, conditions))
    if (manifold := scores.precision_recall) is not None:
        half: Conditions = {"k": manifold.k, "real images": manifold.n_real}
        half["distances"] = "float16, as in the ADM evaluator"
        values = {"precision": manifold.precision, "recall": manifold.recall}
        figures += [MEASURES[name].figure(name, value, evaluator | half) for name, value in values.items()]
    if (cover := scores.density_coverage) is not None:
        own = {"k": cover.k, "real images": cover.n_real}
        values = {"density": cover.density, "coverage": cover.coverage}
        figures += [MEASURES[name].figure(name, value, evaluator | own) for name, value in values.items()]
    if (kernel := scores.kid) is not None:
        std = float(f"{kernel.std:.3g}")
        subsets = {"subsets": kernel.subsets, "subset size": kernel.subset_size, "std": std}
        real = {"real images": kernel.n_real}
        figures.append(MEASURES["kid"].figure("kid", kernel.value, evaluator | subsets | real))
    return figures


def inception_score_figure(score: InceptionScore, conditions: Conditions) -> Figure:
    """The Inception score, which needs no reference."""
    own: Conditions = {
        "evaluator": EVALUATOR,
        "chunks": f"{score.n_chunks} of {score.chunk_size:,} in the order of the images",
        "std": float(f"{score.std:.3g}"),
    }
    return MEASURES["inception_score"].figure("inception_score", score.mean, conditions | own)


def space_figure(key: str, distance: FrechetDistance, conditions: Conditions, features: str) -> Figure:
    """The Frechet distance in another space than Inception's, which is not an FID."""
    count = distance.n_a or 0
    conditions = {**conditions, "features": features, **comparability(distance, count)}
    if key == DINOV2:
        label = f"FD-DINOv2-{short_count(count)}"
        return MEASURES["fd_dinov2"].figure("fd_dinov2", distance.value, conditions, label)
    label = f"Frechet distance, {features}"
    return MEASURES["frechet_distance"].figure(f"frechet_distance_{key}", distance.value, conditions, label)


def manifold_figures(
    key: str,
    generated: ImageFeatures,
    reference: ReferenceSet,
    conditions: Conditions,
    device: torch.device | str = "cpu",
) -> list[Figure]:
    """Precision, recall, density, coverage and authenticity in a space, as FD-DINOv2's evaluator takes them."""
    made, real = generated.features_of(key), reference.features.get(key)
    if made is None or real is None or min(len(made), len(real)) < FEWEST_FOR_MANIFOLDS:
        return []
    made, real = made.to(device), torch.as_tensor(real).to(device)
    manifold = precision_recall(real, made, k=DGM_NEIGHBOUR, border_inside=False)
    cover = density_coverage(real, made, k=DGM_NEIGHBOUR)
    features = generated.statistics[key].features or ""
    conditions = {**conditions, "features": features, "k": DGM_NEIGHBOUR, "real images": len(real)}
    values = {
        "precision": manifold.precision,
        "recall": manifold.recall,
        "density": cover.density,
        "coverage": cover.coverage,
        "authenticity": authenticity(real, made),
    }
    return [
        MEASURES[name].figure(f"{key}_{name}", value, conditions, f"{MEASURES[name].label}, {MANIFOLD_SPACES[key]}")
        for name, value in values.items()
    ]


def samples_picture(images: GeneratedImages, most_classes: int) -> Picture:
    """The first images of each class, a row per class; of unlabelled images, the first."""
    if images.labels is None:
        shown = images.pick(range(min(images.count, SHOWN_UNLABELLED)))
        return Picture("Samples", "The first images, not chosen.", image_grid(shown, 10), magnification(shown))
    labels = images.labels.tolist()
    rows = class_rows(labels, most_classes, max(images.size))
    shown = images.pick([number for row in rows.values() for number in row])
    grid = image_grid(shown, MOST_COLUMNS, labels=[label for label, row in rows.items() for _ in row])
    caption = "Generated images, a row per class: the first of each, not chosen."
    caption += left_out(labels, most_classes, "--shown-classes")
    return Picture("Samples", caption, grid, magnification(shown), [images.class_name(label) for label in rows])


def neighbours_picture(generation: Generation, images: GeneratedImages) -> Picture | None:
    """Some generated images above the training images that are nearest to them."""
    if generation.neighbours is None or generation.dataset is None:
        return None
    indices = generation.neighbours.indices  # (M, k)
    rows = [images.pick(generation.shown)]
    for rank in range(indices.shape[1]):
        numbers = [int(number) for number in indices[:, rank]]
        if min(numbers) < 0:  # fewer training images than neighbours
            break
        (pixels,) = load_batches(generation.dataset, [numbers], workers=0)
        rows.append(pixels.permute(0, 2, 3, 1).numpy())
    caption = (
        f"Generated images above their nearest training images, by {generation.space}. An image that returns in the "
        "row below was memorised."
    )
    labels = ["generated", "nearest", "second", "third"][: len(rows)]
    grid = image_grid(np.concatenate(rows), len(generation.shown))
    return Picture("Nearest training images", caption, grid, magnification(rows[0]), labels)
