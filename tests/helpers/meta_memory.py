"""The memory that a calculation on meta tensors would need, without taking any of it."""

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MetaMemory(TorchDispatchMode):
    """Count the bytes of all tensors that are alive within a block.

    Attributes:
        peak: the most of them at any moment, without those that were there before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._alive = 0, {}  # type: int, dict[int, int]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it has allocated."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and (storage := value.untyped_storage())._cdata not in self._alive:
                self._alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return result
