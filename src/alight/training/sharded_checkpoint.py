"""Checkpoints of sharded models: a folder in which every process writes and reads its own part of the tensors.

A folder `step-00001000` holds a checkpoint of `torch.distributed.checkpoint` (`.metadata`, and `__0_0.distcp` and so
on, one file from each process) with tensors by names such as `model/blocks.0.attn.qkv.weight`; `progress.pt`, in
torch's own format, with everything else; and `checksums.sha256`, which `sha256sum --check` reads within the folder.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from alight.runtime.errors import InputError, one_line
from alight.runtime.files import disk_reason, file_hash, replacing, sync_folder, write_text
from alight.runtime.reading import read_bytes, require_regular
from alight.training.state_tree import Shapes, split

PROGRESS, CHECKSUMS = "progress.pt", "checksums.sha256"
_METADATA = ".metadata"  # as torch names it
_LINE = re.compile(r"([0-9a-f]{64})  ([\w.]+)")
_LIMIT = 2**20  # bytes of the checksums of some ten thousand processes

Result = TypeVar("Result")


# --- writing ------------------------------------------------------------------------------------------------------


def write_sharded(
    folder: Path, content: Mapping[str, Any], group: dist.ProcessGroup, finish: Callable[[], None]
) -> None:
    """Write a checkpoint into a folder of a temporary name; every process of the group calls it.

    Args:
        folder: to be made by the first process; what a killed process has left there goes.
        content: `state` in nested dictionaries, with tensors that are divided among the processes or the same in all;
            and plain data, of which the first process's counts.
        group: of all processes, used by nobody else meanwhile.
        finish: called by the first process when the folder is complete.

    Raises:
        InputError: a disk refuses, of any process; it is raised in all of them.
    """
    plain, tensors = split(content["state"])
    first = dist.get_rank(group) == 0
    _together(lambda: _begin(folder) if first else None, folder, group)
    named = {"/".join(map(str, path)): tensor for path, tensor in tensors.items()}
    writer = dcp.FileSystemWriter(folder, per_thread_copy_ahead=0)  # the tensors are on the host already
    with _explained(folder, "Cannot write to"):
        planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
        dcp.save(named, storage_writer=writer, planner=planner, process_group=group)
    own = f"__{dist.get_rank(group)}_*.distcp"
    digests = _together(lambda: {path.name: file_hash(path) for path in folder.glob(own)}, folder, group)

    def complete() -> None:
        with replacing(folder / PROGRESS) as temporary:
            torch.save({**content, "state": plain}, temporary)
        hashes = {name: file_hash(folder / name) for name in (PROGRESS, _METADATA)}
        for found in digests:
            hashes |= found
        write_text(folder / CHECKSUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items())))
        sync_folder(folder)
        finish()

    _together(lambda: complete() if first else None, folder, group)


def _begin(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()  # without parents, so that a run's folder that was removed meanwhile is noticed


def _together(action: Callable[[], Result], folder: Path, group: dist.ProcessGroup) -> list[Result]:
    """The results of an action in every process, by rank; if it fails in one, it fails in all of them.

    Raises:
        InputError: the first of the failures.
    """
    outcome: tuple[Result | None, str | None]
    try:
        outcome = action(), None
    except Exception as error:  # the others must hear of it, whatever it is
        reason = disk_reason(error)
        message = f"Cannot write to {folder.parent}: {reason or one_line(error)}. Earlier checkpoints are unchanged."
        outcome = None, str(error) if isinstance(error, InputError) else message
    outcomes: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, outcome, group=group)
    if failures := [failure for _, failure in outcomes if failure is not None]:
        raise InputError(failures[0])
    return [result for result, _ in outcomes]


@contextmanager
def _explained(folder: Path, sentence: str) -> Iterator[None]:
    """Turn a failure that torch has gathered from all processes into one paragraph."""
    try:
        yield
    except CheckpointException as error:
        rank, (failure, _) = next(iter(error.failures.items()))
        reason = disk_reason(failure) or one_line(failure)
        raise InputError(
            f"{sentence} {folder}: {reason} (in process {rank}). Earlier checkpoints are unchanged."
        ) from error


# --- verifying ----------------------------------------------------------------------------------------------------


def recorded_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a checkpoint by its name; empty where the list is missing or damaged.

    Raises:
        InputError: the list is no regular file.
    """
    checksums = folder / CHECKSUMS
    lines = read_bytes(checksums, _LIMIT).decode("ascii", "replace").splitlines() if checksums.exists() else []
    found = [match for line in lines if (match := _LINE.fullmatch(line))]
    hashes = {match[2]: match[1] for match in found}
    return hashes if len(hashes) == len(lines) and {PROGRESS, _METADATA} <= hashes.keys() else {}


