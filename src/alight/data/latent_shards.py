"""One shard of latents: a safetensors file, written whole or not at all and read by memory map.

Published readers know three of its tensors: `latents` (n, C, h, w), `latents_flip` (the same of the mirrored images,
optional) and `labels` (n,). Where the posterior's moments are stored instead of a sample, those are the means, and
beside them lie the log-variances, `latents_logvar` and `latents_flip_logvar`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from alight.data.latent_statistics import ChannelStatistics
from alight.runtime.errors import InputError
from alight.runtime.files import explained_disk_errors, file_hash

LATENTS, MIRRORED, LABELS = "latents", "latents_flip", "labels"
LOGVAR = {LATENTS: "latents_logvar", MIRRORED: "latents_flip_logvar"}  # of the means under the other name

_AT_ONCE = 1_000  # images whose statistics are computed in one piece
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64}


def shard_name(number: int) -> str:
    """The file of shard `number`, from 0; names sort like numbers."""
    return f"latents_{number:05d}.safetensors"


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a shard under a temporary name, bring it to the disk, and give it its name.

    Returns:
        What an index says of it: file, count, shape, dtype, names of the tensors, checksum, and the statistics of the
        `latents` as stored.

    Raises:
        InputError: latents are not finite, or the disk refuses.
    """
    if not all(values.isfinite().all() for values in tensors.values()):
        raise InputError(
            f"Some latents of {path.name} are not finite in {_dtype_name(tensors)}, so nothing of this shard was "
            "kept. Store latents as fp32 or bf16; if that does not help, the tokenizer itself has diverged."
        )
    temporary = path.with_name(f".{path.name}.writing")  # what a killed process leaves is written over
    with explained_disk_errors(path.parent):
        try:
            save_file(dict(tensors), temporary)
            digest, statistics = file_hash(temporary), shard_statistics(map_shard(temporary))
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return {
        "file": path.name,
        "count": len(tensors[LABELS]),
        "shape": list(tensors[LATENTS].shape[1:]),
        "dtype": _dtype_name(tensors),
        "tensors": sorted(tensors),
        "sha256": digest,
        "statistics": statistics.to_dict(),
    }


def shard_statistics(maps: Mapping[str, np.ndarray]) -> ChannelStatistics:
    """Statistics of a shard's `latents`, not the mirrored ones; of moments, those that samples will have."""
    latents, logvar = maps[LATENTS], maps.get(LOGVAR[LATENTS])
    statistics = ChannelStatistics(latents.shape[1])
    for start in range(0, len(latents), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        variance = None if logvar is None else as_tensor(logvar[part].copy()).double().exp()
        statistics.update(as_tensor(latents[part].copy()), variance)
    return statistics


def map_shard(path: Path) -> dict[str, np.ndarray]:
    """Memory maps of all tensors of a safetensors file, from the offsets in its header; bf16 shows as uint16.

    Raises:
        InputError: the file is missing, truncated, too long or of another format, or is no shard of latents.
    """
    try:
        contents = np.asarray(np.memmap(path, np.uint8, mode="r"))
        start = 8 + int.from_bytes(contents[:8].tobytes(), "little")
        if start > len(contents):
            raise ValueError("the header is cut off")
        header = json.loads(contents[8:start].tobytes())
        header.pop("__metadata__", None)
        maps = {name: _map_tensor(contents[start:], entry) for name, entry in header.items()}
        if sum(array.nbytes for array in maps.values()) != len(contents) - start:
            raise ValueError("the tensors do not fill the file")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a complete shard of latents ({error}). Extract the latents again, or restore the file."
        ) from error
    if not {LATENTS, LABELS} <= maps.keys() or not len(maps[LABELS]) == len(maps[LATENTS]) > 0:
        raise InputError(
            f"{path} is no shard of latents: it needs 'latents' and as many 'labels', but holds "
            f"{', '.join(list(maps)[:4]) or 'nothing'}. Give a folder with shards alone."
        )
    for name in {MIRRORED, *LOGVAR.values()} & maps.keys():
        if (maps[name].shape, maps[name].dtype) != (maps[LATENTS].shape, maps[LATENTS].dtype):
            raise InputError(f"{path} holds '{name}' of another shape or type than 'latents'. Extract them again.")
    return maps


def as_tensor(array: np.ndarray) -> Tensor:
    """Rows of a memory map that have been copied, without another copy; uint16 is bf16."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def _map_tensor(data: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    (begin, end), shape = entry["data_offsets"], entry["shape"]
    if min(begin, end, *shape) < 0:
        raise ValueError("a size is negative")
    return data[begin:end].view(_NUMPY[entry["dtype"]]).reshape(shape)


def _dtype_name(tensors: Mapping[str, Tensor]) -> str:
    return str(tensors[LATENTS].dtype).removeprefix("torch.")
