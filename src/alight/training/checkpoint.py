"""Checkpoints: everything that a run needs to go on as if it had never stopped, written atomically and checksummed.

Random numbers are drawn from streams of (seed, step), and the order of the data follows from the step as well, so
the step is all the randomness there is to save.

Where one process holds everything, a checkpoint is a file `step-00001000.pt` with `step-00001000.sha256` beside it, in
the form that `sha256sum --check` reads: torch's own format holds no checksum that loading would look at. Of a sharded
model it is a folder `step-00001000`, see `sharded_checkpoint`. Either is read by any number of processes.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar, cast

import torch
import torch.distributed as dist
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from alight.runtime.errors import InputError
from alight.runtime.files import disk_reason, explained_disk_errors, file_hash, replacing, sync_folder, write_text
from alight.runtime.reading import read_bytes, require_regular
from alight.training.sharded_checkpoint import (
    CHECKSUMS,
    damaged_part,
    read_progress,
    read_whole,
    stored_shapes,
    write_sharded,
)
from alight.training.state_tree import Shapes, join, shapes_of, split

_NAME = re.compile(r"step-(\d{8})(\.pt)?")
_LEFTOVER = re.compile(r"step-\d{8}\.writing|\.step-\d{8}\.(pt|sha256)\.writing|\.log\.jsonl\.writing")
_LEFT_FOLDER = re.compile(r"\.step-\d{8}\.(writing|removing)")
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
Result = TypeVar("Result")
_NEEDED = ("step", "state", "config", "seconds", "non_finite")


def checkpoint_path(folder: Path, step: int) -> Path:
    """The path of the checkpoint after `step` optimizer steps."""
    return folder / f"step-{step:08d}.pt"


def sharded_path(folder: Path, step: int) -> Path:
    """The path of the same of a sharded model."""
    return folder / f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and paths of all checkpoints, files or folders, oldest first."""
    matches = [(match, path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in matches if match[2] or path.is_dir())


def checkpoint_size(path: Path) -> int:
    """Bytes of a checkpoint on the disk."""
    files = path.iterdir() if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left: temporary files, checksums of no checkpoint.

    Call it while no other process writes to the folder.
    """
    for path in folder.glob("*"):
        alone = _CHECKSUM.fullmatch(path.name) and not path.with_suffix(".pt").exists()
        with explained_disk_errors(folder):
            if (alone or _LEFTOVER.fullmatch(path.name)) and path.is_file():
                path.unlink(missing_ok=True)
            elif _LEFT_FOLDER.fullmatch(path.name) and path.is_dir():
                shutil.rmtree(path)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; one that is not there any more is no fault."""
    if path.is_dir():
        removed = path.with_name(f".{path.name}.removing")  # no half folder bears the name of a checkpoint
        path.rename(removed)
        shutil.rmtree(removed)
    else:
        path.unlink(missing_ok=True)
        checksum_path(path).unlink(missing_ok=True)


def save_checkpoint(
    folder: Path,
    step: int,
    state: dict[str, Any],
    keep: int,
    keep_every: int | None = None,
    keep_at: Collection[int] = (),
) -> Path:
    """Write a checkpoint under a temporary name, rename it, and remove old ones.

    Args:
        folder: of the run; it must exist, so that a folder that was removed meanwhile is noticed.
        step: optimizer steps done.
        state: plain data and tensors.
        keep: how many of the newest stay.
        keep_every: those of steps that this divides stay as well.
        keep_at: and so do those of these steps.

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
        _remove_old(folder, path, keep, keep_every, keep_at)
    return path


def save_sharded_checkpoint(
    folder: Path,
    step: int,
    state: dict[str, Any],
    keep: int,
    keep_every: int | None,
    group: dist.ProcessGroup,
    keep_at: Collection[int] = (),
) -> Path:
    """Write a checkpoint of a sharded model likewise; every process of the group calls it with its own parts.

    Args:
        folder: as for `save_checkpoint`, and so are the following.
        step: of the checkpoint.
        state: plain data, of which the first process's counts, and tensors.
        keep: how many stay.
        keep_every: those that stay as well.
        group: of all processes, over gloo.
        keep_at: as above.

    Raises:
        InputError: a disk refuses, of any process; it is raised in all of them.
    """
    path = sharded_path(folder, step)
    temporary = path.with_name(f".{path.name}.writing")

    def finish() -> None:
        if path.is_dir():  # a damaged one, for a whole one is never written again
            remove_checkpoint(path)
        temporary.rename(path)
        sync_folder(folder)
        _remove_old(folder, path, keep, keep_every, keep_at)

    write_sharded(temporary, {"step": step, **state}, group, finish)
    return path


def _remove_old(folder: Path, newest: Path, keep: int, keep_every: int | None, keep_at: Collection[int]) -> None:
    """Remove all checkpoints but the newest and those to be kept, and one of the same step in the other form."""
    found = [(step, path) for step, path in list_checkpoints(folder) if path.stem != newest.stem or path == newest]
    kept = {path for _, path in found[-keep:]}
    kept |= {path for step, path in found if step in keep_at or (keep_every is not None and step % keep_every == 0)}
    for _, path in list_checkpoints(folder):
        if path not in kept:
            remove_checkpoint(path)


def is_whole(path: Path) -> bool:
    """Tell if the bytes of a checkpoint are those that were written; without its checksum nobody can tell.

    Raises:
        InputError: the disk refuses to give them, or it is no regular file.
    """
    return damaged_file(path) is None


def damaged_file(path: Path) -> Path | None:
    """The file by which a checkpoint is damaged: itself, or one in its folder; None = it is whole.

    Raises:
        InputError: as `is_whole`.
    """
    try:
        if path.is_dir():
            return damaged_part(path)
        require_regular(path)
        return None if recorded_hash(path) == file_hash(path) else path
    except OSError as error:
        raise InputError(f"The checkpoint {path} cannot be read: {disk_reason(error)}.") from error


def recorded_hash(path: Path) -> str:
    """The SHA-256 that was written beside a checkpoint, or of the list of those within; empty where there is none."""
    if path.is_dir():
        checksums = path / CHECKSUMS
        return file_hash(checksums) if checksums.is_file() else ""
    checksum = checksum_path(path)
    words = read_bytes(checksum, 1000).split() if checksum.is_file() else []
    return words[0].decode("ascii", "replace") if words else ""


def read_checkpoint(path: Path, mapped: bool = False, parts: Collection[str] | None = None) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, with the types that a run relies on.

    Args:
        path: of the checkpoint.
        mapped: leave the tensors of a file on the disk until they are used.
        parts: of a folder's `state` whose tensors are read, such as `ema`; None = all.

    Raises:
        InputError: it is no torch file, or holds other things than a checkpoint of a run.
    """

    def read() -> Any:
        if not path.is_dir():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        content = read_progress(path)
        return {**content, "state": join(content["state"], read_whole(path, parts))}

    return _understood(path, lambda: dict(_CONTENT.validate_python(read())))


def read_outline(path: Path) -> tuple[dict[str, Any], Shapes]:
    """The content of a checkpoint without tensors, and the shapes of those, by their paths in its `state`.

    Raises:
        InputError: as `read_checkpoint`.
    """
    content = read_checkpoint(path, mapped=True, parts=())
    plain, tensors = split(content)
    if path.is_dir():
        return plain, _understood(path, lambda: stored_shapes(path))
    return plain, {keys[1:]: shape for keys, shape in shapes_of(tensors).items() if keys[0] == "state"}


def _understood(path: Path, read: Callable[[], Result]) -> Result:
    """The result of reading a checkpoint, or one sentence about it.

    Raises:
        InputError: it cannot be read, or its content is another.
    """
    try:
        return read()
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


def newest_whole(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that is whole.

    Returns:
        Its path (None if there is none), and a damaged file of each newer one; the caller reports them.

    Raises:
        InputError: the disk refuses to give a checkpoint.
    """
    damaged: list[Path] = []
    for _, path in reversed(list_checkpoints(folder)):
        if (file := damaged_file(path)) is None:
            return path, damaged
        damaged.append(file)
    return None, damaged


def load_latest_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, list[Path]]:
    """The content of the newest checkpoint that is whole, on the CPU, and the damaged files of newer ones.

    Raises:
        InputError: the disk refuses to give a checkpoint, or a whole one holds other things.
    """
    path, damaged = newest_whole(folder)
    return None if path is None else read_checkpoint(path), damaged


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
