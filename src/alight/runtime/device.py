"""Devices and precision: the only file that decides on them."""

import functools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._triton import has_triton

from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.hardware import matrix_product_rate

CLEARLY_FASTER = 1.5  # times the rate of matrix products in fp32, from which a network gains by bf16, too
MOST_GRAPHS = 64  # compiled for one kind of block: up to four, for batches of different sizes, of each of its shapes
AttentionKernel = Literal["flash", "efficient", "cudnn", "products"]
_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "products": SDPBackend.MATH,
}


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


def default_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """`bf16` on a CUDA device with instructions for it, `fp32` on any other device."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


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
    """The precision policy of a forward pass: `fp32` is a no-op, `bf16` autocasts matrix products.

    Raises:
        ValueError: the precision is no type, such as `auto`, of which a run must first make one.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"A forward pass runs in fp32 or bf16, not in {precision}.")
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A part of a forward pass whose matrix products keep the precision of their inputs."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)  # meta has none


def narrow_weights(network: nn.Module, precision: str) -> None:
    """Hold the weights of a network in bf16 where that is the precision; in fp32 they stay as they are."""
    if precision == "bf16":
        nn.Module.to(network, torch.bfloat16)  # diffusers' own `to` warns of modules that its networks may have


def by_its_weights(network: nn.Module) -> AbstractContextManager[object]:
    """A pass through a network in the type of its weights, where they are narrow already.

    On CUDA, autocast takes norms in float32, and the activations with them; what narrow weights save is then lost.
    """
    weight = next(network.parameters())
    return nullcontext() if weight.dtype == torch.float32 else without_autocast(weight.device)


def order_for_convolutions(network: nn.Module) -> None:
    """Order the weights of a network as its convolutions are fastest in inference.

    Channels last take up to a third less time on a CPU; on a GPU, whose norms give channels first, a third more.
    """
    if next(network.parameters()).device.type == "cpu":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks this one


# --- products of float32 ------------------------------------------------------------------------------------------


def fast_float32(device: torch.device) -> AbstractContextManager[None]:
    """The work of a command: on CUDA, convolutions and matrix products of float32 run in TF32, which has ten bits.

    On other devices nothing changes.
    """
    return _products_of_float32(tf32=True) if device.type == "cuda" else nullcontext()


def full_float32() -> AbstractContextManager[None]:
    """Convolutions and matrix products in full float32, for numbers that are compared with others' numbers."""
    return _products_of_float32(tf32=False)


@contextmanager
def _products_of_float32(tf32: bool) -> Iterator[None]:
    """Allow or forbid TF32 within a block, and leave everything as it was.

    PyTorch has two ways to say so, and refuses to read the older one after the newer one was used. The older one is
    taken where it can be read, because compilers read it; the newer one where the caller has used that.
    """
    older, newer = _read_older(), [(place, place.fp32_precision) for place in _newer_places()]
    try:
        if older is None:
            for place, _ in newer:
                place.fp32_precision = "tf32" if tf32 else "ieee"
        else:
            _set_older("high" if tf32 else "highest", tf32)
        yield
    finally:
        if older is not None:
            _set_older(*older)
        for place, before in newer:
            if place.fp32_precision != before:
                place.fp32_precision = before


def _newer_places() -> list[Any]:
    """The operations whose precision the newer way sets one by one."""
    backends: Any = torch.backends
    return [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul]


def _read_older() -> tuple[str, bool] | None:
    """The older settings, of matrix products and of convolutions; None where the newer ones were used."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_older(products: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


# --- kernels ------------------------------------------------------------------------------------------------------


def attention_kernel(name: AttentionKernel | None) -> AbstractContextManager[None]:
    """Attention by this kernel within a block.

    Args:
        name: `products` computes it as plain matrix products, the only kernel with derivatives in forward mode and
            with a known number of operations. None leaves the choice to PyTorch, which takes the fastest that it
            knows for the device, the type and the shape.
    """
    context: AbstractContextManager[None] = nullcontext() if name is None else sdpa_kernel(_KERNELS[name])
    return context


def can_compile(device: torch.device) -> bool:
    """Tell if blocks can be compiled for a CUDA device: Triton knows it, and there is a C compiler."""
    compilers = os.environ.get("CC"), shutil.which("cc"), shutil.which("gcc"), shutil.which("clang")
    return device.type == "cuda" and any(compilers) and has_triton()


def compile_blocks(
    blocks: Iterable[nn.Module],
    differentiated_twice: bool = False,
    fixed_size: bool = False,
    backend: str | Callable[..., Any] = "inductor",
) -> None:
    """Compile modules in place; equal blocks share one compilation and run nearly as fast as one full graph.

    The first batch compiles for its size and the first of another size for all sizes, so that the last batch of a
    data set, or every batch of a server, costs no compilation of its own.

        compile_blocks(pipeline.transformer.all_blocks)

    Args:
        blocks: the modules.
        differentiated_twice: gradients are taken through the same graph more than once, so that a backward pass must
            not reuse the memory of what the forward pass has saved.
        fixed_size: compile for every size apart. Blocks of one kind that differ in width, as a tokenizer's do, else
            share graphs for all sizes, which are slower; worth it where batches are all of one size but the last.
        backend: of `torch.compile`; `aot_eager` traces forward and backward pass and generates no code.
    """
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, MOST_GRAPHS)  # beyond it blocks would run as they are
    if differentiated_twice:
        torch._functorch.config.donated_buffer = False
    for block in blocks:
        block.compile(backend=backend, dynamic=False if fixed_size else None)
