"""How many floating-point operations a computation takes: matrix products, convolutions, attention."""

from collections.abc import Callable
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Counter(TorchDispatchMode):
    """Counts as `FlopCounterMode` does, without its books by module, which do not bear gradients at inner tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def count_flops(action: Callable[[], None]) -> int:
    """Run something, and count; attention is spelt out in products, since not every kernel of it is known."""
    with _Counter() as counter, sdpa_kernel(SDPBackend.MATH):
        action()
    return counter.total
