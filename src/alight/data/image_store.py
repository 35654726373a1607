"""Stores of encoded images: a common interface to files, archives and tables.

A store returns bytes by position; `index_images` finds out which of them can be decoded.
"""

import os
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alight.runtime.errors import InputError
from alight.runtime.reading import read_bytes

IMAGE_EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .avif".split()
)
# of archivers, storage devices and file systems
_IGNORED = frozenset({"__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"})
_LARGEST_IMAGE = 512 * 2**20  # bytes of an encoded image; Pillow refuses what has more than 179 million pixels
_LONGEST_PATH = 4096  # bytes; no system opens a longer one


class ImageStore(ABC):
    """Encoded images in one place, by position; cheap to open, and to send to another process.

    Attributes:
        place: the user's name of the place, for messages.
        key: the same independent of the working directory; identifies the cached index.
    """

    place: str
    key: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, position: int) -> str:
        """The name of the image in reports. Unique in the store, and stable."""

    @abstractmethod
    def location(self, position: int) -> str:
        """The place of the image, for messages."""

    @abstractmethod
    def stamp(self, position: int) -> str:
        """A text that changes whenever the bytes may have changed; found without reading them.

        Raises:
            OSError: the image is not there.
        """

    @abstractmethod
    def read(self, position: int) -> bytes:
        """The encoded image.

        Raises:
            OSError, ValueError: the image is missing, or has changed.
        """


class FileStore(ImageStore):
    """Image files below one folder."""

    def __init__(self, place: Path, folder: Path, names: Sequence[str]) -> None:
        self.place, self.key = str(place), str(place.resolve())
        self.folder = folder
        # One array instead of a list of strings: worker processes share it without copying.
        self._names = encoded_names(names, str(place))

    def __len__(self) -> int:
        return len(self._names)

    def name(self, position: int) -> str:
        """The path relative to the folder, with forward slashes."""
        return os.fsdecode(self._names[position])

    def location(self, position: int) -> str:
        """The path."""
        return os.path.join(self.folder, self.name(position))

    def stamp(self, position: int) -> str:
        """Size and time of the last modification.

        Raises:
            OSError, ValueError: the file is not there, not a regular file, or too large for an image.
        """
        return image_stamp(self.location(position))

    def read(self, position: int) -> bytes:
        """The whole file."""
        return read_image(self.location(position))


def file_stamp(file: str | os.PathLike[str] | int) -> str:
    """Size in bytes and time of the last modification in nanoseconds, of a path or of an open file's number."""
    status = os.stat(file)
    return f"{status.st_size}-{status.st_mtime_ns}"


def image_stamp(file: str | os.PathLike[str]) -> str:
    """As `file_stamp`, of an image in a regular file.

    Raises:
        OSError, ValueError: the file is not there, not a regular file, or too large for an image.
    """
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    require_image_size(status.st_size)
    return f"{status.st_size}-{status.st_mtime_ns}"


def read_image(file: str | os.PathLike[str]) -> bytes:
    """The content of an image file.

    Raises:
        OSError, ValueError: as `image_stamp`.
    """
    image_stamp(file)  # its messages are shorter
    return read_bytes(Path(file), _LARGEST_IMAGE)


def require_image_size(size: int) -> None:
    """Refuse sizes above the limit.

    Raises:
        ValueError: the image has more than 512 MiB.
    """
    if size > _LARGEST_IMAGE:
        raise ValueError(f"{size:,} bytes, more than the {_LARGEST_IMAGE:,} that an image may have")


def encoded_names(names: Sequence[str], place: str) -> npt.NDArray[np.bytes_]:
    """Names as one array of bytes, in the encoding of the file system.

    Raises:
        InputError: a name is too long for a file, or not Unicode.
    """
    encoded = []
    for name in names:
        try:
            encoded.append(os.fsencode(name))
        except UnicodeEncodeError as error:
            raise InputError(
                f"{place} names {ascii(name):.100}, which is not a valid file name. Correct the name."
            ) from error
        if len(encoded[-1]) > _LONGEST_PATH:
            raise InputError(
                f"{place} names a file with {len(name):,} characters ({name:.40}...), more than a path can have. "
                "Correct the name."
            )
    return np.array(encoded, dtype=np.bytes_)


def list_images(folder: Path) -> list[str]:
    """Names of all image files below a folder, relative to it, sorted, with forward slashes.

    Extensions may have upper or lower case, hidden files and folders are ignored, and links are followed.

    Raises:
        InputError: the folder, or one below it, cannot be listed.
    """
    return [name for name in _list_files(folder) if is_image_name(name)]


def count_other_files(folder: Path) -> dict[str, int]:
    """Extension -> number of the files below a folder that are not named as images, the most frequent first.

    Raises:
        InputError: the folder, or one below it, cannot be listed.
    """
    others = (name for name in _list_files(folder) if not is_image_name(name))
    extensions = Counter(os.path.splitext(name)[1].lower() or "without extension" for name in others)
    return dict(extensions.most_common())


def _list_files(folder: Path) -> list[str]:
    """Names of all files below a folder that are not ignored, sorted."""
    try:
        return sorted(_walk(folder, prefix="", ancestors=()))
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be listed ({error.strerror}); check its name and permissions."
        ) from None


def first_special(folder: Path) -> Path | None:
    """A FIFO, device or socket below a folder, which could block a reader for ever; None if there is none."""
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                mode = os.stat(os.path.join(root, name)).st_mode
            except OSError:  # a broken link does not block
                continue
            if not stat.S_ISREG(mode):
                return Path(root, name)
    return None


def visible_folders(folder: Path) -> list[str]:
    """Names of the subfolders of a folder that are not hidden, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_ignored(entry.name))


def is_image_name(name: str) -> bool:
    """Tell if the extension is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _walk(folder: Path, prefix: str, ancestors: tuple[str, ...]) -> Iterator[str]:
    here = os.path.realpath(folder)
    if here in ancestors:  # a link to a parent would never end
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_ignored(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*ancestors, here))
            else:
                yield prefix + entry.name


def is_ignored(name: str) -> bool:
    """Tell if a file or folder of that name is hidden or created by the system, so neither an image nor a class."""
    return name.startswith(".") or name in _IGNORED
