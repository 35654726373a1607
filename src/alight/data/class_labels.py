"""From what a data set says about each image, a number, a name or nothing, to labels and class names."""

import logging
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
import numpy.typing as npt

from alight.data.image_store import ImageStore
from alight.runtime.errors import InputError

RawLabel = int | str | None  # None or an empty text = unlabelled

_MOST_CLASSES = 1_000_000  # numbers beyond are identifiers of something else

logger = logging.getLogger(__name__)


def number_classes(raw: Sequence[RawLabel], store: ImageStore) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """A label for each image of a store, and the name of each class.

    Whole numbers, if there is nothing else, are labels as they are and keep the meaning they have elsewhere. Names are
    numbered in sorted order. Images without any label are one class with the name of their place.

    Returns:
        (N,) int64, and the names by label.

    Raises:
        InputError: some images have a label and others none, or a number cannot be a label.
    """
    bare = [position for position, label in enumerate(raw) if label is None or label == ""]
    if len(bare) == len(raw):
        return np.zeros(len(raw), dtype=np.int64), (PurePath(store.place).stem,)
    if bare:
        raise InputError(
            f"{len(bare):,} of {len(raw):,} images in {store.place} have no label that can be read (such as "
            f"{store.location(bare[0])}), but the others have one; label all of them, or take all as one class "
            "with unconditional=True."
        )
    numbers = _whole_numbers(raw)
    if numbers is None:
        names = sorted({str(label) for label in raw})
        number = {name: label for label, name in enumerate(names)}
        return np.array([number[str(label)] for label in raw], dtype=np.int64), tuple(names)
    impossible = [position for position, number in enumerate(numbers) if not 0 <= number < _MOST_CLASSES]
    if impossible:
        raise InputError(
            f"{store.location(impossible[0])} has the label {numbers[impossible[0]]}, but labels are numbers from 0 "
            f"to {_MOST_CLASSES - 1:,}, or names (-1 often stands for an unknown label); mend the labels, or take all "
            "images as one class with unconditional=True."
        )
    labels = np.array(numbers, dtype=np.int64)
    counts = np.bincount(labels)
    if not counts.all():
        logger.warning(
            "%s has %d classes, from 0 to the largest label, but %d of them have no image (such as %d).",
            store.place,
            len(counts),
            (counts == 0).sum(),
            counts.argmin(),
        )
    return labels, tuple(str(label) for label in range(len(counts)))


def _whole_numbers(raw: Sequence[RawLabel]) -> list[int] | None:
    """The labels as numbers, or None if one of them is a name."""
    try:
        return [int(str(label)) for label in raw if label is not None]
    except ValueError:
        return None
