"""Devices and precision: the only file that decides on them."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from alight.runtime.errors import InputError


def resolve_device(name: str) -> torch.device:
    """The device behind `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        InputError: if the device is not on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"Device {name} was asked for, but this machine shows {torch.cuda.device_count()} CUDA devices; "
            "use --device auto, or install a PyTorch build that fits the driver."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("Device mps was asked for, but it is not available here; use --device auto.")
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The precision policy of a forward pass: `fp32` is a no-op, `bf16` autocasts matrix products."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """An island in a forward pass where matrix products keep the precision of what they are given."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)  # meta has none


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and matrix products with all digits of float32: on CUDA, convolutions have ten bits by default."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile each of some modules in place: for a transformer's blocks, near full-graph speed for one's time."""
    for block in blocks:
        block.compile()
