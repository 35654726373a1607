"""The memory of a GPU, counted on the meta device, where nothing takes any."""

import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

PRODUCTS = (F.linear, F.conv2d, F.scaled_dot_product_attention)  # in bf16, see the tables of the autocast rules
NORMS = (F.rms_norm, F.layer_norm, F.group_norm, F.cosine_similarity)  # in float32
PROMOTED = (torch.addcmul,)  # in the widest type of their operands


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors on the meta device that were made within it and are still referred to.

    Attributes:
        now: of them at this moment.
        peak: the most there have been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _free(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.now -= size

    def reset_peak(self) -> None:
        """Begin again from what is there now."""
        self.peak = self.now


class CUDAAutocast(TorchFunctionMode):
    """The casts of CUDA's autocast to bf16 on the meta device, which has none itself."""

    def __init__(self) -> None:
        super().__init__()
        self._narrow: dict[int, Tensor] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = (args, dict(kwargs or {}))
        if function in PRODUCTS:
            given = tree_map(self._narrowed, given)
        elif function in NORMS:
            given = tree_map(lambda leaf: leaf.float() if is_floating(leaf) else leaf, given)
        elif function in PROMOTED and any(is_floating(leaf) and leaf.dtype == torch.float32 for leaf in args):
            given = tree_map(lambda leaf: leaf.float() if is_floating(leaf) else leaf, given)
        return function(*given[0], **given[1])

    def _narrowed(self, leaf: Any) -> Any:
        if not is_floating(leaf):
            return leaf
        if leaf.is_leaf and leaf.requires_grad:  # weights are cast once in a forward pass
            return self._narrow.setdefault(id(leaf), leaf.bfloat16())
        return leaf.bfloat16()


def is_floating(leaf: Any) -> bool:
    """Tell if it is a tensor of real numbers."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def use_fused_attention(patch: pytest.MonkeyPatch) -> None:
    """Let attention on the meta device keep what the fused kernel of a GPU keeps, instead of a matrix of weights."""

    def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    patch.setattr(F, "scaled_dot_product_attention", fused)
    patch.setattr("helpers.live_memory.PRODUCTS", (F.linear, F.conv2d, fused))
