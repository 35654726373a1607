"""Checkpoints: everything that a run needs to go on as if it had never stopped, written atomically and checksummed.

Random numbers are drawn from streams of (seed, step), and the order of the data follows from the step as well, so
the step is all the randomness there is to save.

Beside each `step-00001000.pt` lies `step-00001000.sha256` in the form that `sha256sum --check` reads. Torch's own
format holds no checksum that loading would look at.
"""

import hashlib
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from alight.runtime.files import explained_disk_errors, file_hash

_NAME = re.compile(r"step-(\d{8})\.pt")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies."""
    return folder / f"step-{step:08d}.pt"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files of all checkpoints, oldest first."""
    matches = [(match, path) for path in folder.glob("step-*.pt") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match.group(1)), path) for match, path in matches)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int, keep_every: int | None = None) -> Path:
    """Write a checkpoint under a temporary name, rename it, and remove old ones.

    Args:
        folder: of the run.
        step: optimizer steps done.
        state: plain data and tensors.
        keep: how many of the newest stay.
        keep_every: those of steps that this divides stay as well.

    Raises:
        InputError: if the disk is full or the folder cannot be written; older checkpoints stay.
    """
    path = checkpoint_path(folder, step)
    temporary = path.with_suffix(".writing")
    with explained_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                hashing = _HashingFile(file)
                torch.save({"step": step, **state}, cast(IO[bytes], hashing))  # it only writes
                file.flush()
                os.fsync(file.fileno())
            with _checksum_path(path).open("w", encoding="ascii") as checksum:
                checksum.write(f"{hashing.sha256.hexdigest()}  {path.name}\n")
                checksum.flush()
                os.fsync(checksum.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    for old_step, old in list_checkpoints(folder)[:-keep]:
        if keep_every is None or old_step % keep_every:
            old.unlink()
            _checksum_path(old).unlink(missing_ok=True)
    return path


def load_latest_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, list[Path]]:
    """The newest checkpoint that is whole, on the CPU.

    Returns:
        The state (None if there is none), and the newer files that turned out to be damaged.
    """
    damaged: list[Path] = []
    for _, path in reversed(list_checkpoints(folder)):
        try:
            if _checksum_path(path).read_text(encoding="ascii").split()[0] == file_hash(path):
                return torch.load(path, map_location="cpu", weights_only=True), damaged
        except Exception:  # no checksum, or a file that only looks whole; the caller reports each of them
            pass
        damaged.append(path)
    return None, damaged


class BackgroundWriter:
    """Saves checkpoints in a thread, so that training waits for a copy in memory and not for the disk.

    Args:
        folder: of the run.
        keep, keep_every: as in `save_checkpoint`.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int | None = None) -> None:
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy the state and begin to write it; waits for the checkpoint before.

        Raises:
            InputError: the checkpoint before could not be written.
        """
        self.wait()
        copied = _copied_to_host(state)
        self._writing = self._thread.submit(save_checkpoint, self.folder, step, copied, self.keep, self.keep_every)

    def wait(self) -> None:
        """Until what was begun is on the disk.

        Raises:
            InputError: it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """End the thread, after what it has begun."""
        self._thread.shutdown(wait=True)


def _copied_to_host(value: Any) -> Any:
    match value:
        case Tensor():
            return value.detach().to("cpu", copy=True)
        case dict():
            return {key: _copied_to_host(item) for key, item in value.items()}
        case list():
            return [_copied_to_host(item) for item in value]
        case _:
            return value


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


class _HashingFile:
    """A file that computes the hash of what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
