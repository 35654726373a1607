"""Ceilings of a device: matrix products, copies, and attention by each of its kernels."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

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
    size = meter.sizes.matrix
    allowed = torch.backends.cuda.matmul.allow_tf32
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, allowed),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        if name == "tf32" and meter.device.type != "cuda":
            continue
        a, b = (torch.randn(size, size, device=meter.device).to(dtype) for _ in range(2))
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            row = meter.timed(
                Row("matrix product", f"{size} x {size}", name, flops=2.0 * size**3), partial(torch.mm, a, b)
            )
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed
        if row.seconds:
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
