"""Ceilings of a device: matrix products, copies, and attention by each of its kernels."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from alight.runtime.device import fast_float32, full_float32
from benchmarks.device_meter import DeviceMeter, reason
from benchmarks.device_table import Row

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "plain": SDPBackend.MATH,
}


def ceilings(meter: DeviceMeter) -> Iterator[Row]:
    """Products of random matrices in every precision, and a copy within the memory."""
    size, on_gpu = meter.sizes.matrix, meter.device.type == "cuda"
    contexts = {"bf16": nullcontext(), "tf32": fast_float32(meter.device), "fp32": full_float32()}
    for name, context in contexts.items():
        if name == "tf32" and not on_gpu:
            continue
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        a, b = (torch.randn(size, size, device=meter.device).to(dtype) for _ in range(2))
        with context:
            row = Row("matrix product", f"{size} x {size}", name, flops=2.0 * size**3)
            row = replace(meter.timed(row, partial(torch.mm, a, b)), ceiling=0.0)  # it is one
        meter.ceilings[name] = 2.0 * size**3 / min(row.seconds)
        yield row
    source = torch.randn(meter.sizes.copied // 4, device=meter.device)
    target = torch.empty_like(source)
    row = meter.timed(Row("copy in memory", "read and written", ""), partial(target.copy_, source))
    rate = 2 * meter.sizes.copied / min(row.seconds)
    yield Row(row.work, row.contender, "", seconds=row.seconds, remark=f"{rate / 1e12:.2f} TB/s")


def attention(meter: DeviceMeter) -> Iterator[Row]:
    """Forward and backward pass of the transformer's attention, by each kernel that takes it."""
    model = meter.transformer()
    heads, tokens = model.config.num_heads, model.grid.height * model.grid.width
    width, batch = model.config.hidden_size // heads, meter.sizes.process_batch
    del model
    shape = (batch, heads, tokens, width)
    query, key, value, gradient = (
        torch.randn(shape, device=meter.device, dtype=torch.bfloat16, requires_grad=True) for _ in range(4)
    )
    flops = 3.5 * 4 * batch * heads * tokens**2 * width  # two products forward, five backward

    def both_passes() -> None:
        torch.autograd.grad(F.scaled_dot_product_attention(query, key, value), (query, key, value), gradient.detach())

    for name, backend in {"torch's choice": None, **BACKENDS}.items():
        row = Row(f"attention {shape}", name, "bf16", batch, flops=flops)
        try:
            if backend is None:
                yield meter.timed(row, both_passes)
                continue
            with sdpa_kernel(backend):
                yield meter.timed(row, both_passes)
        except RuntimeError as error:  # no kernel of this kind for the device, the shape or the type
            yield Row(row.work, name, "bf16", batch, remark=reason(error))
