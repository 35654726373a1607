"""Squares by cropping, as ADM (Dhariwal and Nichol, arXiv 2105.05233) prepares its training images, or by padding.

The mirror image is here, too.

Inputs and outputs are (H, W, 3) uint8. Shrinking takes two steps: halving with a box filter while the image is at
least twice too large, which is cheap and free of aliasing, then one bicubic resize.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from alight.data.decode import WHITE, RgbImage
from alight.options import Crop
from alight.runtime.errors import InputError

LARGEST_SCALED = 2**26  # pixels of a whole image before it is cropped; lines a few pixels wide would take gigabytes


def fixed_crop(image: RgbImage, size: int, crop: Crop, background: str = WHITE) -> RgbImage:
    """The square of an image without augmentation: padded for "pad", else its centre.

    Args:
        image: (H, W, 3) uint8. Smaller images are enlarged.
        size: side of the result in pixels.
        crop: as in a configuration.
        background: the colour of the borders.

    Returns:
        (size, size, 3) uint8.
    """
    return pad_to_square(image, size, background) if crop == "pad" else center_crop(image, size)


def scaled_sides(sizes: npt.NDArray[np.int64], crop: Crop) -> npt.NDArray[np.int64]:
    """The side of each image that is scaled to that of the square: the long one for "pad", else the short one.

    Args:
        sizes: (N, 2) heights and widths in pixels.
        crop: as in a configuration.

    Returns:
        (N,) pixels.
    """
    return sizes.max(axis=1) if crop == "pad" else sizes.min(axis=1)


def center_crop(image: RgbImage, size: int) -> RgbImage:
    """The central square of the image, scaled so that the short side fits: the crop of the published latents.

    Args:
        image: (H, W, 3) uint8. Smaller images are enlarged.
        size: side of the result in pixels.

    Returns:
        (size, size, 3) uint8.
    """
    resized = _resize_short_side(image, size)
    height, width = resized.shape[:2]
    return _square(resized, (height - size) // 2, (width - size) // 2, size)


def pad_to_square(image: RgbImage, size: int, background: str = WHITE) -> RgbImage:
    """The whole image, scaled so that the long side fits, in the middle of a square.

    Args:
        image: (H, W, 3) uint8. Smaller images are enlarged.
        size: side of the result in pixels.
        background: the colour of the borders, as Pillow names colours.

    Returns:
        (size, size, 3) uint8.
    """
    picture = _resize(Image.fromarray(image), size, max)
    square = Image.new("RGB", (size, size), background)
    square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return np.array(square)


def random_crop(
    image: RgbImage,
    size: int,
    generator: np.random.Generator,
    min_fraction: float = 0.8,
    max_fraction: float = 1.0,
) -> RgbImage:
    """A square at a random place, whose side is a random share of the image's short side.

    Args:
        image: (H, W, 3) uint8. Smaller images are enlarged.
        size: side of the result in pixels.
        generator: source of the scale and of the place.
        min_fraction: smallest side of the square, as a share of the image's short side.
        max_fraction: largest side of it, likewise.

    Returns:
        (size, size, 3) uint8.

    Raises:
        InputError: the fractions are not 0 < min_fraction <= max_fraction <= 1.
    """
    if not 0 < min_fraction <= max_fraction <= 1:
        raise InputError(
            f"A random crop needs 0 < min_fraction <= max_fraction <= 1, but got {min_fraction} and {max_fraction}."
        )
    short_side = generator.integers(math.ceil(size / max_fraction), math.ceil(size / min_fraction), endpoint=True)
    resized = _resize_short_side(image, int(short_side))
    top = generator.integers(0, resized.shape[0] - size, endpoint=True)
    left = generator.integers(0, resized.shape[1] - size, endpoint=True)
    return _square(resized, int(top), int(left), size)


def horizontal_flip(image: RgbImage) -> RgbImage:
    """The mirror image, (H, W, 3) uint8 and contiguous."""
    return np.ascontiguousarray(image[:, ::-1])


def _resize_short_side(image: RgbImage, short_side: int) -> RgbImage:
    return np.asarray(_resize(Image.fromarray(_without_ends(image, short_side)), short_side, min))


def _without_ends(image: RgbImage, short_side: int) -> RgbImage:
    """The middle of an image that would be too large once its short side is scaled; of others all."""
    shortest = min(image.shape[:2])
    longest = max(LARGEST_SCALED * shortest // short_side**2, shortest)
    top, left = (max(extent - longest, 0) // 2 for extent in image.shape[:2])
    return image[top : top + longest, left : left + longest]


def _resize(picture: Image.Image, side: int, chosen: Callable[[tuple[int, int]], int]) -> Image.Image:
    """Scale a picture so that the chosen one of its sides, the shorter or the longer, has the given length."""
    while chosen(picture.size) >= 2 * side:
        picture = picture.resize((max(picture.width // 2, 1), max(picture.height // 2, 1)), Image.Resampling.BOX)
    scale = side / chosen(picture.size)
    width, height = (max(round(extent * scale), 1) for extent in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _square(image: RgbImage, top: int, left: int, size: int) -> RgbImage:
    return image[top : top + size, left : left + size].copy()
