"""Decoding of image files of any mode to 8-bit RGB pixels."""

import os
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from alight.data.metadata import UPRIGHT, exif_orientation, without_metadata

RgbImage = npt.NDArray[np.uint8]  # (H, W, 3) RGB

WHITE = "white"  # behind transparent pixels, as on a web page; dropping alpha would reveal arbitrary colours
_OPAQUE, _TWELVE_BITS, _SIXTEEN_BITS = 255, 4095, 65535
_ORIENTATION_TAG = 0x0112
_UPRIGHT_BY = {  # EXIF orientation -> the operation that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodedImage(NamedTuple):
    """A decoded image and facts about the stored one.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright.
        peak: the largest value of an image with 16 bits per channel; 0 for every other. For colours, of which only the
            upper 8 bits are read, it is an upper bound.
        mode: Pillow's name of the stored mode, such as "RGB", "RGBA", "P" or "L".
        transparent: some pixels are at least partly transparent.
    """

    pixels: RgbImage
    peak: int
    mode: str
    transparent: bool


def decode_image(file: str | os.PathLike[str] | BinaryIO, background: str = WHITE) -> RgbImage:
    """Read an image, rotated by its EXIF orientation; the first frame of an animation.

    Other metadata is ignored, so damaged or large metadata does no harm.

    Args:
        file: the encoded image.
        background: the colour behind transparent pixels.

    Returns:
        (H, W, 3) uint8 RGB, as `to_rgb` describes.

    Raises:
        OSError, ValueError, SyntaxError: the file is not an image or is damaged; Pillow has more exceptions than
            these for damaged files, so catch `Exception` to handle all of them.
    """
    return decode_with_facts(file, background).pixels


def decode_with_facts(file: str | os.PathLike[str] | BinaryIO, background: str = WHITE) -> DecodedImage:
    """As `decode_image`, with facts about the stored image."""
    try:
        with Image.open(file) as image:
            return _decoded(image, background)
    except MemoryError:
        raise
    except Exception:
        with suppress(Exception):  # if the metadata was not the cause, raise the first error
            return _decoded_without_metadata(_content(file), background)
        raise


def _decoded_without_metadata(content: bytes, background: str) -> DecodedImage:
    bare, orientation = without_metadata(content) or (content, None)
    with Image.open(BytesIO(bare)) as image:
        if isinstance(image, TiffImageFile):  # its metadata is read after the pixels
            orientation = image.tag_v2.get(_ORIENTATION_TAG, UPRIGHT)
            image.load_end = lambda: None  # type: ignore[method-assign]
        return _decoded(image, background, orientation)


def _decoded(image: Image.Image, background: str, orientation: int | None = None) -> DecodedImage:
    layout = str(getattr(image, "tile", ""))  # names the stored layout; Pillow forgets it on loading
    image.load()
    orientation = _orientation(image) if orientation is None else orientation
    if orientation in _UPRIGHT_BY:
        image = image.transpose(_UPRIGHT_BY[orientation])
    mode, transparent = image.mode, False
    if image.has_transparency_data and not _is_deep(mode):
        image = _with_alpha(image)
        transparent = bool(np.asarray(image.getchannel("A")).min(initial=_OPAQUE) < _OPAQUE)
    pixels = to_rgb(image, _TWELVE_BITS if "I;12" in layout else _SIXTEEN_BITS, background)
    return DecodedImage(pixels, _peak(image, layout, pixels), mode, transparent)


def _peak(image: Image.Image, layout: str, pixels: RgbImage) -> int:
    if "I;12" in layout:
        return 0
    if image.mode == "I" or image.mode.startswith("I;16"):
        return int(np.asarray(image).max(initial=0))
    largest = int(pixels.max(initial=0)) if ";16" in layout else 0
    return 256 * largest + 255 if largest else 0


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; other entries are ignored."""
    exif = image.info.get("exif")
    if isinstance(exif, bytes) and (orientation := exif_orientation(exif)) != UPRIGHT:
        return orientation
    try:  # of TIFF, XMP and others
        value = image.getexif().get(_ORIENTATION_TAG, UPRIGHT)
        return int(value[0] if isinstance(value, bytes | tuple | list) else value)
    except Exception:  # Pillow's parser raises many types for odd entries
        return UPRIGHT


def _content(file: str | os.PathLike[str] | BinaryIO) -> bytes:
    if isinstance(file, str | os.PathLike):
        return Path(file).read_bytes()
    file.seek(0)
    return file.read()


def to_rgb(image: Image.Image, white: int = _SIXTEEN_BITS, background: str = WHITE) -> RgbImage:
    """Convert any Pillow image to 8-bit RGB.

    - Transparency (RGBA, LA, transparent palettes and colours) is composited over `background`.
    - 16-bit grey ("I;16" and its relatives, and "I", in which Pillow holds some 16-bit files) is scaled by 255/white:
      65535 becomes 255. Pillow's own conversion clips at 255. Files declared as 12-bit have white at 4095.
    - Floating-point grey ("F") is read as [0, 1] if no value is greater than 1, else as [0, 255].
    - The other modes ("1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB") are converted by Pillow. Embedded ICC profiles are
      not applied, as is usual in the field.

    Args:
        image: decoded.
        white: the value of 16-bit grey that is shown as white.
        background: the colour behind transparent pixels, as Pillow names colours.

    Returns:
        (H, W, 3) uint8, a writable copy.

    Raises:
        ValueError: integer or floating-point pixels are outside the ranges above, so their white is unknown.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_to_rgb(np.asarray(image), white=white)
    if image.mode == "F":
        values = np.asarray(image)
        return _grey_to_rgb(values, white=1 if values.max(initial=0) <= 1 else 255)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), _with_alpha(image))
    return np.array(image.convert("RGB"))


def _is_deep(mode: str) -> bool:
    """Tell if the pixels are more than 8 bits of grey; transparency of these is not read."""
    return mode in ("I", "F") or mode.startswith("I;16")


def _with_alpha(image: Image.Image) -> Image.Image:
    """The image as RGBA."""
    straight = image.convert("LA") if image.mode == "La" else image  # "La" is premultiplied and converts to LA only
    return straight.convert("RGBA")


def _grey_to_rgb(values: npt.NDArray[np.generic], white: int) -> RgbImage:
    """Grey values 0..white to 0..255, rounded to the nearest, in three equal channels."""
    grey = values.astype(np.float64)
    if not (grey.min() >= 0 and grey.max() <= white):  # also refuses NaN
        raise ValueError(
            f"grey values from {grey.min():g} to {grey.max():g}, which fit neither 8 nor 16 bits nor [0, 1]"
        )
    return np.repeat(np.round(grey * (255 / white)).astype(np.uint8)[..., None], 3, axis=-1)
