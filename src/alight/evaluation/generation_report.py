"""Generated images in figures: every score with its conditions, and with whom it may be compared."""

from dataclasses import replace

import torch

from alight.evaluation.features import DINOV2, INCEPTION, ImageFeatures
from alight.evaluation.generated import Conditions, GeneratedImages
from alight.evaluation.reference_set import ReferenceSet
from alight.metrics.frechet import FrechetDistance, frechet_distance
from alight.metrics.inception_score import InceptionScore
from alight.metrics.inception_set import InceptionScores, inception_scores
from alight.metrics.manifold import density_coverage, precision_recall
from alight.reporting.report import Figure

PUBLISHED_COUNT = 50_000
EVALUATOR = "Inception-v3 of 2015-12-05, TensorFlow resizing to 299, float64"
DGM_NEIGHBOUR = 5  # k of precision, recall, density and coverage beside FD-DINOv2
FEWEST_FOR_MANIFOLDS = 6


def generation_figures(
    images: GeneratedImages, generated: ImageFeatures, reference: ReferenceSet, seed: int
) -> list[Figure]:
    """Every score that the networks and the reference allow.

    Args:
        images: that were measured.
        generated: their features.
        reference: what they are held against.
        seed: draws the subsets of the kernel distance.
    """
    conditions = {**images.conditions, "reference": reference.description}
    figures: list[Figure] = []
    if generated.inception is not None and reference.inception is not None:
        generator = torch.Generator().manual_seed(seed)
        real = reference.inception
        if min(images.count, len(reference.features.get(INCEPTION, ()))) < FEWEST_FOR_MANIFOLDS:
            real = replace(real, features=None)
        scores = inception_scores(generated.inception, real, generator, half_precision=True)
        figures += inception_figures(scores, conditions)
    elif generated.inception is not None:
        figures.append(inception_score_figure(generated.inception.classes.compute(), conditions))
    for key in generated.statistics:
        if key in reference.statistics:
            distance = frechet_distance(generated.statistics[key], reference.statistics[key])
            figures.append(space_figure(key, distance, conditions, generated.statistics[key].features or key))
    if DINOV2 in generated.statistics and DINOV2 in reference.features:
        figures += dinov2_figures(generated, reference, conditions)
    return figures


def short_count(count: int) -> str:
    """50,000 as 50k, 500 as 500: how papers say of how many images a score is."""
    return f"{count / 1000:g}k" if count >= 1000 else str(count)


def comparable(distance: FrechetDistance, count: int) -> str:
    """With whom a Frechet distance may be compared."""
    if count <= distance.dimension:
        return f"no: {count:,} images for {distance.dimension:,} features; the value is far too high"
    if count < PUBLISHED_COUNT:
        return "with runs of the same count and reference"
    return "with published figures of 50,000 images and the same reference"


def rank_of(distance: FrechetDistance) -> Conditions:
    """Told where a covariance misses directions: from too few images, or of features that never vary."""
    if not distance.rank_deficient:
        return {}
    return {"rank of the covariance": f"{min(distance.rank_a, distance.rank_b):,} of {distance.dimension:,}"}


