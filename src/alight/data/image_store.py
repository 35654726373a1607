"""Where encoded images lie: the least that an index and a source must know about files, archives and tables.

A store gives bytes by position. What the bytes show, and which of them can be used at all, is found by `index_images`.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from alight.runtime.errors import InputError

IMAGE_EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .avif".split()
)
_LITTER = frozenset({"__MACOSX"})  # what archivers leave behind


class ImageStore(ABC):
    """Encoded images in one place, by position; cheap to open, and to send to another process.

    Attributes:
        place: what the user gave, for messages.
        key: the same without dependence on where the process stands; the index is kept under it.
    """

    place: str
    key: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, position: int) -> str:
        """What a report calls the image. Unique in the store, and stable."""

    @abstractmethod
    def location(self, position: int) -> str:
        """Where a person finds the image, for messages."""

    @abstractmethod
    def stamp(self, position: int) -> str:
        """Changes whenever the bytes may have changed; found without reading them.

        Raises:
            OSError: the image is not there.
        """

    @abstractmethod
    def read(self, position: int) -> bytes:
        """The encoded image.

        Raises:
            OSError, ValueError: the image is not there, or no longer what it was.
        """


class ImageFiles(ImageStore):
    """Image files, each found from one folder.

    Args:
        place: the folder, or the list that names the files.
        folder: what the names are relative to.
        names: paths with forward slashes.
    """

    def __init__(self, place: Path, folder: Path, names: Sequence[str]) -> None:
        self.place, self.key = str(place), str(place.resolve())
        self.folder = folder
        # One array instead of a list of strings: worker processes share it without copying.
        self._names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, position: int) -> str:
        """The path relative to the folder, with forward slashes."""
        return os.fsdecode(self._names[position])

    def location(self, position: int) -> str:
        """The path."""
        return os.path.join(self.folder, self.name(position))

    def stamp(self, position: int) -> str:
        """Size and time of the last modification."""
        return file_stamp(self.location(position))

    def read(self, position: int) -> bytes:
        """The whole file."""
        with open(self.location(position), "rb") as file:
            return file.read()


def file_stamp(file: str | os.PathLike[str] | int) -> str:
    """Size in bytes and time of the last modification in nanoseconds, of a path or of an open file's number."""
    status = os.stat(file)
    return f"{status.st_size}-{status.st_mtime_ns}"


def list_images(folder: Path) -> list[str]:
    """Names of all image files below a folder, relative to it, sorted, with forward slashes.

    Extensions count in upper or lower case, hidden files and folders do not count, and links are followed.

    Raises:
        InputError: the folder, or one below it, cannot be listed.
    """
    try:
        return sorted(_walk(folder, prefix="", ancestors=()))
    except OSError as error:
        raise InputError(f"{error.filename} cannot be listed ({error.strerror}); check its name and rights.") from None


def visible_folders(folder: Path) -> list[str]:
    """Names of the subfolders of a folder that are not hidden, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not _is_ignored(entry.name))


def is_image_name(name: str) -> bool:
    """Whether the extension is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _walk(folder: Path, prefix: str, ancestors: tuple[str, ...]) -> Iterator[str]:
    here = os.path.realpath(folder)
    if here in ancestors:  # a link that leads back up would go round for ever
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_ignored(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*ancestors, here))
            elif is_image_name(entry.name):
                yield prefix + entry.name


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in _LITTER
