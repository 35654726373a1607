"""Square crops and mirror images, as ADM (Dhariwal and Nichol, arXiv 2105.05233) prepares its training images.

Inputs and outputs are (H, W, 3) uint8. Shrinking takes two steps: halving with a box filter while the image is at
least twice too large, which is cheap and free of aliasing, then one bicubic resize.
"""

import math

import numpy as np
from PIL import Image

from alight.data.decode import RgbImage
from alight.runtime.errors import InputError


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
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * short_side:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = short_side / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _square(image: RgbImage, top: int, left: int, size: int) -> RgbImage:
    return image[top : top + size, left : left + size].copy()
