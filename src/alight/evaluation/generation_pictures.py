"""Pictures of generated images for a report: some of every class, and the training images that are nearest to some."""

import numpy as np

from alight.evaluation.batches import load_batches
from alight.evaluation.generated import GeneratedImages
from alight.evaluation.generation import Generation
from alight.evaluation.tokenizer_report import magnification
from alight.reporting.pictures import image_grid
from alight.reporting.report import Picture

SHOWN_PER_CLASS, SHOWN_CLASSES, SHOWN_UNLABELLED = 10, 10, 50


def samples_picture(images: GeneratedImages) -> Picture:
    """The first images of each class, a row per class; of unlabelled images, the first."""
    if images.labels is None:
        shown = images.pick(range(min(images.count, SHOWN_UNLABELLED)))
        return Picture("Samples", "The first images, not chosen.", image_grid(shown, 10), magnification(shown))
    classes = sorted(dict.fromkeys(images.labels.tolist()))[:SHOWN_CLASSES]
    rows = [np.flatnonzero(images.labels == label)[:SHOWN_PER_CLASS] for label in classes]
    columns = min(map(len, rows))
    shown = images.pick([int(number) for row in rows for number in row[:columns]])
    names = [images.class_names[label] if label < len(images.class_names) else str(label) for label in classes]
    caption = "Generated images, a row per class: the first of each, not chosen."
    return Picture("Samples", caption, image_grid(shown, columns), magnification(shown), names)


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
        "row below was learned by heart."
    )
    labels = ["generated", "nearest", "second", "third"][: len(rows)]
    grid = image_grid(np.concatenate(rows), len(generation.shown))
    return Picture("Nearest training images", caption, grid, magnification(rows[0]), labels)
