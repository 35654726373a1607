"""Checkpoints: everything that a run needs to go on as if it had never stopped, written atomically and checksummed.

Random numbers are drawn from streams of (seed, step), and the order of the data follows from the step as well, so
the step is all the randomness there is to save.

Beside each `step-00001000.pt` lies `step-00001000.sha256` in the form that `sha256sum --check` reads. Torch's own
format holds no checksum that loading would look at.
"""

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Annotated, Any, cast

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict

from alight.runtime.errors import InputError
from alight.runtime.files import disk_reason, explained_disk_errors, file_hash, replacing, write_text
from alight.runtime.reading import read_bytes, require_regular

_NAME = re.compile(r"step-(\d{8})\.pt")
_LEFTOVER = re.compile(r"step-\d{8}\.writing|\.step-\d{8}\.(pt|sha256)\.writing|\.log\.jsonl\.writing")
_CHECKSUM = re.compile(r"step-\d{8}\.sha256")


class _Content(TypedDict, total=False):
    """The progress that a checkpoint records beside the state; what is absent was not recorded by its version."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow")  # type: ignore[misc]

    step: Annotated[int, Field(ge=0)]
    state: dict[str, Any]
    config: dict[str, Any]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    non_finite: Annotated[int, Field(ge=0)]
    versions: dict[str, str]
    inputs: dict[str, str]
    planned_steps: Annotated[int, Field(ge=1)]
    artifact: dict[str, Any]


_CONTENT = TypeAdapter(_Content)
_NEEDED = ("step", "state", "config", "seconds", "non_finite")


def checkpoint_path(folder: Path, step: int) -> Path:
    """The path of the checkpoint after `step` optimizer steps."""
    return folder / f"step-{step:08d}.pt"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files of all checkpoints, oldest first."""
    matches = [(match, path) for path in folder.glob("step-*.pt") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match.group(1)), path) for match, path in matches)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left: temporary files, checksums of no checkpoint.

    Call it while no other process writes to the folder.
    """
    for path in folder.glob("*"):
        alone = _CHECKSUM.fullmatch(path.name) and not path.with_suffix(".pt").exists()
        if (alone or _LEFTOVER.fullmatch(path.name)) and path.is_file():
            with explained_disk_errors(folder):
                path.unlink(missing_ok=True)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int, keep_every: int | None = None) -> Path:
    """Write a checkpoint under a temporary name, rename it, and remove old ones.

    Args:
        folder: of the run; it must exist, so that a folder that was removed meanwhile is noticed.
        step: optimizer steps done.
        state: plain data and tensors.
        keep: how many of the newest stay.
        keep_every: those of steps that this divides stay as well.

    Raises:
        InputError: if the disk is full or the folder cannot be written; older checkpoints stay.
    """
    path = checkpoint_path(folder, step)
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            hashing = _HashingFile(file)
            torch.save({"step": step, **state}, cast(IO[bytes], hashing))  # it only writes
        write_text(checksum_path(path), f"{hashing.sha256.hexdigest()}  {path.name}\n")
    with explained_disk_errors(folder):
        for old_step, old in list_checkpoints(folder)[:-keep]:
            if keep_every is None or old_step % keep_every:
                old.unlink(missing_ok=True)
                checksum_path(old).unlink(missing_ok=True)
    return path


def is_whole(path: Path) -> bool:
    """Tell if the bytes of a checkpoint are those that were written; without its checksum nobody can tell.

    Raises:
        InputError: the disk refuses to give them, or it is no regular file.
    """
    require_regular(path)
    try:
        return recorded_hash(path) == file_hash(path)
    except OSError as error:
        raise InputError(f"The checkpoint {path} cannot be read: {disk_reason(error)}.") from error


def recorded_hash(path: Path) -> str:
    """The SHA-256 that was written beside a checkpoint; empty where there is none."""
    checksum = checksum_path(path)
    words = read_bytes(checksum, 1000).split() if checksum.is_file() else []
    return words[0].decode("ascii", "replace") if words else ""


def read_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, with the types that a run relies on.

    Raises:
        InputError: it is no torch file, or holds other things than a checkpoint of a run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        return dict(_CONTENT.validate_python(content))
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, item['loc'])) or 'content'}: {item['msg']}" for item in error.errors()[:3])
        reason = "; ".join(problems)
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    raise _foreign(path, reason)


def require_run(content: Mapping[str, Any], folder: Path) -> None:
    """Refuse a checkpoint without the progress of a run, which other code may have written.

    Raises:
        InputError: names what is missing.
    """
    if lacking := [name for name in _NEEDED if name not in content]:
        raise _foreign(folder, f"it has no {', '.join(lacking)}")


def _foreign(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path} holds no checkpoint of a training run ({reason}). Restore the file that the run wrote, or remove it "
        "to go on from the checkpoint before."
    )


def load_latest_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, list[Path]]:
    """The newest checkpoint that is whole, on the CPU.

    Returns:
        The state (None if there is none), and the newer files that turned out to be damaged.

    Raises:
        InputError: the disk refuses to give a checkpoint, or a whole one holds other things.
    """
    damaged: list[Path] = []
    for _, path in reversed(list_checkpoints(folder)):
        if is_whole(path):
            return read_checkpoint(path), damaged
        damaged.append(path)  # the caller reports each of them
    return None, damaged


def restore(parts: Mapping[str, Any], state: Mapping[str, Any], folder: Path) -> None:
    """Load the state of a checkpoint into models, optimizers and averages, by name.

    Raises:
        InputError: a part is missing or does not fit; the parts are then of no use.
    """
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except Exception as error:  # every part refuses in its own way
            reason = "missing" if name not in state else " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError(
                f"The checkpoint in {folder} does not fit this run: its {name} is unusable ({reason}). Restore the "
                "checkpoint that the run wrote, or delete that folder to start again."
            ) from error


class BackgroundWriter:
    """Saves checkpoints in a thread, so that training waits for a copy in memory and not for the disk."""

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


def checksum_path(path: Path) -> Path:
    """The file beside another one that holds its SHA-256."""
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
