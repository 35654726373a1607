"""Decode uploaded files: every file becomes a small square image or an explained error."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from alight.data.crops import center_crop
from alight.data.decode import decode_image
from alight.runtime.errors import InputError

FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif"}
SUFFIXES = [*FORMATS.values(), ".jpeg", ".tiff"]
MAX_PIXELS = 50_000_000  # decoded; a file of a few kilobytes can claim to be an image of gigabytes


def read_uploads(files: Sequence[str] | None, size: int, most: int) -> npt.NDArray[np.uint8]:
    """The images in files, each as the central square at the given size.

    Args:
        files: their paths.
        size: side of the squares in pixels; smaller images are enlarged.
        most: how many are allowed.

    Returns:
        (N, size, size, 3) uint8.

    Raises:
        InputError: there are none or too many, or one was not uploaded, is too large, damaged, or not an image.
    """
    if not files:
        raise InputError("Choose an image first.")
    if len(files) > most:
        raise InputError(f"{len(files)} images are too many here; give at most {most} at once.")
    return np.stack([center_crop(_read(uploaded(file)), size) for file in files])


def uploaded(file: str) -> Path:
    """The path of an uploaded file.

    Raises:
        InputError: the path is not that of an uploaded file, or the file has been deleted.
    """
    path = Path(file)
    folder = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    try:
        inside = folder in path.resolve(strict=True).parents and not path.is_symlink()
        if inside and stat.S_ISREG(path.stat().st_mode):
            return path
    except (OSError, ValueError):  # ValueError: a NUL in the path
        pass
    raise InputError(f"{path.name!r:.80} is not among the uploaded files. Choose it again.")


def _read(file: Path) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(file, formats=list(FORMATS)) as image:  # reads only the header
            width, height = image.size
        if width * height <= MAX_PIXELS:
            return decode_image(file)
    except FileNotFoundError as error:
        raise InputError(f"{file.name} is no longer on the server. Choose it again.") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{file.name} is far too large. Send a smaller image.") from error
    except Exception as error:  # Pillow raises many types for damaged files
        known = ", ".join(FORMATS)
        raise InputError(f"{file.name} is damaged or not a supported image. Supported are {known}.") from error
    raise InputError(
        f"{file.name} has {width} x {height} pixels; at most {MAX_PIXELS // 1_000_000} million are allowed. "
        "Scale it down first."
    )
