"""Torch files of other code: read without executing code, recognised by their names, and written atomically."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alight.interop.safe_unpickling import HARMLESS
from alight.models.pretrained import read_safetensors
from alight.runtime.errors import InputError, one_line
from alight.runtime.files import explained_disk_errors, replacing
from alight.runtime.reading import require_regular

DISTRIBUTED_PREFIX, COMPILED_PREFIX = "module.", "_orig_mod."  # of DistributedDataParallel and of torch.compile
EXPANDED_LIMIT = 2**28  # bytes of an expanded tensor: a few bytes of a file can announce any size
ENTRIES = ("ema", "model", "state_dict")
# Prefix of a tensor's name -> the kind of file; the first match in this order is taken.
SIGNATURES = {
    "x_embedder.": "a published LightningDiT, which converts as a transformer",
    "transformer_blocks.": "a transformer of diffusers such as DiT, which predicts noise and cannot be converted",
    "encoder.down.": "a published VA-VAE, which converts as a tokenizer",
    "encoder.down_blocks.": "a tokenizer in the layout of diffusers, whose folder opens without conversion",
    "patch_embed.": "a transformer of this package, whose folder opens without conversion",
    "latents": "a shard of latents, whose folder converts as latents",
    "mean": "statistics of latents",
}


def read_torch_file(path: str | Path) -> Any:
    """Read a `.pt`, `.pth`, `.ckpt` or `.safetensors` file, tensors on the CPU and memory-mapped if possible.

    Raises:
        InputError: the file does not exist, is damaged or of another kind, or needs code to be executed.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, but a published checkpoint is one file. A folder opens with from_pretrained."
        )
    if not path.exists():
        raise InputError(f"There is no file {path}. Check the path, or download the checkpoint first.")
    require_regular(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can raise anything
        foreign = re.search(r"Unsupported (?:global|class): (?:GLOBAL )?([\w.]+)|GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and foreign:
            raise InputError(
                f"Reading {path} would execute '{foreign[1] or foreign[2]}', which weights do not need, so "
                "it was refused. Ask its author to save only the tensors, for example as safetensors."
            ) from error
        raise InputError(
            f"{path} is not a complete torch file ({type(error).__name__}: {one_line(error, 120)}). It "
            "was truncated when it was copied or downloaded, or it is a file of another kind; get it again."
        ) from error


def select_weights(contents: Any, entry: str | None = None, *, source: Any = "the file") -> dict[str, Tensor]:
    """Find the state dict in a training checkpoint, or take a bare one, without prefixes `module.` and `_orig_mod.`.

    Args:
        contents: the result of `read_torch_file`.
        entry: the name of the entry; None takes `ema`, else `model`, else `state_dict`, else the contents themselves.
            An entry that is None or empty counts as absent.
        source: the origin, for messages.

    Raises:
        InputError: there is no such entry, or it does not hold only tensors.
    """
    present = {name: contents[name] for name in ENTRIES if isinstance(contents, Mapping) and name in contents}
    entries = [name for name, value in present.items() if value is not None and value != {}]
    if entry is not None and entry not in entries:
        state = "an empty entry" if entry in present else "no entry"
        other = f"choose one of {', '.join(entries)}." if entries else "it is not a training checkpoint. Leave it out."
        raise InputError(f"{source} has {state} {entry!r}; {other}")
    if present and not entries:
        raise InputError(
            f"{source} holds no weights: its entries {' and '.join(present)} are empty. Get a checkpoint that was "
            "saved with its weights."
        )
    state_dict = contents[entry or entries[0]] if entries else contents
    refusal = f"{source} holds no state dict (names with tensors)"
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise InputError(f"{refusal}, but {_in_words(state_dict)}. Give a checkpoint of model weights.")
    for name, value in state_dict.items():
        if not isinstance(name, str) or not _is_plain(value):
            raise InputError(f"{refusal}: its {name!r} is {_in_words(value)}. Give a checkpoint of model weights.")
    return _without_wrappers(state_dict)


def _is_plain(value: Any) -> bool:
    """Tell if this is a dense tensor with stored numbers, not one expanded to a large size."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta or value.is_quantized:
        return False
    size = value.numel() * value.element_size()
    return size <= EXPANDED_LIMIT or size <= value.untyped_storage().nbytes()


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the prefixes of wrappers for training."""
    plain = {name.replace(COMPILED_PREFIX, ""): value for name, value in state.items()}
    while plain and all(name.startswith(DISTRIBUTED_PREFIX) for name in plain):
        plain = {name.removeprefix(DISTRIBUTED_PREFIX): value for name, value in plain.items()}
    return plain


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(str, list(value)[:3]))}" if value else "nothing"
    if isinstance(value, Tensor):
        return f"a tensor of {tuple(value.shape)} that does not store its numbers one by one"
    return f"of type {type(value).__name__}"


def describe_weights(state: Mapping[str, Tensor]) -> str:
    """A sentence on the likely kind of these tensors by their names, for messages about wrong ones."""
    for start, kind in SIGNATURES.items():
        if any(name.startswith(start) for name in state):
            return f"It looks like {kind}."
    return f"It holds {len(state)} tensors such as {', '.join(list(state)[:3])}."


def write_torch_file(contents: Any, path: str | Path) -> None:
    """Save with torch, atomically.

    Raises:
        InputError: the path is a folder, or it cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, but a published checkpoint is one file. Give a file name such as model.pt."
        )
    with explained_disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(contents, file)
