"""An index of the stored images that decode, with their sizes and hashes.

A damaged file found at step 40,000 costs a night, so every image is decoded completely before training. The index is
cached; an image is decoded again only when its file's size or modification time has changed.
"""

from collections.abc import Sequence
from contextlib import closing
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import UnidentifiedImageError

from alight.data.cache import cache_file, one_process_at_a_time, read_cache, write_cache, write_note
from alight.data.decode import decode_with_facts
from alight.data.image_store import ImageStore
from alight.runtime.background import mapped_in_threads
from alight.runtime.console import progress_bar
from alight.runtime.errors import one_line

_FORMAT = "image-index-4"
_HASH_DIGITS = 32  # 128 bits, without collisions in practice
_SECONDS_BEFORE_PROGRESS_BAR = 2.0


class SkippedImage(NamedTuple):
    """A file with the name of an image that cannot be used.

    Attributes:
        path: of the file.
        reason: the error when decoding it.
    """

    path: str
    reason: str


class ImageRecord(NamedTuple):
    """An image that decodes.

    Attributes:
        name: its name in the store.
        stamp: its stamp in the store; with another stamp the image must be decoded again.
        height: of the decoded, upright image in pixels.
        width: likewise.
        hash: SHA-256 of the encoded bytes, the first 32 hexadecimal digits.
        peak: the largest value of an image with 16 bits per channel; 0 for others.
        mode: Pillow's name of the stored mode.
        transparent: some pixels are at least partly transparent.
    """

    name: str
    stamp: str
    height: int
    width: int
    hash: str
    peak: int
    mode: str
    transparent: bool


class ImageIndex(NamedTuple):
    """The result of `index_images`.

    Attributes:
        positions: of the images that decode, in the order of the store.
        images: the images at these positions.
        skipped: the others.
        skipped_list: a text file with one line per skipped image; None if there are none or it cannot be written.
    """

    positions: tuple[int, ...]
    images: tuple[ImageRecord, ...]
    skipped: tuple[SkippedImage, ...]
    skipped_list: Path | None


def index_images(store: ImageStore) -> ImageIndex:
    """Decode every image of a store that is not in the cache, and list those that can be used.

    A progress bar appears when this takes long. An interrupted run keeps its progress. Of several processes one does
    the work. The cache is in `cache_folder()`; if that cannot be written, the images are decoded every time. Damaged
    images are tried every time: they are few, fail fast, and may have been replaced.
    """
    file = cache_file(_FORMAT, store.key)
    stamps = list(mapped_in_threads(lambda position: _stamp(store, position), range(len(store))))
    records = _unchanged(file, store, stamps)
    skipped: dict[int, SkippedImage] = {}
    if len(records) < len(stamps):
        with one_process_at_a_time(file):
            records = _unchanged(file, store, stamps)  # another process may have done it meanwhile
            skipped = _examine_rest(file, store, stamps, records)
    positions = sorted(records)
    damaged = tuple(skipped[position] for position in sorted(skipped))
    note = file.with_suffix(".skipped.txt")
    listed = write_note(note, [f"{path}: {reason}" for path, reason in damaged])
    return ImageIndex(
        tuple(positions), tuple(records[position] for position in positions), damaged, note if listed else None
    )


def _unchanged(file: Path, store: ImageStore, stamps: Sequence[str | SkippedImage]) -> dict[int, ImageRecord]:
    """The cached images that have not changed, by position."""
    cached = {record[0]: record for record in read_cache(file) or ()}
    found = ((position, cached.get(store.name(position))) for position in range(len(store)))
    return {position: ImageRecord(*record) for position, record in found if record and record[1] == stamps[position]}


def _examine_rest(
    file: Path, store: ImageStore, stamps: Sequence[str | SkippedImage], records: dict[int, ImageRecord]
) -> dict[int, SkippedImage]:
    """Decode the images that are not in `records`, add them to it, and return those that cannot be used."""
    rest = [position for position in range(len(store)) if position not in records]
    known = len(records)
    skipped = {}
    progress = progress_bar(total=len(rest), desc="checking images", unit="image", delay=_SECONDS_BEFORE_PROGRESS_BAR)
    try:
        examined = mapped_in_threads(lambda position: _examine(store, position, stamps[position]), rest)
        with closing(examined) as verdicts:
            for position, verdict in zip(rest, verdicts, strict=True):
                if isinstance(verdict, ImageRecord):
                    records[position] = verdict
                else:
                    skipped[position] = verdict
                progress.update()
    finally:
        progress.close()
        if len(records) > known:
            write_cache(file, list(records.values()))
    return skipped


def _stamp(store: ImageStore, position: int) -> str | SkippedImage:
    try:
        return store.stamp(position)
    except (OSError, ValueError) as error:  # ValueError: a listed name that is not a valid path
        return SkippedImage(store.location(position), _reason(error))


def _examine(store: ImageStore, position: int, stamp: str | SkippedImage) -> ImageRecord | SkippedImage:
    """Decode one image and drop the pixels."""
    if isinstance(stamp, SkippedImage):
        return stamp
    try:
        encoded = store.read(position)
        decoded = decode_with_facts(BytesIO(encoded))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        return SkippedImage(store.location(position), _reason(error))
    height, width = decoded.pixels.shape[:2]
    digest = sha256(encoded).hexdigest()[:_HASH_DIGITS]
    return ImageRecord(
        store.name(position), stamp, height, width, digest, decoded.peak, decoded.mode, decoded.transparent
    )


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow supports"  # Pillow's message repeats the path
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)
