"""Exact and near duplicates among images: by hashes of their contents and by differences of brightness.

A near duplicate is the same picture stored again: in another format or size, compressed harder, slightly retouched. It
counts twice in training, and once too often where it is held out.
"""

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from alight.data.crops import center_crop
from alight.data.images import ImageSource
from alight.runtime.console import progress_bar

EXAMINED = 4_000  # images that are compared in pairs; more take minutes to decode
MAX_DISTANCE = 4  # differing bits of 64
_MAX_DIFFERENCE = 8.0  # of 255, of thumbnails on average; tells colours and flat images apart, whose hashes are alike
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


def find_duplicates(source: ImageSource, limit: int = EXAMINED, max_distance: int = MAX_DISTANCE) -> Duplicates:
    """Find images that are stored twice, byte by byte or nearly.

    Near duplicates differ in at most `max_distance` bits of `difference_hash` and by at most 8 of 255 in the mean over
    their 8x8 thumbnails. Groups are transitive: the ends of a chain may differ more.

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
    bits, thumbnails = _fingerprints(source, chosen)
    pairs = _close_pairs(bits, thumbnails, max_distance)
    near = tuple(tuple(int(chosen[place]) for place in group) for group in _connected(len(chosen), pairs))
    return Duplicates(exact, near, len(chosen))


def difference_hash(crop: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """The signs of the horizontal differences of an image shrunk to 9x8 grey pixels (dHash).

    Args:
        crop: (S, S, 3) uint8.

    Returns:
        (64,) true where a pixel is brighter than its left neighbour.
    """
    small = Image.fromarray(crop).convert("L").resize((_COLUMNS, _ROWS), Image.Resampling.BOX)
    return np.diff(np.asarray(small).astype(np.int16), axis=1).ravel() > 0


def _fingerprints(
    source: ImageSource, indices: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """(M, 64) hashes and (M, 192) thumbnails."""

    def examine(index: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
        crop = center_crop(source.load(index), _CROP)
        thumbnail = Image.fromarray(crop).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        return difference_hash(crop), np.asarray(thumbnail, dtype=np.float32).ravel()

    with ThreadPoolExecutor() as pool:
        found = progress_bar(
            pool.map(examine, indices.tolist()),
            total=len(indices),
            desc="looking for duplicates",
            unit="image",
            delay=_SECONDS_BEFORE_PROGRESS_BAR,
        )
        hashes, thumbnails = zip(*found, strict=True)
    return np.stack(hashes), np.stack(thumbnails)


def _close_pairs(
    bits: npt.NDArray[np.bool_], thumbnails: npt.NDArray[np.float32], max_distance: int
) -> Iterable[tuple[int, int]]:
    signs = np.where(bits, 1, -1).astype(np.float32)  # a product of two is 64 - 2 * distance
    for start in range(0, len(signs), _ROWS_AT_ONCE):
        distances = (signs.shape[1] - signs[start : start + _ROWS_AT_ONCE] @ signs.T) / 2
        for row, column in np.argwhere(distances <= max_distance).tolist():
            first = start + row
            if first < column and np.abs(thumbnails[first] - thumbnails[column]).mean() <= _MAX_DIFFERENCE:
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
