"""The content of a tar file of images, read once from its headers and cached.

A sample is all members with the same path up to the first dot of the file name: `train/0001.jpg`, `train/0001.cls`.
The offset of each image allows random access by one seek, so shuffling is as exact as for files. Tar files inside the
tar file, as in ImageNet's own, are read in place.
"""

import json
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from alight.data.cache import cache_file, one_process_at_a_time, read_cache, write_cache
from alight.data.class_labels import RawLabel
from alight.data.columns import label_columns, wanted_column
from alight.data.image_store import file_stamp, is_ignored, is_image_name
from alight.runtime.errors import InputError
from alight.runtime.reading import require_regular

_FORMAT = "tar-index-2"
_LARGEST_LABEL = 1 << 20  # bytes of a .cls or .json
_MOST_KEYS = 50  # kept for messages
_ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")  # without random access


class _Member(NamedTuple):
    """A file in a tar file; the offset is that of its first byte, and the size in bytes."""

    name: str
    offset: int
    size: int
    inner: str = ""  # name of the inner tar file that contains it


class TarImage(NamedTuple):
    """An image in a tar file.

    Attributes:
        name: of the member, after that of the inner tar file if there is one.
        offset: of its first byte in the tar file.
        size: in bytes.
        label: from the `.cls` or `.json` of the same sample; None = no readable label.
        inner: the name of the inner tar file that contains it, or empty.
    """

    name: str
    offset: int
    size: int
    label: RawLabel
    inner: str


class TarContents(NamedTuple):
    """The findings of `index_tar`.

    Attributes:
        stamp: of the file that was read.
        images: in the order of the file.
        keys: of the samples' `.json`, some of them.
        extensions: of members that are not images, some of them.
        special: names of images that are links, devices or the like, and of archives that are not read.
    """

    stamp: str
    images: list[TarImage]
    keys: list[str]
    extensions: list[str]
    special: list[str]


class TarColumns(NamedTuple):
    """The members of a sample that hold the image and the label.

    Attributes:
        image: extension of the image, such as `input.png`; None = the one member that is an image.
        label: key in the sample's `.json`; None = its `.cls`, else the key `label`, `class` or the like.
    """

    image: str | None = None
    label: str | None = None


