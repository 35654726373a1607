"""Image files to 8-bit RGB pixels, whatever mode they were stored in."""

import os
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB

_BACKGROUND = "white"  # what a page shows behind a transparent logo; dropping alpha would reveal arbitrary colours
_SIXTEEN_BITS = 65535


def decode_image(file: str | os.PathLike[str] | BinaryIO) -> Pixels:
    """Read a whole image: turned upright by its EXIF orientation, the first frame of an animation.

    Args:
        file: a path, or the encoded bytes as an open file.

    Returns:
        (H, W, 3) uint8 RGB, as `to_rgb` describes.

    Raises:
        OSError, ValueError, SyntaxError: the file is not an image or is damaged; Pillow has more exceptions than
            these for damaged files, so a caller that must survive them all catches `Exception`.
    """
    with Image.open(file) as image:
        return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Pixels:
    """Show any Pillow image as 8-bit RGB.

    - Transparency (RGBA, LA, transparent palettes and colours) is laid over white.
    - 16-bit grey ("I;16" and its relatives, and "I", in which Pillow holds some 16-bit files) is scaled by 1/257, so
      that 65535 becomes 255. Pillow's own conversion clips at 255.
    - Floating-point grey ("F") is read as [0, 1] where no value is greater than 1, else as [0, 255].
    - The other modes ("1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB") are converted by Pillow. Embedded ICC profiles are
      not applied, as everywhere in the field.

    Returns:
        (H, W, 3) uint8, a writable copy.

    Raises:
        ValueError: integer or floating-point pixels lie outside the ranges above, so that nobody can know their white.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_to_rgb(np.asarray(image), white=_SIXTEEN_BITS)
    if image.mode == "F":
        values = np.asarray(image)
        return _grey_to_rgb(values, white=1 if values.max(initial=0) <= 1 else 255)
    if image.has_transparency_data:
        opaque = image.convert("LA") if image.mode == "La" else image  # "La" is premultiplied and converts to LA only
        image = Image.alpha_composite(Image.new("RGBA", image.size, _BACKGROUND), opaque.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _grey_to_rgb(values: npt.NDArray[np.generic], white: int) -> Pixels:
    """Grey values 0..white to 0..255, rounded to the nearest, in three equal channels."""
    grey = values.astype(np.float64)
    if not (grey.min() >= 0 and grey.max() <= white):  # also refuses NaN
        raise ValueError(
            f"grey values from {grey.min():g} to {grey.max():g}, which fit neither 8 nor 16 bits nor [0, 1]"
        )
    return np.repeat(np.round(grey * (255 / white)).astype(np.uint8)[..., None], 3, axis=-1)
