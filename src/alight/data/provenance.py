"""Settings of generated images inside the file itself: text chunks of a PNG, an entry of an npz archive.

Images are copied out of their folders, and their settings should go with them. The text depends only on the settings,
not on the time, so that the same image is the same file.
"""

import json
import zipfile
from collections.abc import Mapping
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from alight.runtime.npz import array_names, read_array

SOFTWARE = "Software"  # a keyword of the PNG specification
NPZ_ENTRY = "provenance"
_SETTINGS_LIMIT = 2**28  # bytes; a million labels and seeds take a third of it
_STRUCTURED = ("sampling",)  # settings stored as JSON


def software() -> dict[str, str]:
    """The name and version of this package."""
    return {SOFTWARE: f"alight {metadata.version('alight')}"}


def png_text(settings: Mapping[str, Any]) -> PngInfo:
    """Settings as text chunks, one each; structured ones as JSON."""
    chunks = PngInfo()
    for name, value in settings.items():
        text = json.dumps(value) if name in _STRUCTURED else str(value)
        # tEXt chunks hold only Latin-1, and class names may be in any script
        chunks.add_itxt(name, text) if _beyond_latin_1(text) else chunks.add_text(name, text)
    return chunks


def read_png(path: Path) -> dict[str, Any]:
    """Read the settings in a PNG file, or any other text of a picture from elsewhere.

    Raises:
        OSError: it is not an image, or damaged.
    """
    with Image.open(path) as image:
        image.load()  # text may follow the pixels
        chunks = {str(name): str(value) for name, value in image.info.items() if isinstance(value, str)}
    return {name: _structured(value) if name in _STRUCTURED else value for name, value in chunks.items()}


def write_npz_entry(archive: zipfile.ZipFile, settings: Mapping[str, Any]) -> None:
    """Add settings to an open npz archive: `json.loads(str(numpy.load(file)["provenance"]))` reads them."""
    array = BytesIO()
    np.lib.format.write_array(array, np.array(json.dumps(settings)), allow_pickle=False)
    archive.writestr(npz_member(NPZ_ENTRY), array.getvalue())


def read_npz_entry(path: Path) -> dict[str, Any]:
    """The settings in an npz archive; none in one from elsewhere.

    Raises:
        InputError: the archive is damaged, or its settings are too long.
    """
    if NPZ_ENTRY not in array_names(path):
        return {}
    settings = _structured(str(read_array(path, NPZ_ENTRY, _SETTINGS_LIMIT, ())))
    return settings if isinstance(settings, dict) else {}


def npz_member(name: str) -> zipfile.ZipInfo:
    """An entry of an npz archive without the time of day that the zip format would put there."""
    return zipfile.ZipInfo(f"{name}.npy")


def _beyond_latin_1(text: str) -> bool:
    return any(ord(character) > 255 for character in text)


def _structured(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # another program's chunk of the same name
        return text
