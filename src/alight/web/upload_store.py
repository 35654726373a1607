"""Uploaded files: their paths, quotas and expiry.

The path of a file has a random part that only its sender knows, so the path is also the permission to use it.
"""

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from alight.runtime.errors import InputError

KEEP_SECONDS = 300.0  # since a file was sent or last used: time to look at a result and to press the button again
SWEEP_SECONDS = 15.0  # between two searches for expired files
VISITOR_BYTES = 100_000_000  # several batches of photographs within `KEEP_SECONDS`
VISITOR_FILES = 200  # the images of several requests
TOTAL_BYTES = 500_000_000  # which even a small machine can spare in its temporary folder
TOTAL_FILES = 2_000  # a sweep over them takes milliseconds
NAME_LENGTH = 100  # characters kept of a file's name; file systems allow 255 bytes


class QuotaError(InputError):
    """The quota for uploads is used up."""


@dataclass
class _Stored:
    visitor: str
    size: int
    used: float


class UploadStore:
    """The uploaded files, within limits for each visitor and in total.

    Args:
        folder: where they are kept; every old file in it is removed.
        largest: bytes of one request; the limits always admit one such request.
        clock: seconds since any fixed time.
    """

    def __init__(self, folder: Path, largest: int, clock: Callable[[], float] = time.time) -> None:
        self.folder, self.clock = folder.resolve(), clock
        self.visitor_bytes, self.total_bytes = max(VISITOR_BYTES, largest), max(TOTAL_BYTES, largest)
        self._stored: dict[str, _Stored] = {}
        self._coming: dict[object, _Stored] = {}  # arriving requests, with their announced length
        self._lock = threading.Lock()

    @contextmanager
    def room(self, visitor: str, size: int) -> Iterator[None]:
        """Reserve room for a request of `size` bytes while it arrives.

        Raises:
            QuotaError: the visitor, or all visitors together, have sent too much in the last minutes.
        """
        self.sweep()
        request = object()
        with self._lock:
            self._require_room(visitor, size)
            self._coming[request] = _Stored(visitor, size, self.clock())
        try:
            yield
        finally:
            with self._lock:
                del self._coming[request]

    def _require_room(self, visitor: str, size: int) -> None:
        everything = [*self._stored.values(), *self._coming.values()]
        own = [entry for entry in everything if entry.visitor == visitor]
        wait = f"Files that are not used are removed after {KEEP_SECONDS / 60:g} minutes; try again then."
        if sum(entry.size for entry in own) + size > self.visitor_bytes or len(own) >= VISITOR_FILES:
            raise QuotaError(
                f"Each visitor may keep {self.visitor_bytes / 1e6:g} MB in {VISITOR_FILES} files here. {wait}"
            )
        if sum(entry.size for entry in everything) + size > self.total_bytes or len(everything) >= TOTAL_FILES:
            raise QuotaError(f"The server has no room for more files. {wait}")

    def add(self, visitor: str, name: str, content: BinaryIO) -> Path:
        """Store a file; returns the path by which its sender may use it.

        Raises:
            QuotaError: the visitor has too many files.
        """
        folder = self.folder / secrets.token_urlsafe(24)
        path = folder / plain_name(name)
        with self._lock:
            if sum(entry.visitor == visitor for entry in self._stored.values()) >= VISITOR_FILES:
                raise QuotaError(f"Each visitor may keep {VISITOR_FILES} files here. Send fewer at once.")
            folder.mkdir(parents=True)
            entry = self._stored[str(path)] = _Stored(visitor, 0, self.clock())
        with path.open("xb") as file:
            shutil.copyfileobj(content, file)
            entry.size = file.tell()
        return path

    def use(self, path: str) -> bool:
        """Tell if this is exactly the path of a stored file, and extend its lifetime."""
        with self._lock:
            entry = self._stored.get(path)
            if entry is None or Path(path).is_symlink() or not Path(path).is_file():
                return False
            entry.used = self.clock()
            return True

    def sweep(self) -> None:
        """Remove files that were not used for `KEEP_SECONDS`, and equally old foreign files in the folder."""
        oldest = self.clock() - KEEP_SECONDS
        with self._lock:
            for path in [path for path, entry in self._stored.items() if entry.used < oldest]:
                del self._stored[path]
                shutil.rmtree(Path(path).parent, ignore_errors=True)
            kept = {Path(path).parent for path in self._stored}
        for entry in self.folder.glob("*"):
            with suppress(OSError):  # removed meanwhile
                if entry not in kept and entry.lstat().st_mtime < oldest:
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def plain_name(name: str) -> str:
    """The last part of a file's name, without characters that are special in a path or a terminal."""
    last = name.replace("\\", "/").rpartition("/")[2]
    plain = "".join(letter for letter in last if letter.isprintable()).strip(" .")
    plain = plain.encode("utf-8", "ignore").decode("utf-8")
    stem, dot, suffix = plain.rpartition(".")
    short = f"{stem[:NAME_LENGTH]}{dot}{suffix[:10]}" if dot else plain[:NAME_LENGTH]
    while len(short.encode()) > 255:
        short = short[1:]
    return short or "file"
