"""One shard of latents: a safetensors file, written atomically and read by memory map.

Published readers use three of its tensors: `latents` (n, C, h, w), `latents_flip` (of the mirrored images, optional)
and `labels` (n,). If the posterior's moments are stored instead of a sample, the latents are the means, and the
log-variances are `latents_logvar` and `latents_flip_logvar`.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from pydantic import ConfigDict, Field, with_config
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from alight.data.latent_statistics import ChannelStatistics
from alight.runtime.errors import InputError
from alight.runtime.files import explained_disk_errors, file_hash
from alight.runtime.reading import check_values, require_regular

LATENTS, MIRRORED, LABELS = "latents", "latents_flip", "labels"
LOGVAR = {LATENTS: "latents_logvar", MIRRORED: "latents_flip_logvar"}  # name of the means -> of the log-variances

Measured = TypeVar("Measured")
MAX_CLASSES = 1_000_000  # a larger label is a mistake, and that many class names would fill the memory

_HEADER_LIMIT = 16 * 2**20  # bytes; that of a shard takes a few hundred
_AT_ONCE = 1_000  # images whose statistics are computed together
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64}


def shard_name(number: int) -> str:
    """The file of shard `number`, from 0; names sort like numbers."""
    return f"latents_{number:05d}.safetensors"


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a shard atomically and durably.

    Returns:
        Its record: file, count, shape, dtype, names of the tensors, checksum, and the statistics of the `latents` as
        stored.

    Raises:
        InputError: latents are not finite, or the disk refuses.
    """
    if not all(values.isfinite().all() for values in tensors.values()):
        raise InputError(
            f"Some latents of {path.name} are not finite in {_dtype_name(tensors)}, so the shard was not written. "
            "Store latents as fp32 or bf16; if that does not help, the tokenizer itself has diverged."
        )
    digest, statistics = write_tensors(path, tensors, measure=lambda place: shard_statistics(map_shard(place)))
    return {
        "file": path.name,
        "count": len(tensors[LABELS]),
        "shape": list(tensors[LATENTS].shape[1:]),
        "dtype": _dtype_name(tensors),
        "tensors": sorted(tensors),
        "sha256": digest,
        "statistics": statistics.to_dict(),
    }


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    measure: Callable[[Path], Measured],
    metadata: dict[str, str] | None = None,
) -> tuple[str, Measured]:
    """Write a safetensors file atomically and durably.

    Returns:
        Its SHA-256, and what `measure` found in the file before it had its name.

    Raises:
        InputError: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.writing")  # what a killed process leaves is written over
    with explained_disk_errors(path.parent):
        try:
            save_file(dict(tensors), temporary, metadata)
            digest, measured = file_hash(temporary), measure(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return digest, measured


def shard_statistics(maps: Mapping[str, np.ndarray]) -> ChannelStatistics:
    """Statistics of a shard's `latents`, not the mirrored ones; of moments, those expected of samples."""
    latents, logvar = maps[LATENTS], maps.get(LOGVAR[LATENTS])
    statistics = ChannelStatistics(latents.shape[1])
    for start in range(0, len(latents), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        variance = None if logvar is None else as_tensor(logvar[part].copy()).double().exp()
        statistics.update(as_tensor(latents[part].copy()), variance)
    return statistics


@with_config(ConfigDict(strict=True))
class _Entry(TypedDict):
    """The entry of one tensor in the header of a safetensors file."""

    dtype: str
    shape: list[Annotated[int, Field(ge=0)]]
    data_offsets: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


def map_shard(path: Path) -> dict[str, np.ndarray]:
    """Memory maps of all tensors of a safetensors file, from the offsets in its header; bf16 shows as uint16.

    Raises:
        InputError: the file is missing, truncated, too long or of another format, its tensors overlap, or it is not a
            shard of latents.
    """
    maps, _ = map_tensors(path)
    _require_latents(path, maps)
    return maps


def map_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Memory maps of all tensors of any safetensors file, as `map_shard`, and its metadata.

    Raises:
        InputError: the file is missing, truncated, too long or of another format, or its tensors overlap.
    """
    try:
        require_regular(path)
        contents = np.asarray(np.memmap(path, np.uint8, mode="r"))
        header, data, metadata = _split(contents)
        return {name: _map_tensor(data, entry) for name, entry in header.items()}, metadata
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(
            f"{path} is not a complete shard of latents ({error}). Extract the latents again, or restore the file."
        ) from error


def require_finite(path: Path, maps: Mapping[str, np.ndarray]) -> None:
    """Read all latents of a shard and refuse NaN and infinity.

    Raises:
        InputError: names the file and the tensor.
    """
    for name in (LATENTS, MIRRORED, *LOGVAR.values()):
        if name in maps and not all(part.isfinite().all() for part in _parts(maps[name])):
            raise InputError(
                f"{path} holds '{name}' with NaN or infinity, which cannot be trained on. Extract the latents again, "
                "in fp32 or bf16; if that does not help, the tokenizer itself has diverged."
            )


def as_tensor(array: np.ndarray) -> Tensor:
    """Copied rows of a memory map as a tensor that shares their memory; uint16 is bf16."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def _split(contents: np.ndarray) -> tuple[dict[str, _Entry], np.ndarray, dict[str, str]]:
    """The checked header of a safetensors file, the bytes that its tensors must fill without a gap, and metadata."""
    size = int.from_bytes(contents[:8].tobytes(), "little")
    if size > _HEADER_LIMIT or 8 + size > len(contents):
        raise ValueError("the header is truncated, or too long")
    values = json.loads(contents[8 : 8 + size].tobytes())
    metadata = values.pop("__metadata__", None)
    header = check_values(values, dict[str, _Entry], "its header", "")
    data, position = contents[8 + size :], 0
    for begin, end in sorted(entry["data_offsets"] for entry in header.values()):
        if begin != position or end < begin:
            raise ValueError("the tensors overlap, or leave a gap")
        position = end
    if position != len(data):
        raise ValueError("the tensors do not fill the file")
    return header, data, metadata if isinstance(metadata, dict) else {}


def _map_tensor(data: np.ndarray, entry: _Entry) -> np.ndarray:
    (begin, end), kind = entry["data_offsets"], entry["dtype"]
    if kind not in _NUMPY:
        raise ValueError(f"a tensor is of type {kind}; known are {', '.join(_NUMPY)}, and I64 for labels")
    if begin % np.dtype(_NUMPY[kind]).itemsize:
        raise ValueError("a tensor begins within a number")
    return data[begin:end].view(_NUMPY[kind]).reshape(entry["shape"])


def _require_latents(path: Path, maps: Mapping[str, np.ndarray]) -> None:
    """Refuse tensors that are not latents with labels."""
    if not {LATENTS, LABELS} <= maps.keys():
        raise InputError(
            f"{path} is not a shard of latents: it needs 'latents' and as many 'labels', but holds "
            f"{', '.join(list(maps)[:4]) or 'nothing'}. Give a folder with nothing but shards."
        )
    latents, labels = maps[LATENTS], maps[LABELS]
    if latents.ndim != 4 or not latents.size or latents.dtype == np.int64:
        raise InputError(
            f"{path} is not a shard of latents: its 'latents' have the shape {latents.shape} and are "
            f"{'integers' if latents.dtype == np.int64 else 'numbers'}, where floating-point numbers of shape "
            "(images, channels, height, width) are needed, and at least one image. Extract them again."
        )
    if labels.dtype != np.int64 or labels.shape != latents.shape[:1]:
        raise InputError(
            f"{path} is not a shard of latents: its 'labels' have the shape {labels.shape}, where {len(latents)} "
            "integers of type I64 are needed, one per image. Write the labels again."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MAX_CLASSES:
        raise InputError(
            f"{path} holds labels from {low} to {high}, but classes are numbered from 0, and there can be at most "
            f"{MAX_CLASSES:,}. Write the labels again."
        )
    for name in {MIRRORED, *LOGVAR.values()} & maps.keys():
        if (maps[name].shape, maps[name].dtype) != (latents.shape, latents.dtype):
            raise InputError(f"{path} holds '{name}' of another shape or type than 'latents'. Extract them again.")


def _parts(array: np.ndarray) -> Iterator[Tensor]:
    for start in range(0, len(array), _AT_ONCE):
        yield as_tensor(array[start : start + _AT_ONCE].copy())


def _dtype_name(tensors: Mapping[str, Tensor]) -> str:
    return str(tensors[LATENTS].dtype).removeprefix("torch.")
