"""Torch files of other code: read without executing anything in them, recognised, and written whole or not at all."""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alight.models.pretrained import read_safetensors
from alight.runtime.errors import InputError
from alight.runtime.files import explained_disk_errors

DISTRIBUTED_PREFIX = "module."
# The start of a tensor's name -> what holds such a tensor; the first match in this order is taken.
SIGNATURES = {
    "x_embedder.": "a published LightningDiT, which converts as a transformer",
    "encoder.down.": "a published VA-VAE, which converts as a tokenizer",
    "encoder.down_blocks.": "a tokenizer in the layout of diffusers, whose folder opens without conversion",
    "patch_embed.": "a transformer of this package, whose folder opens without conversion",
    "latents": "a shard of latents, whose folder converts as latents",
    "mean": "statistics of latents",
}


def read_torch_file(path: str | Path) -> Any:
    """The contents of a `.pt`, `.pth`, `.ckpt` or `.safetensors` file, tensors on the CPU and mapped where possible.

    Raises:
        InputError: there is no such file, it is damaged or of another kind, or it would have to execute code.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, but a published checkpoint is one file. A folder opens with from_pretrained."
        )
    if not path.is_file():
        raise InputError(f"There is no file {path}. Check the path, or download the checkpoint first.")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can raise anything
        foreign = re.search(r"Unsupported (?:global|class): (?:GLOBAL )?([\w.]+)|GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and foreign:
            raise InputError(
                f"{path} asks for '{foreign[1] or foreign[2]}' to be executed while it is read, which a file of "
                "weights has no need of; it was refused. If you trust its maker, let them save the tensors alone, "
                "for example as safetensors."
            ) from error
        raise InputError(
            f"{path} is not a complete torch file ({type(error).__name__}: {' '.join(str(error).split())[:120]}). It "
            "was cut off while it was copied or downloaded, or it is a file of another kind; get it again."
        ) from error


def select_weights(contents: Any, entry: str | None = None, *, source: Any = "the file") -> dict[str, Tensor]:
    """The state dict inside a training checkpoint, or a bare one, under names without the prefix `module.`.

    Args:
        contents: what `read_torch_file` returned.
        entry: the name of the entry; None takes `ema`, else `model`, else `state_dict`, else the contents themselves.
        source: what an error message names as the origin.

    Raises:
        InputError: there is no such entry, or it holds other things than tensors.
    """
    entries = [name for name in ("ema", "model", "state_dict") if isinstance(contents, Mapping) and name in contents]
    if entry is not None and entry not in entries:
        raise InputError(
            f"{source} has no entry {entry!r}"
            + (
                f"; choose one of {', '.join(entries)}."
                if entries
                else ": it is no training checkpoint. Leave the choice out."
            )
        )
    state = contents[entry or entries[0]] if entries else contents
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{source} holds no state dict (names with tensors); give a checkpoint of model weights.")
    if all(name.startswith(DISTRIBUTED_PREFIX) for name in state):
        return {name.removeprefix(DISTRIBUTED_PREFIX): value for name, value in state.items()}
    return dict(state)


def describe_weights(state: Mapping[str, Tensor]) -> str:
    """A sentence on what these tensors look like by their names, for messages about having got the wrong ones."""
    for start, kind in SIGNATURES.items():
        if any(name.startswith(start) for name in state):
            return f"It looks like {kind}."
    return f"It holds {len(state)} tensors such as {', '.join(list(state)[:3])}."


def write_torch_file(contents: Any, path: str | Path) -> None:
    """Save with torch so that the file appears complete or not at all.

    Raises:
        InputError: the path is a folder, or it cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, but a published checkpoint is one file. Give a file name such as model.pt."
        )
    partial = path.with_name(f".{path.name}.partial")
    try:
        with explained_disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(contents, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        if partial.is_file():
            partial.unlink()
