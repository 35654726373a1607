"""Floating-point operations of training, counted by the shapes of what runs.

Networks and tensors on the meta device have shapes but neither values nor memory. What runs on them takes no time and
touches no weight, gradient or randomness, and no compiled block.
"""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from alight.runtime.device import attention_kernel

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def count_flops(work: Callable[[], object]) -> int:
    """Count the floating-point operations of the matrix products, convolutions and attention in some work.

    Unlike torch's `FlopCounterMode` it needs no hooks in the modules, which forbid gradients at inner layers.
    Attention is computed as matrix products, since not every kernel of it has a formula.
    """
    with _Counter() as counter, attention_kernel("products"):
        work()
    return counter.total


def known_flops(work: Callable[[], object]) -> int | None:
    """Count operations on the meta device; None where the work depends on values, as that of others' networks may."""
    try:
        return count_flops(work)
    except (RuntimeError, NotImplementedError):
        return None


def weightless(module: ModuleT) -> ModuleT:
    """A copy of a module on the meta device; activations are kept, since work done twice is no more work to count."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    shadow = copy.deepcopy(module, memo)
    for part in shadow.modules():
        if hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing = False  # type: ignore[assignment]
    return shadow


class _Counter(TorchDispatchMode):
    """Adds up the operations of everything that runs within it, by torch's own formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result