def inception_figures(scores: InceptionScores, conditions: Conditions) -> list[Figure]:
    """FID and all that is taken with the same network."""
    count, evaluator = short_count(scores.n), {**conditions, "evaluator": EVALUATOR}
    compared = {"comparable": comparable(scores.fid, scores.n)} | rank_of(scores.fid)
    figures = [
        Figure(
            "fid",
            f"FID-{count}",
            scores.fid.value,
            digits=2,
            conditions=evaluator | compared,
            explanation="Frechet distance of Inception's pool features; 0 is equal.",
            better="lower",
        )
    ]
    if scores.sfid is not None:
        figures.append(
            Figure(
                "sfid",
                f"sFID-{count}",
                scores.sfid.value,
                digits=2,
                conditions=evaluator | {"comparable": comparable(scores.sfid, scores.n)} | rank_of(scores.sfid),
                explanation="The same of spatial features, which see layout.",
                better="lower",
            )
        )
    figures.append(inception_score_figure(scores.inception_score, conditions))
    if (manifold := scores.precision_recall) is not None:
        shared = evaluator | {
            "k": manifold.k,
            "real images": manifold.n_real,
            "distances": "float16, as in the ADM evaluator",
        }
        figures += [
            share_figure("precision", "Precision", manifold.precision, shared, "generated images among real ones"),
            share_figure("recall", "Recall", manifold.recall, shared, "real images among generated ones"),
        ]
    if (cover := scores.density_coverage) is not None:
        shared = evaluator | {"k": cover.k, "real images": cover.n_real}
        figures += [
            share_figure("density", "Density", cover.density, shared, "real neighbourhoods around generated images"),
            share_figure("coverage", "Coverage", cover.coverage, shared, "real images with a generated one nearby"),
        ]
    if (kernel := scores.kid) is not None:
        subsets = {"subsets": kernel.subsets, "subset size": kernel.subset_size, "std": float(f"{kernel.std:.3g}")}
        figures.append(
            Figure(
                "kid",
                "KID",
                kernel.value,
                digits=5,
                conditions=evaluator | subsets | {"real images": kernel.n_real},
                explanation="Kernel distance of the pool features, without bias for few images.",
                headline=False,
                better="lower",
            )
        )
    return figures


def inception_score_figure(score: InceptionScore, conditions: Conditions) -> Figure:
    """The Inception score, which needs no reference."""
    return Figure(
        "inception_score",
        "Inception score",
        score.mean,
        digits=1,
        conditions={
            **conditions,
            "evaluator": EVALUATOR,
            "chunks": f"{score.n_chunks} of {score.chunk_size:,} in the order of the images",
            "std": float(f"{score.std:.3g}"),
        },
        explanation="Are images of clear classes, and of many? For ImageNet models alone.",
        headline=False,
        better="higher",
    )


def share_figure(name: str, label: str, value: float, conditions: Conditions, meaning: str) -> Figure:
    """One of the scores that are shares of images."""
    return Figure(
        name,
        label,
        value,
        digits=3,
        conditions=conditions,
        explanation=f"Share: {meaning}.",
        headline=False,
        better="higher",
    )


def space_figure(key: str, distance: FrechetDistance, conditions: Conditions, features: str) -> Figure:
    """The Frechet distance in another space than Inception's, which is no FID."""
    shared = {"features": features, "comparable": comparable(distance, distance.n_a or 0)} | rank_of(distance)
    if key == DINOV2:
        return Figure(
            "fd_dinov2",
            f"FD-DINOv2-{short_count(distance.n_a or 0)}",
            distance.value,
            digits=1,
            conditions={**conditions, **shared},
            explanation="Frechet distance in DINOv2's features, which follow what people see better than Inception's.",
            better="lower",
        )
    return Figure(
        f"frechet_distance_{key}",
        f"Frechet distance, {features}",
        distance.value,
        digits=3,
        conditions={**conditions, **shared},
        explanation="Distance of two Gaussians fitted to the features of generated and real images.",
        headline=False,
        better="lower",
    )


def dinov2_figures(generated: ImageFeatures, reference: ReferenceSet, conditions: Conditions) -> list[Figure]:
    """Precision, recall, density and coverage by the conventions of FD-DINOv2's evaluator."""
    made, real = generated.features_of(DINOV2), reference.features[DINOV2]
    if made is None or min(len(made), len(real)) < FEWEST_FOR_MANIFOLDS:
        return []
    manifold = precision_recall(real, made, k=DGM_NEIGHBOUR, border_inside=False)
    cover = density_coverage(real, made, k=DGM_NEIGHBOUR)
    shared = {
        **conditions,
        "features": generated.statistics[DINOV2].features or "",
        "k": DGM_NEIGHBOUR,
        "real images": len(real),
    }
    values = {
        "precision": manifold.precision,
        "recall": manifold.recall,
        "density": cover.density,
        "coverage": cover.coverage,
    }
    meaning = "as the evaluator of FD-DINOv2 takes it"
    return [
        share_figure(f"dinov2_{name}", f"{name.capitalize()}, DINOv2", value, shared, meaning)
        for name, value in values.items()
    ]
