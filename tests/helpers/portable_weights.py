"""Tensors that are described instead of stored: the formula of the recordings."""

import hashlib
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor


def portable_tensor(rule: dict[str, Any], seed: int) -> Tensor:
    """offset + scale * (2U - 1), U from a generator that name and seed start; checked where the rule has a hash."""
    random = np.random.RandomState((zlib.crc32(rule["name"].encode()) + seed) % 2**32)  # noqa: NPY002 (as recorded)
    uniform = random.random_sample(int(np.prod(rule["shape"], dtype=np.int64)))
    values = (rule["offset"] + rule["scale"] * (2 * uniform - 1)).astype("<f4").reshape(rule["shape"])
    assert rule.get("sha256_16") in (None, hashlib.sha256(values.tobytes()).hexdigest()[:16]), rule["name"]
    return torch.from_numpy(values)


def portable_state(case: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict that a recording's `weights` describe, without those that stay as the module makes them."""
    rules = [rule for rule in case["weights"] if not rule.get("kept")]
    return {rule["name"]: portable_tensor(rule, case["weight_seed"]) for rule in rules}
