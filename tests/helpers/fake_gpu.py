"""A GPU that is not there: its tensors have shape and type, no values, and follow the autocast of CUDA.

Tensors on the meta device know no autocast, and that of the CPU has other rules. Backward passes are left out, since
PyTorch's engine asks a driver for streams: every gradient is empty.
"""

import ctypes
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)  # with its number: without one, a driver would be asked for the current device
ROOM = 80 * 2**30  # bytes of its memory
_CUDA, _META = 1, 14  # in PyTorch's list of kinds of devices
_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Let tensors on `GPU` be made and computed with, in whole training steps."""
    with pytest.MonkeyPatch.context() as patch, _guarded():
        if not torch.cuda.is_available():
            patch.setattr(importlib.import_module("torch.cuda.amp.common"), "amp_definitely_not_available", bool)
            patch.setattr(torch.cuda, "is_bf16_supported", lambda *arguments, **options: True)
            patch.setattr(torch.cuda, "mem_get_info", lambda *arguments: (ROOM, ROOM))
        patch.setattr(torch.autograd, "grad", _empty_gradients)
        patch.setattr(torch.autograd, "backward", _no_backward)
        patch.setattr(torch, "nonzero", _a_row)
        patch.setattr(Tensor, "backward", _no_backward)
        with FakeTensorMode(allow_non_fake_inputs=True), _RealHost():
            yield


class _RealHost(TorchDispatchMode):
    """Lets tensors on the CPU stay real, such as time grids and random numbers."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        fake = any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs)))
        if fake or torch.device(kwargs.get("device") or "cpu").type == "cuda":
            return function(*args, **kwargs)
        with no_dispatch():
            return function(*args, **kwargs)


def _empty_gradients(outputs: Any, inputs: Any, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(each) for each in ([inputs] if isinstance(inputs, Tensor) else inputs))


def _a_row(condition: Tensor, as_tuple: bool) -> tuple[Tensor, ...]:
    """The first element, since the values do not say which."""
    return tuple(torch.zeros(1, dtype=torch.int64, device=condition.device) for _ in condition.shape)


def _no_backward(*arguments: Any, **options: Any) -> None:
    """Nothing."""


@contextmanager
def _guarded() -> Iterator[None]:
    """Lend CUDA the guard of the meta device, which guards nothing, where PyTorch was built without CUDA."""
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    if torch.backends.cuda.is_built():
        yield
        return
    if not library.exists():
        pytest.skip("PyTorch's libraries have other names here")
    registry = (ctypes.c_void_p * 20).in_dll(ctypes.CDLL(str(library)), _REGISTRY)
    before, registry[_CUDA] = registry[_CUDA], registry[_META]
    try:
        yield
    finally:
        registry[_CUDA] = before


def empty_on_gpu(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, strides and type on `GPU`."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU)


def move_to_gpu(module: nn.Module) -> Any:
    """Replace all weights and buffers of a module by such tensors; it cannot be used outside any more."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(empty_on_gpu(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = empty_on_gpu(buffer)
    return module
