"""A cache on disk for the foundation features of images that recur in every epoch.

It pays off for centre crops, with or without mirroring; random crops never recur. A file has a fixed place per image,
so nothing needs to be held in memory, and several processes can write their own images into it.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from alight.data.cache import cache_folder
from alight.data.images import ImageSource
from alight.models.foundation import FoundationModel
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.pixels import to_uint8
from alight.runtime.units import size_text

_HEADER_BYTES = 4096


class FeatureCache:
    """A file of float16 features: a header, then a checksum per row, then the rows.

    An image has two rows, for itself and for its mirror image, whose features are not the mirrored features. The
    checksum of a row joins one of the pixels that it was computed from with one of the features. It is written last,
    so a row that is incomplete, damaged, or of other pixels counts as unknown, and is computed again. The file at
    `path` is sparse: unknown rows take no space on disk.
    """

    def __init__(self, path: Path, rows: int, shape: tuple[int, int, int]) -> None:
        self.path = path
        self._first_row = _HEADER_BYTES + 8 * rows
        self._checksums = np.memmap(path, np.uint64, mode="r", offset=_HEADER_BYTES, shape=(rows,))
        self._rows = np.memmap(path, np.float16, mode="r", offset=self._first_row, shape=(rows, *shape))
        self._file = path.open("r+b", buffering=0)
        self._full = False

    @classmethod
    def open(
        cls,
        foundation: FoundationModel,
        images: ImageSource,
        grid: tuple[int, int],
        precision: str = "fp32",
        folder: Path | None = None,
    ) -> "FeatureCache":
        """Open or create the file for these images; its name depends on everything that changes the features.

        Args:
            foundation: model that computes the features, in this precision.
            images: their source; the indices below are its indices.
            grid: (h, w) of the features.
            precision: of the computation.
            folder: of the file; None = `cache_folder()`.

        Raises:
            InputError: the folder cannot be written.
        """
        shape = (foundation.feature_dim, *grid)
        names = "\0".join(images.name(index) for index in range(len(images))).encode("utf-8", "surrogateescape")
        values = {"foundation": foundation.identity(), "precision": precision, "images": sha256(names).hexdigest()}
        header = json.dumps({"format": 1, **values, "count": len(images), "shape": shape}).encode()
        path = (folder or cache_folder()) / "features" / f"{sha256(header).hexdigest()[:32]}.f16"
        size = _HEADER_BYTES + 2 * len(images) * (8 + 2 * int(np.prod(shape)))
        log.info("feature cache %s: up to %s if every image and its mirror image is used", path, size_text(size))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                _begin_unless_intact(path, header, size)
            return cls(path, 2 * len(images), shape)
        except OSError as error:
            raise InputError(
                f"The feature cache {path} cannot be written ({error.strerror or error}). Set ALIGHT_CACHE to a "
                "folder with space, or train without the cache."
            ) from error

    def read(self, indices: Sequence[int], images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D, h, w) float16 on the CPU of images (B, 3, H, W) in [-1, 1], and which of them are known."""
        rows, checksums = _rows_of(indices, images)
        features = self._rows[rows]  # (B, D, h, w), copied
        expected = [_row_checksum(pixels, values) for pixels, values in zip(checksums, features, strict=True)]
        return torch.from_numpy(features), torch.from_numpy(self._checksums[rows] == np.array(expected))

    def write(self, indices: Sequence[int], images: Tensor, features: Tensor) -> None:
        """Store finite features (B, D, h, w) float16; a full disk stops the cache, not the training."""
        for row, pixels, values in zip(*_rows_of(indices, images), features.cpu().numpy(), strict=True):
            if self._full or not np.isfinite(values).all():
                continue
            try:
                self._file.seek(self._first_row + int(row) * values.nbytes)
                self._file.write(values.tobytes())
                self._file.seek(_HEADER_BYTES + 8 * int(row))
                self._file.write(_row_checksum(pixels, values).tobytes())
            except OSError as error:
                self._full = True
                log.warning("The feature cache %s is full (%s); other features are not cached.", self.path, error)


def cached_features(
    cache: FeatureCache, foundation: FoundationModel, images: Tensor, keys: Sequence[int], grid: tuple[int, int]
) -> Tensor:
    """Features (B, D, h, w) float32 from the cache, or from the foundation model for images that are not in it yet.

    The cache was opened for the same model and grid, the images are (B, 3, H, W) in [-1, 1], and the keys (B,) are
    their indices in its source. New features are rounded like cached ones, so results do not depend on the cache.
    """
    features, known = cache.read(keys, images)
    if not known.all():
        new = torch.nonzero(~known).flatten()
        subset = images[new.to(images.device)]
        computed = foundation(subset, grid).float().clamp(-65504, 65504).half().cpu()
        cache.write([keys[index] for index in new.tolist()], subset, computed)
        features[new] = computed
    return features.to(images.device).float()


def _rows_of(indices: Sequence[int], images: Tensor) -> tuple[np.ndarray, list[int]]:
    """The row of each image and the checksum of its pixels. Of a mirrored pair, the smaller checksum comes first."""
    pixels = to_uint8(images.detach())  # (B, H, W, 3)
    checksums = [crc32(image) for image in pixels.cpu().numpy()]
    mirrored = [crc32(image) for image in pixels.flip(2).cpu().numpy()]
    second = np.array(checksums) > np.array(mirrored)
    return 2 * np.array([int(index) for index in indices], dtype=np.int64) + second, checksums


def _row_checksum(pixels: int, values: np.ndarray) -> np.uint64:
    return np.uint64(pixels << 32 | crc32(values.tobytes()))


def _begin_unless_intact(path: Path, header: bytes, size: int) -> None:
    if path.is_file() and path.stat().st_size == size:
        with path.open("rb") as file:
            if file.read(_HEADER_BYTES) == header.ljust(_HEADER_BYTES, b"\0"):
                return
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(header)
        file.truncate(size)
    partial.replace(path)
