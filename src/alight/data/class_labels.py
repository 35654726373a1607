"""Labels and class names from the raw labels of a data set: numbers, names or nothing."""

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

import numpy as np
import numpy.typing as npt

from alight.data.image_store import ImageStore
from alight.data.readable_names import readable, readable_classes
from alight.runtime.errors import InputError

RawLabel = int | float | str | None  # None, NaN or an empty text = unlabelled

_MOST_CLASSES = 1_000_000  # larger numbers are identifiers of something else
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,30}")  # as Python writes it: 007 and 7 are two names
_REAL = re.compile(r"-?(?:0|[1-9][0-9]{0,30})(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?")  # 3.0, as tables write 3
_PADDED = re.compile(r"0[0-9]+")
_MISSING = frozenset({"nan", "none", "null", "na", "n/a", "<na>"})  # among numbers

logger = logging.getLogger(__name__)


def number_classes(raw: Sequence[RawLabel], store: ImageStore) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """A label (N,) int64 for each image of a store, and the names by label.

    If all are whole numbers (3, or 3.0), they are the labels. Names, which include numbers with leading zeros, are
    numbered in sorted order. Images without any label are one class with the name of their place.

    Raises:
        InputError: only some images have a label, a number cannot be a label, or two names look the same.
    """
    texts = _texts(raw)
    bare = [position for position, label in enumerate(texts) if not label]
    if len(bare) == len(texts):
        return np.zeros(len(texts), dtype=np.int64), (readable(PurePath(store.place).stem),)
    if bare:
        raise InputError(
            f"{len(bare):,} of {len(texts):,} images in {store.place} have no label (such as "
            f"{store.location(bare[0])}), but the others have one; label all of them, or take all as one class "
            "with unconditional=True."
        )
    if all(map(_REAL.fullmatch, set(texts))):
        return _numbers(texts, store)
    return name_classes(texts, store)


def _texts(raw: Sequence[RawLabel]) -> list[str]:
    """Labels as text, empty if missing; among numbers, words such as "nan" count as missing."""
    texts = ["" if label is None or label != label else str(label).strip() for label in raw]  # NaN is not itself
    distinct = set(texts)
    missing = {text for text in distinct if text.casefold() in _MISSING}
    present = distinct - missing - {""}
    if missing and present and all(map(_REAL.fullmatch, present)):
        return ["" if text in missing else text for text in texts]
    return texts


def _numbers(texts: Sequence[str], store: ImageStore) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    value = {text: int(text) if _WHOLE.fullmatch(text) else float(text) for text in set(texts)}
    impossible = {
        text for text, number in value.items() if not (0 <= number < _MOST_CLASSES and number == int(number))
    }
    if impossible:
        position = next(position for position, text in enumerate(texts) if text in impossible)
        raise InputError(
            f"{store.location(position)} has the label {texts[position]}, but labels are whole numbers from 0 "
            f"to {_MOST_CLASSES - 1:,}, or names (-1 often stands for an unknown label); correct the labels, or take "
            "all images as one class with unconditional=True."
        )
    labels = np.array([int(value[text]) for text in texts], dtype=np.int64)
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


def name_classes(texts: Sequence[str], store: ImageStore) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """A label (N,) int64 for each image by the name of its class, and the sorted names by label.

    Raises:
        InputError: two names look the same.
    """
    shown = readable_classes(dict.fromkeys(texts), store.place)
    names = sorted(shown.values())
    if same := _same_number(names):
        logger.warning(
            "%s has the labels %s, which differ only in leading zeros; they are separate classes. If they should be "
            "one class, spell its label in one way.",
            store.place,
            " and ".join(same),
        )
    number = {name: label for label, name in enumerate(names)}
    return np.array([number[shown[text]] for text in texts], dtype=np.int64), tuple(names)


def _same_number(names: Iterable[str]) -> tuple[str, str] | None:
    """Two labels, one with more leading zeros than the other, if there are such."""
    seen: dict[str, str] = {}
    for name in names:
        if _WHOLE.fullmatch(name) or _PADDED.fullmatch(name):
            first = seen.setdefault(name.lstrip("0"), name)
            if first != name:
                return first, name
    return None
