"""Images that ship inside scikit-learn: real data for quickstarts, tests and studies without a network.

- `Digits`: 1,797 handwritten digits, ten classes (the test set of UCI's optical recognition of handwritten digits).
- `Photographs`: crops of the two photographs `china.jpg` and `flower.jpg`, for natural-image detail.
"""

import functools

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from alight.data.decode import RgbImage
from alight.data.images import ImageSource
from alight.runtime.errors import InputError

_DIGITS_FOR_TRAINING = 1500  # the first ones, in scikit-learn's order
_DIGIT_WHITE = 16  # 8x8 digits count the inked pixels of 4x4 cells
_HELD_OUT_COLUMN = 384  # of 640: what lies to the right of it in each photograph is held out


def enlarge(digit: npt.NDArray[np.floating], size: int = 32) -> RgbImage:
    """Render an 8x8 digit with values 0..16 as white ink on black.

    Returns:
        (size, size, 3) uint8.
    """
    grey = np.round(digit * (255 / _DIGIT_WHITE)).astype(np.uint8)
    enlarged = Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC)
    return np.repeat(np.asarray(enlarged)[..., None], 3, axis=-1)


@functools.cache
def _enlarged_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], tuple[str, ...]]:
    """Digits (1797, 32, 32, 3), labels (1797,) and class names: enlarged once, though every stage opens them."""
    digits = load_digits()  # (1797, 8, 8) float64 in 0..16
    names = tuple(str(name) for name in digits.target_names)
    return np.stack([enlarge(digit) for digit in digits.images]), digits.target.astype(np.int64), names


class Digits(ImageSource):
    """Handwritten digits at 32x32, classes "0" to "9".

    The first 1,500 are for training and the last 297 held out.
    """

    def __init__(self) -> None:
        self._digits, labels, self.class_names = _enlarged_digits()
        self.labels = labels.copy()
        self.sizes = np.full((len(self.labels), 2), 32, dtype=np.int64)

    @property
    def description(self) -> str:
        """The name and the number of the images, for reports."""
        return f"scikit-learn's handwritten digits: {len(self):,} images in 10 classes"

    def name(self, index: int) -> str:
        """The place in scikit-learn's order."""
        return f"digit-{range(len(self))[index]:04d}"

    def load(self, index: int) -> RgbImage:
        """(32, 32, 3) uint8."""
        return self._digits[index].copy()

    def held_out(self, fraction: float) -> npt.NDArray[np.bool_]:
        """(1797,) true from 1,500 on, whatever the fraction."""
        return np.arange(len(self)) >= _DIGITS_FOR_TRAINING


class Photographs(ImageSource):
    """Overlapping square crops of two photographs (427x640), classes "china" and "flower".

    The crops form a grid. Training crops are from the left 384 columns of each photograph, and held-out crops from the
    right 256, so the two share no pixel.

    Args:
        crop_size: side of the crops in pixels.
        stride: distance between neighbours of the grid; None = a quarter of `crop_size`.

    Raises:
        InputError: the crop does not fit into either part, or the stride is not positive.
    """

    def __init__(self, crop_size: int = 64, stride: int | None = None) -> None:
        photographs = load_sample_images()
        self.class_names = tuple(file.rsplit("/", 1)[-1].removesuffix(".jpg") for file in photographs.filenames)
        self._photographs = photographs.images  # each (427, 640, 3) uint8
        self.crop_size = crop_size
        stride = max(crop_size // 4, 1) if stride is None else stride
        height, width = self._photographs[0].shape[:2]
        largest = min(height, _HELD_OUT_COLUMN, width - _HELD_OUT_COLUMN)
        if not 1 <= crop_size <= largest or stride < 1:
            raise InputError(
                f"Crops of the embedded photographs have a side from 1 to {largest} pixels and a positive stride, but "
                f"{crop_size} and {stride} were given; take larger images from a folder."
            )
        self._corners = np.array(
            [
                (label, top, left)
                for label in range(len(self.class_names))
                for start, stop in ((0, _HELD_OUT_COLUMN), (_HELD_OUT_COLUMN, width))
                for top in range(0, height - crop_size + 1, stride)
                for left in range(start, stop - crop_size + 1, stride)
            ],
            dtype=np.int64,
        )  # (N, 3): photograph, top, left
        self.labels = self._corners[:, 0]
        self.sizes = np.full((len(self.labels), 2), crop_size, dtype=np.int64)

    @property
    def description(self) -> str:
        """The name and the number of the images, for reports."""
        return f"crops of scikit-learn's photographs: {len(self):,} images of {self.crop_size} pixels in 2 classes"

    def name(self, index: int) -> str:
        """The photograph and the upper left corner of the crop."""
        label, top, left = self._corners[index]
        return f"{self.class_names[label]}-{top:03d}-{left:03d}"

    def load(self, index: int) -> RgbImage:
        """(crop_size, crop_size, 3) uint8."""
        label, top, left = self._corners[index]
        return self._photographs[label][top : top + self.crop_size, left : left + self.crop_size].copy()

    def held_out(self, fraction: float) -> npt.NDArray[np.bool_]:
        """(N,) true for crops from the right part, whatever the fraction."""
        return self._corners[:, 2] >= _HELD_OUT_COLUMN
