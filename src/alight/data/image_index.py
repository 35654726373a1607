"""Which files of a folder are images that really decode, and how large they are: looked at once, remembered after.

A damaged file found at step 40,000 costs a night, so every file is decoded completely before training. What
decodes is remembered in a cache, and looked at again only when the file's size or modification time has changed.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from PIL import UnidentifiedImageError
from tqdm.auto import tqdm

from alight.data.decode import decode_image
from alight.runtime.errors import InputError

IMAGE_EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .tga .jp2 .avif".split()
)
_LITTER = frozenset({"__MACOSX"})  # what archivers leave behind
_FORMAT = 1
_FILES_PER_TASK = 64
_SECONDS_BEFORE_PROGRESS_BAR = 2.0

logger = logging.getLogger(__name__)


class SkippedImage(NamedTuple):
    """A file with the name of an image that cannot be used.

    Attributes:
        path: the file.
        reason: what decoding it said.
    """

    path: str
    reason: str


class ImageRecord(NamedTuple):
    """A file that decodes.

    Attributes:
        name: path relative to the folder, with forward slashes.
        file_size: in bytes.
        modified: time of the last modification in nanoseconds.
        height: of the decoded, upright image in pixels.
        width: likewise.
    """

    name: str
    file_size: int
    modified: int
    height: int
    width: int


class ImageIndex(NamedTuple):
    """What `index_images` found.

    Attributes:
        images: the files that decode, sorted by name.
        skipped: the files that do not.
    """

    images: tuple[ImageRecord, ...]
    skipped: tuple[SkippedImage, ...]


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


def index_images(folder: str | os.PathLike[str], names: Sequence[str] | None = None) -> ImageIndex:
    """Decode every image of a folder, unless it was done before, and say which can be used.

    A progress bar appears when this takes long. An interrupted run keeps what it has reached. The cache lies in
    `cache_folder()`; where that cannot be written, everything works and is looked at again next time.

    Args:
        folder: the folder.
        names: the files in it that are looked at; None = those of `list_images`.

    Raises:
        InputError: the folder cannot be listed.
    """
    folder = Path(folder)
    names = list_images(folder) if names is None else names
    cache_file = cache_folder() / "image-index" / f"{sha256(os.fsencode(folder.resolve())).hexdigest()[:32]}.json"
    cached = _read_cache(cache_file)
    known = {name: cached[name] for name in names if name in cached}
    skipped: list[SkippedImage] = []

    def examine_all(part: Sequence[str]) -> list[ImageRecord | SkippedImage]:
        return [_examine(folder, name, known.get(name)) for name in part]

    parts = [names[start : start + _FILES_PER_TASK] for start in range(0, len(names), _FILES_PER_TASK)]
    progress = tqdm(total=len(names), desc="checking images", unit="image", delay=_SECONDS_BEFORE_PROGRESS_BAR)
    pool = ThreadPoolExecutor()  # decoders release the interpreter lock
    try:
        for part, verdicts in zip(parts, pool.map(examine_all, parts), strict=True):
            for name, verdict in zip(part, verdicts, strict=True):
                if isinstance(verdict, ImageRecord):
                    known[name] = verdict
                else:
                    known.pop(name, None)
                    skipped.append(verdict)
            progress.update(len(part))
    finally:
        pool.shutdown(cancel_futures=True)
        progress.close()
        if known != cached:
            _write_cache(cache_file, folder, known.values())
    return ImageIndex(images=tuple(known[name] for name in names if name in known), skipped=tuple(skipped))


def cache_folder() -> Path:
    """Where to keep what can be computed again: `$ALIGHT_CACHE`, `$XDG_CACHE_HOME/alight` or `~/.cache/alight`."""
    if chosen := os.environ.get("ALIGHT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "alight"


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
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS:
                yield prefix + entry.name


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name in _LITTER


def _examine(folder: Path, name: str, known: ImageRecord | None) -> ImageRecord | SkippedImage:
    """Decode one file and drop the pixels; or take the known record if the file has not changed."""
    path = folder / name
    try:
        status = path.stat()
        if known is not None and (known.file_size, known.modified) == (status.st_size, status.st_mtime_ns):
            return known
        height, width = decode_image(path).shape[:2]
    except MemoryError:
        raise
    except Exception as error:  # on damaged files Pillow's decoders raise nearly everything, and each is a verdict
        return SkippedImage(str(path), _reason(error))
    return ImageRecord(name, status.st_size, status.st_mtime_ns, height, width)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow knows"  # its own words repeat the path
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _read_cache(cache_file: Path) -> dict[str, ImageRecord]:
    """The files that decoded last time. The others are not kept: they are few, fail fast, and may have been mended."""
    try:
        cache = json.loads(cache_file.read_text())
        records = (ImageRecord(*fields) for fields in cache["files"]) if cache["format"] == _FORMAT else ()
        return {record.name: record for record in records}
    except (OSError, ValueError, TypeError, KeyError):  # absent, unreadable or damaged: it is only a cache
        return {}


def _write_cache(cache_file: Path, folder: Path, records: Iterable[ImageRecord]) -> None:
    cache = {"format": _FORMAT, "folder": str(folder.resolve()), "files": list(records)}
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_file.parent) as scratch:
            partial = Path(scratch) / cache_file.name
            partial.write_text(json.dumps(cache))
            os.replace(partial, cache_file)
    except OSError as error:
        logger.debug("the image index is not kept: %s", error)
