"""Reasons against recommending the settings that a search has found: figures that cannot be compared."""

import math
from collections.abc import Collection, Sequence

from alight.config import TuneConfig
from alight.tune.measure import Measure


def reason_against_comparing(
    config: TuneConfig, measure: Measure, labels: Sequence[int], class_names: Sequence[str]
) -> str | None:
    """The reason why the distances of a search do not tell good settings from bad ones; None if they do.

    Args:
        config: of the search.
        measure: of its distances.
        labels: of the images that are generated, one of each.
        class_names: of all classes that the pipeline generates.
    """
    if len(labels) <= measure.dimension:
        return (
            f"{len(labels):,} images are too few for a distance in {measure.dimension:,} features; "
            f"{enough_images(config, measure.dimension + 1, set(labels))}"
        )
    chosen = config.draw.classes or config.draw.class_counts
    drawn = {class_names[label] for label in set(labels)}
    if chosen and len(drawn) < len(class_names) and drawn != set(measure.class_names or ()):
        return (
            f"images of {len(drawn):,} of {len(class_names):,} classes are compared with a reference of others too; "
            "generate all classes, or give images of the same classes as the reference"
        )
    return None


def enough_images(config: TuneConfig, count: int, labels: Collection[int]) -> str:
    """The option that leads to that many images."""
    if config.draw.labels == "random":
        return f"give --draw.num-samples {count} at least"
    if config.draw.class_counts:
        return f"raise draw.class_counts to {count} images in all at least"
    return f"give --draw.samples-per-class {math.ceil(count / len(labels))} at least"
