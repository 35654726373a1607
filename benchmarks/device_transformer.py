"""The transformer on a device: training steps, alone and as one of several processes, and sampling."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import HashStore

from alight.config import FlowConfig
from alight.models.lightning_dit import LightningDiT
from alight.options import FixedPrecision
from alight.runtime.distributed import Processes
from alight.training.ema import EMA
from alight.training.parallel import data_parallel, shard
from alight.training.transformer_step import TransformerBatch, transformer_backward
from benchmarks.cases import EMA_DECAY, Setting, Training, evaluations, example, forward_flops, sample
from benchmarks.device_meter import DeviceMeter, precisions
from benchmarks.device_table import Row

WAYS = ("eager", "compiled")


def training(meter: DeviceMeter) -> Iterator[Row]:
    """A whole step at every batch size: draws, both passes, optimizer and moving average."""
    for precision in precisions(meter):
        batches = meter.sizes.train_batches if precision == "bf16" else meter.sizes.train_batches[:1]
        for batch in batches:
            model = meter.transformer()
            for way in WAYS if precision == "bf16" or meter.device.type != "cuda" else WAYS[:1]:
                if way == "compiled":
                    meter.compile(model.blocks)
                yield training_row(meter, model, way, precision, batch)
            del model
            meter.clear()


def training_row(
    meter: DeviceMeter,
    model: LightningDiT,
    way: str,
    precision: FixedPrecision,
    batch: int,
    forward: nn.Module | None = None,
    ema: EMA[LightningDiT] | None = None,
) -> Row:
    """Time a step of a model, called through `forward` where gradients are averaged over processes."""
    latents, _, labels = example(model, batch, meter.device)
    flops = 3.0 * forward_flops(model) * batch
    step = Training(model, latents, labels, Setting(meter.device, precision, batch), forward, ema)
    return meter.timed(Row(f"train {meter.sizes.transformer['name']}", way, precision, batch, flops=flops), step)


def processes(meter: DeviceMeter) -> Iterator[Row]:
    """The same step as one process of many has it, replicated and sharded; alone, it sends no messages."""
    batch = meter.sizes.process_batch
    with group_of_one(meter.device) as alone:
        for way in ("DDP", "FSDP2"):
            model, forward = meter.transformer(), None
            ema = EMA(model, EMA_DECAY)
            meter.compile(model.blocks)
            if way == "DDP":
                forward = data_parallel(model, meter.device)
            else:
                shard(model, model.blocks, alone, "bf16", keep_gathered=True)
                shard(ema.model, ema.model.blocks, alone, "bf16")
            yield training_row(meter, model, f"{way}, compiled", "bf16", batch, forward, ema)
            del model, forward, ema
            meter.clear()


@contextmanager
def group_of_one(device: torch.device) -> Iterator[Processes]:
    """A process group of this process alone."""
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield Processes(0, 1, device)
    finally:
        dist.destroy_process_group()


def agreement(meter: DeviceMeter) -> Iterator[Row]:
    """The difference that compilation makes to loss and gradient of one step, relative to the eager ones."""
    for precision in precisions(meter):
        model = meter.transformer()
        loss, gradient = gradient_of(model, meter, precision)
        meter.compile(model.blocks)
        compiled_loss, compiled_gradient = gradient_of(model, meter, precision)
        of_gradient = float((compiled_gradient - gradient).norm() / gradient.norm())
        remark = f"loss {abs(compiled_loss / loss - 1):.1e}, gradient {of_gradient:.1e}"
        work = f"difference, {meter.sizes.transformer['name']}"
        yield Row(work, "compiled from eager", precision, meter.sizes.train_batches[0], remark=remark)
        del model, gradient, compiled_gradient
        meter.clear()


def gradient_of(model: LightningDiT, meter: DeviceMeter, precision: FixedPrecision) -> tuple[float, Tensor]:
    """Loss and gradient (P,) of a model on a fixed batch."""
    batch, generator = meter.sizes.train_batches[0], torch.Generator(meter.device).manual_seed(0)
    shape = example(model, batch, torch.device("meta"))[0].shape
    x_1, x_0 = (torch.randn(shape, generator=generator, device=meter.device) for _ in range(2))
    t = torch.rand(batch, generator=generator, device=meter.device)
    labels = torch.arange(batch, device=meter.device) % model.config.num_classes
    model.zero_grad(set_to_none=True)
    terms = transformer_backward(model, TransformerBatch(x_1, labels, t, x_0, labels), FlowConfig(), precision)
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return float(terms["loss"]), torch.cat(gradients).clone()


def sampling(meter: DeviceMeter) -> Iterator[Row]:
    """Noise to latents by Euler's method with guidance, in the published setting, with the weights in bf16."""
    model = meter.transformer().eval().bfloat16()
    batch = meter.sizes.sample_batch
    noise, _, labels = example(model, batch, meter.device)
    flops = forward_flops(model) * batch
    for way in WAYS:
        if way == "compiled":
            meter.compile(model.blocks)
        # the longest takes a minute or more in eager mode, and says nothing that the shorter ones do not
        for steps in meter.sizes.sample_steps if way == "compiled" else meter.sizes.sample_steps[:1]:
            row = Row(f"sample, {steps} steps", way, "bf16", batch, flops=float(evaluations(steps) * flops))
            yield meter.timed(row, partial(sample, model, noise, labels, steps))
