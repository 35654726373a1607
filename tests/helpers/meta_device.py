"""The meta device as a stand-in for an accelerator: shapes and types without values, and the rules of a real device.

An operation that meets tensors on two devices is refused, as CUDA refuses it. Questions that only values can answer
get a plausible answer, and the place in the package that asked is noted, since there the host would wait.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alight.training import optimizer
from helpers.places import Place, calling_place

META = torch.device("meta")

aten = torch.ops.aten
ROWS = (aten.nonzero, aten.masked_select, aten._unique2)  # as many as the values say
MOVES = (aten.copy_, aten._to_copy, aten._foreach_copy_)


class StrandedTensorError(RuntimeError):
    """A tensor lies on another device than the others of an operation."""


class AcceleratorRules(TorchDispatchMode):
    """Within it, operations on the meta device keep the rules of an accelerator.

    Attributes:
        waits: where the host would have waited for the device, and for what.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: dict[Place, set[str]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, packet = dict(kwargs or {}), function.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(tensor.is_meta for tensor in tensors):
            return function(*args, **kwargs)
        if packet in MOVES:
            return self._moved(function, args, kwargs)
        stranded = [tensor for tensor in tensors if not tensor.is_meta and tensor.ndim > 0]
        if stranded:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in stranded)
            raise StrandedTensorError(f"{packet} in {calling_place()} meets tensors left on the CPU: {shapes}.")
        if packet is aten._local_scalar_dense:
            self._wait("item")
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].is_floating_point() else 1)
        if packet is aten.equal:
            self._wait("equal")
            return True
        if packet in ROWS:
            self._wait(packet.__name__)
            return torch.zeros(len(args[0]), args[0].ndim, dtype=torch.int64, device=META)
        return function(*args, **kwargs)

    def _moved(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A copy, perhaps to another device; what comes back to the host is made up."""
        to_host = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        if function.overloadpacket is aten.copy_:
            to_host = not args[0].is_meta
        if not to_host:
            return function(*args, **kwargs)
        if not (kwargs.get("non_blocking") or (function.overloadpacket is aten.copy_ and args[2:] == (True,))):
            self._wait("copy to the host")
        if function.overloadpacket is aten.copy_:
            return args[0].zero_()
        return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)

    def _wait(self, question: str) -> None:
        self.waits.setdefault(calling_place(), set()).add(question)


def use_fused_optimizers(patch: pytest.MonkeyPatch) -> None:
    """Let fused optimizers take parameters on the meta device, too: only a check keeps them out."""
    checks = sys.modules["torch.optim.optimizer"]
    patch.setattr(checks, "_get_fused_kernels_supported_devices", lambda: ["cuda", "mps", "cpu", "meta"])
    patch.setattr(optimizer, "SKIPPED_BY_KERNELS", ("cpu", "cuda", "meta"), raising=False)


@contextmanager
def optimizers_on_meta() -> Iterator[None]:
    """The same for the length of a block."""
    with pytest.MonkeyPatch.context() as patch:
        use_fused_optimizers(patch)
        yield
