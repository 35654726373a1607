"""The choice of images for a picture with a row per class: the first of each class, as many as fit."""

from collections.abc import Sequence

LARGEST_PICTURE = 100 * 256 * 256  # pixels: ten rows of ten images of 256 pixels
MOST_COLUMNS, FEWEST_COLUMNS = 10, 2


def class_rows(labels: Sequence[int], most_classes: int, side: int) -> dict[int, list[int]]:
    """Choose the first images of every class, in ascending order of the classes.

    Args:
        labels: of all images.
        most_classes: rows of the picture; the classes with the largest labels are left out beyond it.
        side: of an image in pixels; rows of large images are shorter.

    Returns:
        Label -> numbers of its images, at most ten.
    """
    numbers: dict[int, list[int]] = {}
    for number, label in enumerate(labels):
        numbers.setdefault(int(label), []).append(number)
    shown = sorted(numbers)[:most_classes]
    columns = LARGEST_PICTURE // side**2 // max(len(shown), 1)
    columns = min(max(columns, FEWEST_COLUMNS), MOST_COLUMNS)
    return {label: numbers[label][:columns] for label in shown}


def left_out(labels: Sequence[int], most_classes: int, option: str) -> str:
    """A sentence on the classes that are not shown, with the option that shows them; empty if all are."""
    classes = len(set(labels))
    if classes <= most_classes:
        return ""
    return f" {classes - most_classes:,} of {classes:,} classes are left out; {option} {classes} shows all."
