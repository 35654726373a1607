"""Labels and seeds of the images to generate, the same on every machine."""

from collections.abc import Sequence

import torch

from alight.config import DrawConfig
from alight.data.sample_folder import Request
from alight.pipelines.lightning_dit import LightningDiTPipeline
from alight.runtime.seeding import derive_seed, random_stream


def plan_requests(pipeline: LightningDiTPipeline, draw: DrawConfig, seed: int) -> list[Request]:
    """Labels and seeds of all images; image i has the i-th seed, whatever its class.

    Raises:
        InputError: a class is unknown.
    """
    if draw.class_counts:
        counts = torch.tensor(list(draw.class_counts.values()))
        labels = pipeline.resolve_labels(list(draw.class_counts)).repeat_interleave(counts)
    else:
        classes: Sequence[int | str] = draw.classes or range(pipeline.transformer.config.num_classes)
        known = pipeline.resolve_labels(classes)
        if draw.labels == "random":
            assert draw.num_samples is not None  # the configuration saw to it
            draws = torch.randint(len(known), (draw.num_samples,), generator=random_stream(seed, "labels"))
            labels = known[draws]
        else:
            labels = known.repeat_interleave(draw.samples_per_class)
    return [Request(label, derive_seed(seed, "sample", i)) for i, label in enumerate(labels.tolist())]


def label_protocol(draw: DrawConfig) -> str:
    """The way the labels were chosen, a condition of every figure measured on the images."""
    if draw.class_counts:
        return "given counts per class"
    chosen = f" of {len(draw.classes)} chosen classes" if draw.classes else ""
    if draw.labels == "random":
        return f"random, drawn uniformly{chosen}"
    return f"balanced, {draw.samples_per_class} per class{chosen}"
