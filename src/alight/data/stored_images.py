"""The base class of all image sources on disk: stored images with labels."""

import logging
from io import BytesIO

import numpy as np
import numpy.typing as npt

from alight.data.decode import WHITE, RgbImage, decode_image
from alight.data.image_index import ImageIndex, index_images
from alight.data.image_store import ImageStore
from alight.data.images import ImageSource
from alight.data.readable_names import printable, readable
from alight.runtime.errors import InputError

_NAMED_IN_MESSAGES = 3
_DIM = (1 << 14) - 1  # a correctly exposed 16-bit image exceeds a quarter of white

logger = logging.getLogger(__name__)


class StoredImages(ImageSource):
    """The images of a store that decode; the others are skipped, listed in `skipped` and warned about.

    Args:
        store: the encoded images.
        labels: (len(store),) int64, index into `class_names`.
        class_names: name of each class.
        max_skipped_fraction: more unusable images than this share are an error.
        background: the colour behind transparent pixels.

    Raises:
        InputError: too many images are damaged, or all those of a class.
    """

    def __init__(
        self,
        store: ImageStore,
        labels: npt.NDArray[np.int64],
        class_names: tuple[str, ...],
        max_skipped_fraction: float = 0.5,
        background: str = WHITE,
    ) -> None:
        self.store = store
        self.background = background
        self.class_names = class_names
        index = index_images(store)
        self.skipped = index.skipped
        self._check_skipped(index, max_skipped_fraction)
        self._positions = np.array(index.positions, dtype=np.int64)  # in the store, of the images that decode
        self._hashes = np.array([record.hash for record in index.images], dtype=np.bytes_)
        self.labels = labels[self._positions]
        self.sizes = np.array([(record.height, record.width) for record in index.images], dtype=np.int64)
        self._modes = np.array([record.mode for record in index.images], dtype=np.str_)
        self._transparent = np.array([record.transparent for record in index.images], dtype=np.bool_)
        self._require_the_same_classes(labels)
        self._warn_of_dim(index)

    @property
    def modes(self) -> npt.NDArray[np.str_]:
        """(N,) of the stored images."""
        return self._modes

    @property
    def transparent(self) -> npt.NDArray[np.bool_]:
        """(N,) of the stored images."""
        return self._transparent

    @property
    def description(self) -> str:
        """The place, its number of images and classes, and how many images were skipped."""
        classes = len(self.class_names)
        count = f"{len(self):,} images" + (f" in {classes:,} classes" if classes > 1 else ", one class")
        skipped = f", {len(self.skipped):,} damaged files skipped" if self.skipped else ""
        return f"{self.store.place}: {count}{skipped}"

    def name(self, index: int) -> str:
        r"""The name in the store, with `\xe9` for a byte that is not UTF-8.

        For files it is the path relative to the folder, with forward slashes.
        """
        return printable(self.store.name(int(self._positions[index])))

    def content_hash(self, index: int) -> str:
        """The hash of the encoded bytes at the time of indexing."""
        return self._hashes[index].decode()

    def load(self, index: int) -> RgbImage:
        """The decoded image; see `decode_image`.

        Raises:
            InputError: the image has changed or vanished since it was indexed.
        """
        position = int(self._positions[index])
        try:
            return decode_image(BytesIO(self.store.read(position)), self.background)
        except Exception as error:
            raise InputError(
                f"{self.store.location(position)} could be decoded when the images were indexed, but no longer "
                f"({error}); put it back, or start again so that the images are indexed again."
            ) from error

    def _check_skipped(self, index: ImageIndex, max_fraction: float) -> None:
        total, count = len(self.store), len(index.skipped)
        if not count:
            return
        examples = "; ".join(f"{path}: {reason}" for path, reason in index.skipped[:_NAMED_IN_MESSAGES])
        listed = (
            f"; all are listed in {index.skipped_list}" if index.skipped_list and count > _NAMED_IN_MESSAGES else ""
        )
        skipped = f"{count:,} of {total:,} images in {self.store.place} cannot be decoded ({examples}{listed})"
        skipped = skipped.encode("utf-8", "backslashreplace").decode()  # names may not be UTF-8
        if count == total:
            raise InputError(f"{skipped}, which leaves none; download or unpack them again.")
        if count > max_fraction * total:
            raise InputError(
                f"{skipped}, more than the allowed share of {max_fraction:g}; replace them, or allow more with "
                "max_skipped_fraction."
            )
        logger.warning("%s; they are skipped.", skipped)

    def _require_the_same_classes(self, labels: npt.NDArray[np.int64]) -> None:
        """Refuse a class without a readable image, which would silently never be learnt."""
        lost = sorted(set(labels.tolist()) - set(self.labels.tolist()))
        if lost:
            raise InputError(
                f"No image of the class {self.class_names[lost[0]]} in {self.store.place} can be decoded; replace its "
                "images or remove them."
            )

    def _warn_of_dim(self, index: ImageIndex) -> None:
        """Warn of 10, 12 or 14 bits stored in 16, as by cameras and microscopes, which look nearly black."""
        dim = [(record.peak, record.name) for record in index.images if 0 < record.peak <= _DIM]
        if not dim:
            return
        deep = sum(record.peak > 0 for record in index.images)
        peak, name = max(dim)
        logger.warning(
            "%s of %s images with 16 bits in %s have no value above %s, as if they held %d bits (the brightest "
            "is %s, with %s). White is 65,535, so they are nearly black; if they should not be, scale their values to "
            "16 or to 8 bits before.",
            f"{len(dim):,}",
            f"{deep:,}",
            self.store.place,
            f"{(1 << peak.bit_length()) - 1:,}",
            peak.bit_length(),
            readable(name),
            f"{peak:,}",
        )
