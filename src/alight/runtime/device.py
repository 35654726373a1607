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
            f"Device {name} is not available: PyTorch finds {torch.cuda.device_count()} CUDA devices; "
            "use --device auto, or install a PyTorch build that fits the driver."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("Device mps is not available on this machine; use --device auto.")
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The precision policy of a forward pass: `fp32` is a no-op, `bf16` autocasts matrix products."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A part of a forward pass whose matrix products keep the precision of their inputs."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)  # meta has none


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and matrix products in full float32: on CUDA, convolutions use TF32 by default."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def compile_blocks(blocks: Iterable[nn.Module], differentiated_twice: bool = False) -> None:
    """Compile modules in place; equal blocks share one compilation and run nearly as fast as one full graph.

    Args:
        blocks: the modules.
        differentiated_twice: gradients are taken through the same graph more than once, so that a backward pass must
            not reuse the memory of what the forward pass has saved.
    """
    if differentiated_twice:
        torch._functorch.config.donated_buffer = False
    for block in blocks:
        block.compile()
