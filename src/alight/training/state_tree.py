"""The state of a run as nested dictionaries, taken apart into plain data and tensors by their paths, and back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Keys = tuple[str | int, ...]  # of the dictionaries on the way to a tensor
Shapes = dict[Keys, tuple[tuple[int, ...], torch.dtype]]


def split(state: Mapping[Any, Any]) -> tuple[dict[Any, Any], dict[Keys, Tensor]]:
    """Divide a state into the same dictionaries without tensors, and the tensors by their paths."""
    plain: dict[Any, Any] = {}
    tensors: dict[Keys, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            tensors[(key,)] = value
        elif isinstance(value, Mapping):
            plain[key], inner = split(value)
            tensors |= {(key, *path): tensor for path, tensor in inner.items()}
        else:
            plain[key] = value
    return plain, tensors


def join(plain: Mapping[Any, Any], tensors: Mapping[Keys, Tensor]) -> dict[Any, Any]:
    """Put a state together again; `plain` is not changed."""
    state = {key: join(value, {}) if isinstance(value, Mapping) else value for key, value in plain.items()}
    for (*way, last), tensor in tensors.items():
        place = state
        for key in way:
            place = place.setdefault(key, {})
        place[last] = tensor
    return state


def shapes_of(tensors: Mapping[Keys, Tensor]) -> Shapes:
    """Shapes and types of tensors; those of the whole where they are divided among processes."""
    return {path: (tuple(tensor.shape), tensor.dtype) for path, tensor in tensors.items()}
