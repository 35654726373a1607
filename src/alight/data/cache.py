"""Cached results under `$ALIGHT_CACHE`: verified when read, and computed by one process at a time.

The processes of a job open the same images at the same moment. The first computes, and the others wait and read.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alight.runtime.cache_folder import cache_folder
from alight.runtime.reading import read_bytes

_LARGEST = 2**32  # bytes; the index of ten million images takes a quarter
_SECONDS_BEFORE_MESSAGE = 2.0
_HEAD_START = 0.5  # seconds for the main process of a job, which shows the progress bar

logger = logging.getLogger(__name__)


def cache_file(kind: str, *key: str) -> Path:
    """The file that keeps the result for this key; `kind` ends in a version, raised when the content changes."""
    name = sha256(os.fsencode("\0".join(key))).hexdigest()[:32]
    return cache_folder() / kind / f"{name}.json"


def read_cache(file: Path) -> Any | None:
    """Read a value that `write_cache` wrote; None if the file is missing, unreadable or damaged."""
    try:
        checksum, body = read_bytes(file, _LARGEST).split(b"\n", 1)
        return json.loads(body) if sha256(body).hexdigest().encode() == checksum else None
    except (OSError, ValueError, RecursionError):  # an `InputError` is a ValueError, too
        return None


def write_cache(file: Path, value: Any) -> None:
    """Store a JSON value with a checksum; an error is ignored, since the value can be computed again."""
    body = json.dumps(value).encode()
    _write(file, sha256(body).hexdigest().encode() + b"\n" + body)


def write_note(file: Path, lines: list[str]) -> bool:
    """Write lines of text beside a cache file, or remove old ones if there are none; true if they were written."""
    if lines:
        return _write(file, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        logger.debug("%s stays: %s", file, error)
    return False


@contextmanager
def one_process_at_a_time(file: Path) -> Iterator[None]:
    """Lock a cache file for the length of the block; other processes and threads wait.

    Without effect if the folder does not support locks or cannot be written.
    """
    lock = FileLock(file.with_suffix(".lock"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if os.environ.get("RANK", "0") != "0":
            time.sleep(_HEAD_START)
        try:
            lock.acquire(timeout=_SECONDS_BEFORE_MESSAGE)
        except Timeout:
            logger.info("Another process is indexing the same images; waiting for it.")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        logger.debug("%s cannot be locked: %s", file, error)
    try:
        yield
    finally:
        lock.release()


def _write(file: Path, content: bytes) -> bool:
    """Write atomically; returns False on an error."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            partial = Path(scratch) / file.name
            partial.write_bytes(content)
            os.replace(partial, file)
    except OSError as error:
        logger.debug("%s is not kept: %s", file, error)
        return False
    return True
