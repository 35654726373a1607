"""Reference statistics and images in the published layouts, to compare generated images with."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from alight.metrics.frechet import FeatureStatistics, read_moments
from alight.runtime.errors import InputError
from alight.runtime.npz import ArrayHeader, array_headers, array_names, open_array, read_array

_AS_IMAGES = "cannot be used as images, a .npz whose arr_0 is (N, H, W, 3) uint8"
_AS_SPATIAL = "cannot be used as spatial statistics, a .npz with mu_s (D,) and sigma_s (D, D)"
IMAGE_LIMIT = 2**28  # bytes of one image, such as 9,400 x 9,400 pixels
LABELS_LIMIT = 2**28  # bytes of all labels

POOL_FEATURES = "Inception-v3 of 2015-12-05, pool, TensorFlow resizing"
SPATIAL_FEATURES = "Inception-v3 of 2015-12-05, first 7 channels of mixed_6/conv, TensorFlow resizing"


@dataclass(frozen=True)
class Reference:
    """Real images as the Inception scores see them.

    Attributes:
        pool: statistics of the pool features, for FID.
        spatial: of the spatial features, for sFID; None where a file has none.
        features: the pool features themselves, (N, 2048), for precision, recall and the kernel distance, or None.
            The ADM evaluator takes them of other images than the statistics: of 10,000 from the training set.
    """

    pool: FeatureStatistics
    spatial: FeatureStatistics | None = None
    features: Tensor | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics in the layout of the ADM evaluator, to which `n` and `features` are added."""
        spatial = {} if self.spatial is None else {"mu_s": self.spatial.mu, "sigma_s": self.spatial.sigma}
        self.pool.save(path, **spatial)


def read_reference(path: str | os.PathLike[str]) -> Reference:
    """Read reference statistics: a `.npz` of the ADM evaluator, of pytorch-fid, or of `Reference.save`.

    All have `mu` and `sigma` of the pool features. The ADM evaluator's have `mu_s` and `sigma_s` of the spatial
    features too, and images, which `read_images` gives.

    Raises:
        InputError: the file is missing or no `.npz`, or the statistics are absent or do not fit.
    """
    pool = FeatureStatistics.load(path)
    if not {"mu_s", "sigma_s"} & set(array_names(Path(path))):
        return Reference(pool)
    moments = read_moments(Path(path), "mu_s", "sigma_s", _AS_SPATIAL)
    spatial = FeatureStatistics.from_moments(*moments, pool.n, SPATIAL_FEATURES)
    pool.features = pool.features or POOL_FEATURES  # a file with spatial statistics follows the ADM evaluator
    return Reference(pool, spatial)


class NpzImageReader:
    """The images of a `.npz`, `arr_0` of (N, H, W, 3) uint8, read in parts without ever holding all of them.

    Attributes:
        shape: (N, H, W, 3).

    Raises:
        InputError: the file is missing, damaged or no `.npz`, or has no such images.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"There are no images at {path}; give the path of a .npz with images in arr_0.")
        held = array_headers(self.path, _AS_IMAGES)
        self._labels = held.get("arr_1")
        if "arr_0" not in held:
            raise InputError(
                f"{path} {_AS_IMAGES}: it holds {', '.join(list(held)[:5]) or 'nothing'}. Give a file of images."
            )
        self.shape = _image_shape(self.path, held["arr_0"])

    def read(self, start: int, stop: int, batch_size: int = 64) -> Iterator[npt.NDArray[np.uint8]]:
        """Images `start` to `stop` in their order, as (B, H, W, 3) uint8.

        Raises:
            InputError: the file is damaged.
        """
        size = int(np.prod(self.shape[1:]))
        with open_array(self.path, "arr_0", _AS_IMAGES) as (_, file):
            file.seek(start * size, os.SEEK_CUR)
            for first in range(start, stop, batch_size):
                wanted = min(batch_size, stop - first) * size
                data = file.read(wanted)
                if len(data) < wanted:
                    raise EOFError(f"it ends within image {first + len(data) // size}")
                yield np.frombuffer(data, np.uint8).reshape(-1, *self.shape[1:])

    def labels(self) -> npt.NDArray[np.int64] | None:
        """The classes of the images, (N,), where the file has them as its second array."""
        header = self._labels
        if header is None or header.shape != self.shape[:1] or not np.issubdtype(header.dtype, np.integer):
            return None
        return read_array(self.path, "arr_1", LABELS_LIMIT, refusal=_AS_IMAGES).astype(np.int64)


def read_images(path: str | os.PathLike[str], batch_size: int = 64) -> Iterator[npt.NDArray[np.uint8]]:
    """All images of a reference or of samples, in their order, as (B, H, W, 3) uint8; see `NpzImageReader`."""
    file = NpzImageReader(path)
    yield from file.read(0, file.shape[0], batch_size)


def has_images(path: str | os.PathLike[str]) -> bool:
    """Tell if a `.npz` holds images, beside or instead of statistics."""
    return _has("arr_0", path)


def has_statistics(path: str | os.PathLike[str]) -> bool:
    """Tell if a `.npz` holds statistics of features."""
    return _has("mu", path)


def _has(name: str, path: str | os.PathLike[str]) -> bool:
    try:
        return name in array_names(Path(path))
    except InputError:
        return False


def _image_shape(path: Path, header: ArrayHeader) -> tuple[int, int, int, int]:
    """The shape of an array of images, refused if it is of anything else."""
    shape = header.shape
    if len(shape) != 4 or shape[3] != 3 or header.dtype != np.uint8 or not all(shape):
        raise InputError(f"{path} {_AS_IMAGES}: its arr_0 is {header}. Give a file of 8-bit RGB images.")
    if header.fortran_order:
        raise InputError(
            f"{path} {_AS_IMAGES}: its arr_0 is {header}, column by column, so that no "
            "single image can be read from it. Save numpy.ascontiguousarray(images) instead."
        )
    if shape[1] * shape[2] * shape[3] > IMAGE_LIMIT:
        raise InputError(f"{path} holds images of {shape[2]}x{shape[1]} pixels, more than can be measured.")
    return shape[0], shape[1], shape[2], shape[3]
