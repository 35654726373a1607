"""Exact and near duplicates among images: by hashes of their contents and by differences of brightness.

A near duplicate is the same picture stored again: in another format or size, compressed harder, slightly retouched. It
counts twice in training, and once too often where it is held out.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from alight.data.crops import center_crop
from alight.data.images import ImageSource
from alight.runtime.background import mapped_in_threads
from alight.runtime.console import progress_bar

EXAMINED = 4_000  # images that are compared in pairs; more take minutes to decode
MAX_DISTANCE = 4.0  # of 64 signs
_LEVEL = 2  # of 255: smaller differences of brightness are noise of compression, and have no sign
_MAX_DIFFERENCE = 16.0  # of 255, anywhere in the thumbnails; tells colours apart, and flat images, whose hashes agree
_CROP, _ROWS, _COLUMNS, _THUMBNAIL = 64, 8, 9, 8  # pixels
_ROWS_AT_ONCE = 512
_SECONDS_BEFORE_PROGRESS_BAR = 2.0

Groups = tuple[tuple[int, ...], ...]


class Duplicates(NamedTuple):
    """Images of a source that show the same picture.

    Attributes:
        exact: groups of at least two indices with the same stored bytes.
        near: groups of at least two indices of similar pictures; of every exact group only its first image is here.
        examined: number of images among which near duplicates were searched.
    """

    exact: Groups
    near: Groups
    examined: int

    @property
    def superfluous(self) -> int:
        """Number of images that could go without losing a picture."""
        return sum(len(group) - 1 for group in (*self.exact, *self.near))


def find_duplicates(source: ImageSource, limit: int = EXAMINED, max_distance: float = MAX_DISTANCE) -> Duplicates:
    """Find images that are stored twice, byte by byte or nearly.

    Near duplicates differ in at most `max_distance` of the 64 signs of `difference_hash`, of which 0 differs
    from 1 and -1 by a quarter, and by at most 16 of 255 anywhere in their 8x8 thumbnails. Groups are transitive: the
    ends of a chain may differ more.

    Args:
        source: the images; exact duplicates are searched among all of them.
        limit: near duplicates are searched among this many images, spread evenly over the source.
        max_distance: of two hashes, 0 to 64.
    """
    by_hash: dict[str, list[int]] = defaultdict(list)
    for index in range(len(source)):
        by_hash[source.content_hash(index)].append(index)
    exact = tuple(tuple(group) for group in by_hash.values() if len(group) > 1)
    different = np.array([group[0] for group in by_hash.values()], dtype=np.int64)
    chosen = different[np.linspace(0, len(different) - 1, min(limit, len(different))).astype(np.int64)]
    hashes, thumbnails = _fingerprints(source, chosen)
    pairs = _close_pairs(hashes, thumbnails, max_distance)
    near = tuple(tuple(int(chosen[place]) for place in group) for group in _connected(len(chosen), pairs))
    return Duplicates(exact, near, len(chosen))


def difference_hash(crop: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """The signs of the horizontal differences of an image shrunk to 9x8 grey pixels (dHash).

    Args:
        crop: (S, S, 3) uint8.

    Returns:
        (64,) 1 where a pixel is brighter than its left neighbour, -1 where it is darker, 0 where both are alike to
        within 2 levels of 255, so that compression does not change the signs in a clear sky.
    """
    small = Image.fromarray(crop).convert("L").resize((_COLUMNS, _ROWS), Image.Resampling.BOX)
    differences = np.diff(np.asarray(small).astype(np.int16), axis=1).ravel()
    return np.where(np.abs(differences) > _LEVEL, np.sign(differences), 0).astype(np.int8)


def _fingerprints(
    source: ImageSource, indices: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(M, 64) hashes and (M, 192) thumbnails."""

    def examine(index: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        crop = center_crop(source.load(index), _CROP)
        thumbnail = Image.fromarray(crop).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        return difference_hash(crop), np.asarray(thumbnail, dtype=np.float32).ravel()

    found = progress_bar(
        mapped_in_threads(examine, indices.tolist()),
        total=len(indices),
        desc="looking for duplicates",
        unit="image",
        delay=_SECONDS_BEFORE_PROGRESS_BAR,
    )
    hashes, thumbnails = zip(*found, strict=True)
    return np.stack(hashes).astype(np.float32), np.stack(thumbnails)


def _close_pairs(
    hashes: npt.NDArray[np.float32], thumbnails: npt.NDArray[np.float32], max_distance: float
) -> Iterable[tuple[int, int]]:
    squares = (hashes**2).sum(axis=1)
    for start in range(0, len(hashes), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        distances = (squares[rows, None] + squares - 2 * hashes[rows] @ hashes.T) / 4  # opposite signs count 1
        for row, column in np.argwhere(distances <= max_distance).tolist():
            first = start + row
            if first < column and np.abs(thumbnails[first] - thumbnails[column]).max() <= _MAX_DIFFERENCE:
                yield first, column


def _connected(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The groups of at least two of `count` items that pairs connect."""
    parents = list(range(count))

    def root(item: int) -> int:
        while parents[item] != item:
            parents[item] = item = parents[parents[item]]
        return item

    for first, second in pairs:
        parents[max(root(first), root(second))] = min(root(first), root(second))
    groups: dict[int, list[int]] = defaultdict(list)
    for item in range(count):
        groups[root(item)].append(item)
    return [group for group in groups.values() if len(group) > 1]
