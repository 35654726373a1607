"""Bounded reading of `.npz` archives: headers before data, no Python objects, limited sizes.

A few bytes of an archive may announce, or unpack to, more than any memory holds. Before any data is read, the header
of an array must therefore agree with the directory of the archive.
"""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from alight.runtime.errors import InputError, one_line
from alight.runtime.reading import require_regular

SUFFIX = ".npy"
UNREADABLE = "cannot be read as a .npz archive"  # the default beginning of messages
_HEADER_LIMIT = 10_000  # bytes, as in NumPy
_ENTRIES_LIMIT = 10_000
_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, NotImplementedError, RecursionError),
    *(MemoryError, OverflowError, SyntaxError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class ArrayHeader:
    """The header of one array in an archive.

    Attributes:
        shape: of the array.
        dtype: of its elements.
        fortran_order: True for column-major order.
        size: of all elements in bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    size: int

    def __str__(self) -> str:
        order = ", in Fortran order" if self.fortran_order and len(self.shape) > 1 else ""
        return f"{self.dtype} {self.shape}{order}"


def array_headers(path: Path, refusal: str = UNREADABLE) -> dict[str, ArrayHeader]:
    """The headers of all arrays of an archive, by name; their elements are not read.

    Args:
        path: of the archive.
        refusal: how a message begins, after the path.

    Raises:
        InputError: the file is not an `.npz`, is damaged or encrypted, or an array holds Python objects or does not
            have the size in its header.
    """
    with _opened(path, refusal) as archive:
        headers = {}
        for name in _names(archive):
            with _explained(path, refusal, name), archive.open(f"{name}{SUFFIX}") as file:
                headers[name] = _read_header(archive, name, file, refusal)
        return headers


def array_names(path: Path, refusal: str = UNREADABLE) -> list[str]:
    """The names of the arrays in an archive, by its directory.

    Raises:
        InputError: the file is not an `.npz`, or is damaged.
    """
    with _opened(path, refusal) as archive:
        return _names(archive)


def read_array(
    path: Path, name: str, limit: int, shape: Sequence[int | None] | None = None, refusal: str = UNREADABLE
) -> npt.NDArray[Any]:
    """Read one array of limited size.

    Args:
        path: of the archive.
        name: of the array.
        limit: bytes that its elements may have.
        shape: the required shape, None = any length; checked before elements are read.
        refusal: how a message begins, after the path.

    Raises:
        InputError: as `array_headers`; or there is no such array, or it is too large or of another shape.
    """
    with open_array(path, name, refusal) as (header, file):
        if header.size > limit:
            raise InputError(
                f"{path} {refusal}: its '{name}' has {header.size:,} bytes, more than the {limit:,} that it may have. "
                "Check the path."
            )
        if shape is not None and not _fits(header.shape, shape):
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            raise InputError(
                f"{path} {refusal}: its '{name}' has the shape {header.shape}, where ({wanted}) is needed. Check the "
                "path."
            )
        content = file.read(header.size)
        if len(content) < header.size or file.read(1):  # reading to the end compares the checksum
            raise EOFError("it ends too early")
        order: Any = "F" if header.fortran_order else "C"
        return np.frombuffer(content, header.dtype).reshape(header.shape, order=order).copy()


@contextmanager
def open_array(path: Path, name: str, refusal: str = UNREADABLE) -> Iterator[tuple[ArrayHeader, IO[bytes]]]:
    """The header of an array, and the file positioned at its elements, to be read in parts.

    Raises:
        InputError: as `array_headers`; or there is no such array, or reading the file fails within the block.
    """
    with _opened(path, refusal) as archive:
        if name not in _names(archive):
            held = ", ".join(_names(archive)[:5]) or "nothing"
            raise InputError(f"{path} {refusal}: it has no array '{name}', only {held}. Check the path.")
        with _explained(path, refusal, name), archive.open(f"{name}{SUFFIX}") as file:
            yield _read_header(archive, name, file, refusal), file


@contextmanager
def _opened(path: Path, refusal: str) -> Iterator[zipfile.ZipFile]:
    require_regular(path)
    with _explained(path, refusal):
        archive = zipfile.ZipFile(path)
    with archive:
        if len(archive.filelist) > _ENTRIES_LIMIT:
            raise InputError(f"{path} {refusal}: it has {len(archive.filelist):,} entries. Give an archive of arrays.")
        yield archive


@contextmanager
def _explained(path: Path, refusal: str, name: str = "") -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        place = f"its array '{name}'" if name else "it"
        raise InputError(
            f"{path} {refusal}: {place} is damaged, or of another kind "
            f"({one_line(error, 150)}). Create or download it again."
        ) from error


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(SUFFIX) for name in dict.fromkeys(archive.namelist()) if name.endswith(SUFFIX)]


def _read_header(archive: zipfile.ZipFile, name: str, file: IO[bytes], refusal: str) -> ArrayHeader:
    version = np.lib.format.read_magic(file)
    read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran_order, dtype = read(file, max_header_size=_HEADER_LIMIT)
    except Exception as error:  # NumPy evaluates the header as a literal, which can fail in many ways
        raise ValueError(f"its header cannot be read: {one_line(error, 150)}") from error
    if dtype.hasobject:
        raise InputError(
            f"{archive.filename} {refusal}: its '{name}' holds Python objects, which could execute code when they are "
            "read, so they were refused. Save plain numbers or text instead."
        )
    if not all(isinstance(length, int) and length >= 0 for length in shape):
        raise ValueError(f"its shape is {shape}")
    size, stored = math.prod(shape) * dtype.itemsize, archive.getinfo(f"{name}{SUFFIX}").file_size - file.tell()
    if size != stored:
        raise ValueError(f"its header announces {dtype} {shape}, {size:,} bytes, but {stored:,} are there")
    return ArrayHeader(tuple(shape), dtype, bool(fortran_order), size)


def _fits(found: tuple[int, ...], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(w is None or w == f for f, w in zip(found, wanted, strict=True))
