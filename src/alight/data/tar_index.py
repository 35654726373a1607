"""What is in a tar file of the WebDataset layout, and where: read once from its headers, remembered after.

A sample is all members with the same path up to the first dot of the file name: `train/0001.jpg`, `train/0001.cls`.
With the offset of each image, any of them can be read by one seek, so shuffling is as exact as it is for files.
"""

import json
import tarfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from alight.data.cache import cache_file, one_process_at_a_time, read_cache, write_cache
from alight.data.class_labels import RawLabel
from alight.data.image_store import file_stamp, is_image_name
from alight.runtime.errors import InputError

_FORMAT = "tar-index-1"
_LARGEST_LABEL = 1 << 20  # bytes of a .cls or .json


class _Member(NamedTuple):
    """A file in a tar file; the offset is that of its first byte, and the size in bytes."""

    name: str
    offset: int
    size: int


class TarImage(NamedTuple):
    """An image in a tar file.

    Attributes:
        name: of the member.
        offset: of its first byte in the tar file.
        size: in bytes.
        label: from the `.cls` or `.json` of the same sample; None = there is none that can be read.
    """

    name: str
    offset: int
    size: int
    label: RawLabel


class TarColumns(NamedTuple):
    """Which members of a sample are meant.

    Attributes:
        image: extension of the image, such as `input.png`; None = the one member that is an image.
        label: key in the sample's `.json`; None = its `.cls`, else the key `label`.
    """

    image: str | None = None
    label: str | None = None


def index_tar(path: Path, columns: TarColumns) -> tuple[str, list[TarImage]]:
    """The images of a tar file, in its order.

    Returns:
        The stamp of the file that was read, and the images.

    Raises:
        InputError: the file is not a tar, compressed, damaged or cut off; or a sample has several images.
    """
    try:
        stamp = file_stamp(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its name and rights.") from error
    file = cache_file(_FORMAT, str(path.resolve()), repr(columns))
    images = _remembered(file, stamp)
    if images is None:
        with one_process_at_a_time(file):
            images = _remembered(file, stamp)  # the process that was here before may have read it
            if images is None:
                images = _read_samples(path, columns)
                write_cache(file, {"stamp": stamp, "images": images})
    return stamp, images


def _remembered(file: Path, stamp: str) -> list[TarImage] | None:
    cached = read_cache(file)
    return [TarImage(*image) for image in cached["images"]] if cached and cached["stamp"] == stamp else None


def _read_samples(path: Path, columns: TarColumns) -> list[TarImage]:
    samples: dict[str, dict[str, _Member]] = {}  # path up to the first dot -> extension -> member
    for member in _members(path):
        folder, _, file_name = member.name.rpartition("/")
        stem, _, extension = file_name.partition(".")
        if stem:  # else it is hidden
            samples.setdefault(f"{folder}/{stem}", {})[extension.lower()] = (
                member  # a later one counts, as in unpacking
            )
    images = []
    with path.open("rb") as file:
        for sample in samples.values():
            if image := _image_of(sample, path, columns):
                images.append(TarImage(*image, label=_label_of(sample, file, columns)))
    return images


def _members(path: Path) -> list[_Member]:
    """The files in a tar, to its very end.

    Raises:
        InputError: it cannot be read to the end.
    """
    found = []
    try:
        with tarfile.open(path, "r:") as archive, path.open("rb") as file:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep every one
                if member.size < 0:
                    raise tarfile.ReadError("a member of negative size")
                if member.isreg() and not member.issparse():
                    found.append(_Member(member.name.removeprefix("./"), member.offset_data, member.size))
            # tarfile takes a damaged header for the end of the file. At a real end are zeros, or nothing.
            file.seek(archive.offset)
            if any(file.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError(f"a damaged header at byte {archive.offset:,}")
    except Exception as error:  # on damaged files tarfile raises nearly everything
        raise InputError(
            f"{path} cannot be read to its end as a tar file ({error}); if it was cut off or damaged, fetch it again, "
            "and if it is compressed, decompress it (images inside hardly take less space for it)."
        ) from error
    return found


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


def _label_of(sample: dict[str, _Member], file: BinaryIO, columns: TarColumns) -> RawLabel:
    """The sample's label; None if there is none that can be read."""
    try:
        if "cls" in sample and columns.label is None:
            return _read_member(file, sample["cls"]).decode().strip()
        if "json" in sample:
            values = json.loads(_read_member(file, sample["json"]))
            label = values.get(columns.label or "label") if isinstance(values, dict) else None
            return label if isinstance(label, int | str) and not isinstance(label, bool) else None
    except (ValueError, RecursionError):  # not Unicode, not JSON
        pass
    return None


def _read_member(file: BinaryIO, member: _Member) -> bytes:
    file.seek(member.offset)
    return file.read(min(member.size, _LARGEST_LABEL))