def index_tar(path: Path, columns: TarColumns) -> TarContents:
    """List the images of a tar file, in its order.

    Hidden members and those in hidden folders are ignored.

    Raises:
        InputError: the file is not a tar, or is compressed, damaged or truncated; or a sample has several images.
    """
    require_regular(path)
    try:
        stamp = file_stamp(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its name and permissions.") from error
    file = cache_file(_FORMAT, str(path.resolve()), repr(columns))
    contents = _remembered(file, stamp)
    if contents is None:
        with one_process_at_a_time(file):
            contents = _remembered(file, stamp)  # another process may have read it meanwhile
            if contents is None:
                contents = _read_samples(path, stamp, columns)
                write_cache(file, contents)
    return contents


def _remembered(file: Path, stamp: str) -> TarContents | None:
    cached = read_cache(file)
    if not cached or cached[0] != stamp:
        return None
    return TarContents(stamp, [TarImage(*image) for image in cached[1]], *cached[2:])


def _read_samples(path: Path, stamp: str, columns: TarColumns) -> TarContents:
    members, special = _members(path)
    samples: dict[str, dict[str, _Member]] = {}  # place and path up to the first dot -> extension -> member
    for member in members:
        folder, _, file_name = member.name.rpartition("/")
        stem, _, extension = file_name.partition(".")
        # the last one of a name counts, as in unpacking
        samples.setdefault(f"{member.inner}\0{folder}/{stem}", {})[extension.lower()] = member
    contents = TarContents(stamp, [], [], [], special)
    keys: dict[str, None] = {}  # in order
    extensions: dict[str, None] = {}
    with path.open("rb") as file:
        for sample in samples.values():
            image = _image_of(sample, path, columns)
            if image is None:
                continue
            label, found = _label_of(sample, file, columns)
            name = f"{image.inner}/{image.name}" if image.inner else image.name
            contents.images.append(TarImage(name, image.offset, image.size, label, image.inner))
            if len(keys) < _MOST_KEYS:
                keys |= dict.fromkeys(found)
            if len(extensions) < _MOST_KEYS:
                extensions |= dict.fromkeys(part for part in sample if not is_image_name(f"image.{part}"))
    return contents._replace(keys=list(keys), extensions=list(extensions))


def _members(path: Path) -> tuple[list[_Member], list[str]]:
    """All files in a tar, and the names of those that have names of images but cannot be read as one.

    Raises:
        InputError: the tar cannot be read to its end.
    """
    special: list[str] = []
    try:
        with path.open("rb") as file:
            return list(_walk(file, _Member("", 0, path.stat().st_size), special)), special
    except Exception as error:  # tarfile raises many types for damaged files
        raise InputError(
            f"{path} cannot be read to its end as a tar file ({error}); if it is truncated or damaged, download it "
            "again, and if it is compressed, decompress it (compression hardly shrinks images)."
        ) from error


def _walk(file: BinaryIO, part: _Member, special: list[str]) -> Iterator[_Member]:
    """The files of a tar file within an open file, and those of the tar files inside it."""
    end = part.offset + part.size
    inner_tars = []
    file.seek(part.offset)
    with tarfile.open(fileobj=file, mode="r:") as archive:
        member = archive.next()
        while member is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep every one
            if member.size < 0:
                raise tarfile.ReadError("a member of negative size")
            name = member.name.removeprefix("./")
            if not _is_hidden(name):
                found = _Member(name, member.offset_data, member.size, part.name)
                if not member.isreg() or member.issparse():
                    special += [name] if is_image_name(name) else []
                elif name.lower().endswith(".tar"):
                    inner_tars.append(found)
                else:
                    special += [name] if name.lower().endswith(_ARCHIVES) else []
                    yield found
            if archive.offset > end:
                raise tarfile.ReadError(f"{name} is cut off")
            member = archive.next() if archive.offset < end else None
        # tarfile takes a damaged header for the end of the file. At a real end are zeros, or nothing.
        file.seek(archive.offset)
        if any(file.read(max(0, min(tarfile.BLOCKSIZE, end - archive.offset)))):
            raise tarfile.ReadError(f"a damaged header at byte {archive.offset:,}")
    for inner in inner_tars:
        if part.name:
            raise tarfile.ReadError(f"{part.name} inside it holds tar files again, such as {inner.name}; unpack it")
        yield from _walk(file, inner, special)


def _is_hidden(name: str) -> bool:
    return any(is_ignored(part) for part in name.split("/") if part not in (".", ".."))


def _image_of(sample: dict[str, _Member], path: Path, columns: TarColumns) -> _Member | None:
    if columns.image is not None:
        return sample.get(columns.image.lower().removeprefix("."))
    images = [extension for extension in sample if is_image_name(f"image.{extension}")]
    if len(images) > 1:
        raise InputError(
            f"{path} holds several images of one sample, such as {sample[images[0]].name} and "
            f"{sample[images[1]].name}; choose one by its extension, such as image_column={images[0]}."
        )
    return sample[images[0]] if images else None


def _label_of(sample: dict[str, _Member], file: BinaryIO, columns: TarColumns) -> tuple[RawLabel, tuple[str, ...]]:
    """The sample's label, None if there is none that can be read; and the keys of its `.json`."""
    try:
        if "cls" in sample and columns.label is None:
            return _read_member(file, sample["cls"]).decode().strip(), ()
        if "json" in sample:
            values = json.loads(_read_member(file, sample["json"]))
            keys = tuple(values) if isinstance(values, dict) else ()
            key = _label_key(keys, columns.label)
            label = None if key is None else values[key]
            return label if isinstance(label, int | float | str) and not isinstance(label, bool) else None, keys
    except (ValueError, RecursionError):  # not Unicode, not JSON
        pass
    return None, ()


@lru_cache(maxsize=1024)  # samples have few different sets of keys
def _label_key(keys: tuple[str, ...], wanted: str | None) -> str | None:
    if wanted is not None:
        return wanted_column(wanted, keys)
    return next(iter(label_columns(keys)), None)


def _read_member(file: BinaryIO, member: _Member) -> bytes:
    file.seek(member.offset)
    return file.read(min(member.size, _LARGEST_LABEL))