def damaged_part(folder: Path) -> Path | None:
    """The first file of a checkpoint that is missing or holds other bytes than were written; None if all are whole.

    Raises:
        InputError: a file is no regular one.
        OSError: the disk refuses to give one.
    """
    hashes = recorded_hashes(folder)
    if not hashes:
        return folder / CHECKSUMS

    def is_whole(name: str) -> bool:
        path = folder / name
        if not path.exists():
            return False
        require_regular(path)
        return file_hash(path) == hashes[name]

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as threads:
        verdicts = threads.map(is_whole, hashes)
        return next((folder / name for name, whole in zip(hashes, verdicts, strict=True) if not whole), None)


def all_visible(folder: Path) -> bool:
    """Tell if every file of a checkpoint is there."""
    hashes = recorded_hashes(folder)
    return bool(hashes) and all((folder / name).is_file() for name in hashes)


# --- reading ------------------------------------------------------------------------------------------------------


def read_progress(folder: Path) -> Any:
    """Everything but the tensors; `state` is there without them."""
    require_regular(folder / PROGRESS)
    return torch.load(folder / PROGRESS, map_location="cpu", weights_only=True)


def stored_shapes(folder: Path) -> Shapes:
    """Shapes and types of all tensors, by their paths in `state`."""
    stored = cast(dict[str, TensorStorageMetadata], _Reader(folder).read_metadata().state_dict_metadata)
    return {
        tuple(name.split("/")): (tuple(entry.size), entry.properties.dtype) for name, entry in sorted(stored.items())
    }


def read_whole(folder: Path, parts: Collection[str] | None = None) -> dict[tuple[str | int, ...], Tensor]:
    """The tensors of a checkpoint, each of them whole, read by this process alone.

    Args:
        folder: of the checkpoint.
        parts: of `state` that are read, such as `ema`; None = all.
    """
    tensors = {
        path: torch.empty(shape, dtype=dtype)
        for path, (shape, dtype) in stored_shapes(folder).items()
        if parts is None or path[0] in parts
    }
    with warnings.catch_warnings():  # that it reads alone
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        read_into(folder, tensors, None)
    return tensors


def read_into(folder: Path, tensors: Mapping[tuple[str | int, ...], Tensor], group: dist.ProcessGroup | None) -> None:
    """Fill tensors from a checkpoint, each process its own parts of those that are divided.

    Args:
        folder: of the checkpoint.
        tensors: by their paths in `state`, of the shapes that are stored; they are changed.
        group: of all processes; None = this one alone.

    Raises:
        InputError: a part cannot be read, in any process; it is raised in all of them.
    """
    named: dict[str, Any] = {"/".join(map(str, path)): tensor for path, tensor in tensors.items()}
    if not named:
        return
    with _explained(folder, "Cannot read"):
        planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        dcp.load(named, storage_reader=_Reader(folder), planner=planner, process_group=group, no_dist=group is None)


_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
_KNOWN = {  # classes of torch's metadata, by module
    "torch.distributed.checkpoint.metadata": (
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata"),
        *("ChunkStorageMetadata", "_MEM_FORMAT_ENCODING"),
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))),
    **dict.fromkeys(("pathlib", "pathlib._local"), _PATHS),
}


class _Reader(dcp.FileSystemReader):
    """Torch's reader, which rebuilds the description of tensors and nothing else, and reads files with checksums only.

    Torch unpickles that description without restrictions, which would execute what a foreign file says.
    """

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        folder = Path(self.path)
        require_regular(folder / _METADATA)
        with (folder / _METADATA).open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata) or not all(
            isinstance(entry, TensorStorageMetadata) for entry in metadata.state_dict_metadata.values()
        ):
            raise pickle.UnpicklingError("it describes other things than tensors")
        if foreign := {info.relative_path for info in metadata.storage_data.values()} - recorded_hashes(folder).keys():
            raise pickle.UnpicklingError(f"it refers to {sorted(foreign)[0]!r:.80}, which has no checksum")
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """An unpickler that knows the classes of torch's metadata and no others."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which describes no tensor")
        return super().find_class(module, name)
