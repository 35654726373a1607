"""Files on disk: hashes, atomic replacement, locks, and explained disk errors."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from alight.runtime.console import log
from alight.runtime.errors import InputError

LOCK_FILE = "in-use.lock"
PATIENCE = 15.0  # seconds with a network file system
_BLOCK = 1 << 20
_SEGMENT = 1 << 26  # bytes that one thread hashes at a time
_NO_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_FSYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)  # file systems that cannot synchronise a folder
_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another --output",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another --output",
    errno.EFBIG: "the file size limit is reached; raise it or choose another --output",
    errno.EACCES: "permission denied; choose another --output or correct the permissions",
    errno.EPERM: "operation not permitted; choose another --output or correct the permissions",
    errno.EROFS: "the file system is read-only; choose another --output",
    errno.ENOTDIR: "a part of the path is a file; choose another --output",
    errno.EEXIST: "a file of that name is in the way; choose another --output",
    errno.ENOENT: "a file or folder was removed meanwhile; start the command again",
    errno.EIO: "the disk reports an input/output error; check it, or choose another --output",
    errno.ESTALE: "the network file system lost the file; mount it again, or choose another --output",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter --output",
    errno.ELOOP: "the path leads through a symbolic link that is not followed; choose another --output",
}


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that distinguish them."""
    depth, longest = 1, max((len(path.parts) for path in paths), default=1)
    while len(set(names := ["/".join(path.parts[-depth:]) for path in paths])) < len(names) and depth < longest:
        depth += 1
    return names


# --- hashes -------------------------------------------------------------------------------------------------------


def file_hash(*files: Path) -> str:
    """SHA-256 over the bytes of files, in the given order."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def segmented_hash(path: Path) -> str:
    """A hash for large files that several threads share.

    It is the plain SHA-256 up to 64 MiB. A larger file is hashed in segments of 64 MiB, and the result is the SHA-256
    of their digests, one after another.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    if size <= _SEGMENT:
        return file_hash(path)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as threads:
        digests = threads.map(lambda start: _segment_digest(path, start), range(0, size, _SEGMENT))
        return hashlib.sha256(b"".join(digests)).hexdigest()


def _segment_digest(path: Path, start: int) -> bytes:
    digest, left = hashlib.sha256(), _SEGMENT
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left and (block := file.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
    return digest.digest()


# --- atomic replacement -------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; its file replaces `path` when the block ends without an error.

    Args:
        path: of the file to write.
        durable: synchronise it with the disk first, so that it survives a power failure; not needed for many small
            files that can be created again.

    Raises:
        InputError: the disk refuses; an earlier file at `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.writing")
    with explained_disk_errors(path.parent):
        try:
            yield temporary
            if durable:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def seen_in_time(look: Callable[[], bool], patience: float = PATIENCE) -> bool:
    """Tell if something is there, now or within some seconds.

    A network file system may show on one machine what another has written only after a while.

    Args:
        look: asked twice a second.
        patience: in seconds.
    """
    end = time.monotonic() + patience
    while not look():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file atomically.

    Raises:
        InputError: the disk refuses; an earlier file is unchanged.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power failure, if the file system supports that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(descriptor)


# --- locks --------------------------------------------------------------------------------------------------------


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder; it is created if it does not exist.

    The operating system releases the lock of a process that dies.

    Raises:
        InputError: the folder is already locked, or cannot be created.
    """
    lock = FileLock(folder / LOCK_FILE, blocking=False)
    with explained_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / LOCK_FILE).is_symlink():
            raise InputError(
                f"{folder / LOCK_FILE} is a symbolic link, which is not followed. Remove it, or choose another "
                "--output."
            )
        try:
            lock.acquire()
        except Timeout:
            raise InputError(
                f"{folder} is in use by another run that writes there. Wait for it, stop it, or choose another "
                "--output."
            ) from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            log.warning(
                "The file system of %s has no locks: nothing keeps a second process from writing there.", folder
            )
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                (folder / LOCK_FILE).unlink(missing_ok=True)  # a process that waits for this file creates a new one
            lock.release()


# --- errors -------------------------------------------------------------------------------------------------------


@contextmanager
def explained_disk_errors(folder: Path) -> Iterator[None]:
    """Turn every disk error into an explanation about the folder.

    Other libraries wrap disk errors in their own exceptions, so their text is searched too.

    Raises:
        InputError: in place of an `OSError`.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = disk_reason(error)
        if reason is None:
            raise
        raise InputError(f"Cannot write to {folder}: {reason}. What was finished before is unchanged.") from error


def disk_reason(error: BaseException) -> str | None:
    """The reason of a disk error and its remedy; None for another kind of error."""
    if isinstance(error, OSError) and error.errno is not None:
        return _REASONS.get(error.errno, f"{error.strerror}; choose another --output")
    if type(error).__name__ in ("SafetensorError", "RuntimeError"):
        for number, reason in _REASONS.items():
            if os.strerror(number) in str(error):
                return reason
    # a writer that fails to close a file after a failed write hides the first error behind a second one
    return disk_reason(error.__context__) if error.__context__ is not None else None
