"""Reference statistics and images in the published layouts, to compare generated images with."""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from torch import Tensor

from alight.metrics.frechet import FeatureStatistics
from alight.runtime.errors import InputError

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
    try:
        with np.load(path, allow_pickle=False) as file:
            if "mu_s" not in file and "sigma_s" not in file:
                return Reference(pool)
            spatial = FeatureStatistics.from_moments(file["mu_s"], file["sigma_s"], pool.n, SPATIAL_FEATURES)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path} cannot be used as spatial statistics, mu_s (D,) and sigma_s (D, D): {error}"
        ) from error
    pool.features = pool.features or POOL_FEATURES  # whoever keeps spatial statistics follows the ADM evaluator
    return Reference(pool, spatial)


class ImageFile:
    """The images of a `.npz`, `arr_0` of (N, H, W, 3) uint8, read in parts without ever holding all of them.

    Args:
        path: of the file, as references and samples are published.

    Attributes:
        shape: (N, H, W, 3).

    Raises:
        InputError: the file is missing, damaged or no `.npz`, or has no such images.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"There are no images at {path}; give the path of a .npz with images in arr_0.")
        with _explained(path), zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            self.shape = _image_shape(file)

    def read(self, start: int, stop: int, batch_size: int = 64) -> Iterator[npt.NDArray[np.uint8]]:
        """Images `start` to `stop` in their order, as (B, H, W, 3) uint8.

        Raises:
            InputError: the file is damaged.
        """
        size = int(np.prod(self.shape[1:]))
        with _explained(self.path), zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
            _image_shape(file)  # leaves the file where the pixels begin
            file.seek(start * size, os.SEEK_CUR)
            for first in range(start, stop, batch_size):
                wanted = min(batch_size, stop - first) * size
                data = file.read(wanted)
                if len(data) < wanted:
                    raise EOFError(f"it ends within image {first + len(data) // size}")
                yield np.frombuffer(data, np.uint8).reshape(-1, *self.shape[1:])

    def labels(self) -> npt.NDArray[np.int64] | None:
        """The classes of the images, (N,), where the file has them as its second array."""
        with _explained(self.path), np.load(self.path, allow_pickle=False) as file:
            labels = file["arr_1"] if "arr_1" in file else None
        if labels is None or labels.shape != self.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            return None
        return labels.astype(np.int64)


def read_images(path: str | os.PathLike[str], batch_size: int = 64) -> Iterator[npt.NDArray[np.uint8]]:
    """All images of a reference or of samples, in their order, as (B, H, W, 3) uint8; see `ImageFile`."""
    file = ImageFile(path)
    yield from file.read(0, file.shape[0], batch_size)


def has_images(path: str | os.PathLike[str]) -> bool:
    """Tell if a `.npz` holds images, beside or instead of statistics."""
    return _has("arr_0", path)


def has_statistics(path: str | os.PathLike[str]) -> bool:
    """Tell if a `.npz` holds statistics of features."""
    return _has("mu", path)


def _has(name: str, path: str | os.PathLike[str]) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{name}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


@contextmanager
def _explained(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} cannot be used as images, a .npz whose arr_0 is (N, H, W, 3) uint8: {error}"
        ) from error


def _image_shape(file: IO[bytes]) -> tuple[int, int, int, int]:
    """The shape that the header of an array of images announces."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_major, dtype = read_header(file)
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or column_major or not shape[0]:
        raise ValueError(f"it is {shape} of {dtype}")
    return shape
