"""Pictures for the browser: PNG files in memory, each under an unguessable address."""

import base64
import io
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from PIL import Image

from alight.data.provenance import png_text
from alight.runtime.pixels import PixelArray

PICTURES = "pictures"  # under this path, relative to the page: it may be mounted anywhere
STORED_BYTES = 256 * 2**20
PREVIEW_SIDE = 128


class Stored(NamedTuple):
    """A file for download: its name and its bytes."""

    filename: str
    content: bytes


class PictureStore:
    """The newest pictures of all visitors, up to a number of bytes; older ones are dropped."""

    def __init__(self, capacity: int = STORED_BYTES) -> None:
        self._capacity, self._size = capacity, 0
        self._files: OrderedDict[str, Stored] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, filename: str, content: bytes) -> str:
        """Store a file; returns its address relative to the page."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._files[key] = Stored(filename, content)
            self._size += len(content)
            while self._size > self._capacity and len(self._files) > 1:
                _, oldest = self._files.popitem(last=False)
                self._size -= len(oldest.content)
        return f"{PICTURES}/{key}/{filename}"

    def get(self, key: str) -> Stored | None:
        """The file of a key, or None if it was dropped."""
        with self._lock:
            return self._files.get(key)

    @property
    def size(self) -> int:
        """Bytes in use."""
        return self._size


def png_bytes(picture: PixelArray, settings: Mapping[str, object] | None = None) -> bytes:
    """A PNG file with the image's settings in its text chunks."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", pnginfo=png_text(settings or {}))
    return buffer.getvalue()


def preview_address(picture: PixelArray) -> str:
    """A small preview as a data URL."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    image.save(buffer, format="webp", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
