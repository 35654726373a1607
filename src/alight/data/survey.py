"""A survey of the images in a source: counts, classes, sizes, transparency, skipped files, duplicates."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from alight.data.duplicates import Duplicates, find_duplicates
from alight.data.images import ImageSource

COMMON_SIZES = (64, 128, 256)  # pixels
TALL_OR_WIDE = 2.0  # ratio of the sides from which a centre crop loses half of the image


@dataclass(frozen=True)
class ImageSurvey:
    """Facts about the images of a source that decide how to train on them.

    Attributes:
        description: one line: the place, number of images and classes.
        classes: name -> number of images, of every class in the order of the labels.
        sizes: (N, 2) int64, height and width of each image in pixels.
        modes: Pillow's name of a stored mode -> number of images, the most frequent first.
        transparent: number of images with pixels that are at least partly transparent.
        skipped: reason -> number of files with the name of an image that cannot be used.
        ignored: extension -> number of other files in the folder; empty for sources of other kinds.
        duplicates: groups of the same and of similar images.
    """

    description: str
    classes: Mapping[str, int]
    sizes: npt.NDArray[np.int64]
    modes: Mapping[str, int]
    transparent: int
    skipped: Mapping[str, int]
    ignored: Mapping[str, int]
    duplicates: Duplicates

    @property
    def count(self) -> int:
        """Number of usable images."""
        return len(self.sizes)

    @cached_property
    def short_sides(self) -> npt.NDArray[np.int64]:
        """(N,) pixels."""
        return self.sizes.min(axis=1)

    def smaller_than(self, size: int) -> int:
        """Number of images with a short side below `size` pixels; these are enlarged to fill a crop of that size."""
        return int((self.short_sides < size).sum())

    @property
    def taller(self) -> int:
        """Number of images taller than 2:1."""
        return int((self.sizes[:, 0] > TALL_OR_WIDE * self.sizes[:, 1]).sum())

    @property
    def wider(self) -> int:
        """Number of images wider than 2:1."""
        return int((self.sizes[:, 1] > TALL_OR_WIDE * self.sizes[:, 0]).sum())

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        short = self.short_sides
        return {
            "description": self.description,
            "images": self.count,
            "classes": dict(self.classes),
            "short_side": {"min": int(short.min()), "median": float(np.median(short)), "max": int(short.max())},
            "smaller_than": {str(size): self.smaller_than(size) for size in COMMON_SIZES},
            "taller_than_2_to_1": self.taller,
            "wider_than_2_to_1": self.wider,
            "modes": dict(self.modes),
            "transparent": self.transparent,
            "skipped": dict(self.skipped),
            "ignored": dict(self.ignored),
            "duplicates": {
                "exact": [list(group) for group in self.duplicates.exact],
                "near": [list(group) for group in self.duplicates.near],
                "examined": self.duplicates.examined,
            },
        }


def survey(source: ImageSource) -> ImageSurvey:
    """Survey the images of a source; all are decoded, at least in part.

    Raises:
        InputError: an image has changed since the source was opened.
    """
    counts = np.bincount(source.labels, minlength=len(source.class_names)).tolist()
    reasons = Counter(_kind(skipped.reason) for skipped in source.skipped)
    return ImageSurvey(
        description=source.description,
        classes=dict(zip(source.class_names, counts, strict=True)),
        sizes=source.sizes,
        modes=dict(Counter(source.modes.tolist()).most_common()),
        transparent=int(source.transparent.sum()),
        skipped=dict(reasons.most_common()),
        ignored=source.ignored_files(),
        duplicates=find_duplicates(source),
    )


def _kind(reason: str) -> str:
    """A reason without its numbers, which differ from file to file."""
    return re.sub(r"\d[\d,.]*", "...", reason)
