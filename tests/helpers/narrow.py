"""A tensor that behaves as on a device without float64, such as Apple's: to be widened, it must be on the CPU."""

from typing import Any

import torch
from torch import Tensor


class NarrowTensor(Tensor):
    """Refuses float64, and so does all that is computed from it; `cpu` and `tolist` give ordinary values."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, and refuse its result where the device could not hold it."""
        if func is Tensor.cpu or (func is Tensor.to and "cpu" in map(str, args[1:])):
            return args[0].as_subclass(Tensor).to(*args[1:], **(kwargs or {}))
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, NarrowTensor) and result.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return result


def narrow(tensor: Tensor) -> NarrowTensor:
    """The same numbers as if they were on such a device."""
    return tensor.as_subclass(NarrowTensor)
