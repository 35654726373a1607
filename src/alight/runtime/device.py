"""Devices and precision: the only file that decides on them."""

import functools
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn

from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.hardware import matrix_product_rate

CLEARLY_FASTER = 1.5  # times the rate of matrix products in fp32, from which a network gains by bf16, too


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
        count = torch.cuda.device_count()
        remedy = f"choose one of cuda:0 to cuda:{count - 1}" if count else "install a PyTorch that fits the driver"
        raise InputError(
            f"Device {name} is not available: PyTorch finds {count} CUDA devices; use --device auto, or {remedy}."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("Device mps is not available on this machine; use --device auto.")
    return device


def faster_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """`bf16` where the device multiplies matrices clearly faster in it, else `fp32`; measured, in about a second."""
    return "bf16" if bf16_advantage(device) >= CLEARLY_FASTER else "fp32"


def warn_of_slow_precision(device: torch.device, precision: str) -> None:
    """Say so where bf16 is slower than fp32: a processor without instructions for it takes a hundred times as long."""
    if precision == "bf16" and (advantage := bf16_advantage(device)) < 1:
        log.warning(
            "%s multiplies matrices %.3g times as slowly in bf16 as in fp32; use precision fp32 here.",
            "This CPU" if device.type == "cpu" else device,
            1 / advantage,
        )


@functools.cache
def bf16_advantage(device: torch.device) -> float:
    """The rate of matrix products in bf16, as a multiple of that in fp32."""
    return matrix_product_rate(device, "bf16") / matrix_product_rate(device, "fp32")


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
