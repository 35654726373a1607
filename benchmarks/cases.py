"""What is timed: a training step, a sampler and the reading of latents, each done plainly and by the library."""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from alight.config import FlowConfig, OptimizerConfig
from alight.data.latent_shards import LABELS, LATENTS, shard_name, write_shard
from alight.data.latents import LatentDataset, write_index
from alight.flow import GuidedVelocity, sample_timesteps, solve_ode, time_grid
from alight.flow.randomness import standard_normal
from alight.models.lightning_dit import LightningDiT
from alight.runtime.device import autocast, compile_blocks
from alight.training.ema import EMA
from alight.training.optimizer import make_optimizer, optimizer_step
from alight.training.transformer_step import TransformerBatch, transformer_backward
from benchmarks import baseline
from benchmarks.measure import Contender

OPTIMIZER = OptimizerConfig(lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0)
EMA_DECAY = 0.9999
TIMESTEP_SHIFT = 0.3  # the published sampler: shift, guidance scale and where guidance starts
GUIDANCE_SCALE = 6.7
GUIDANCE_START = 0.125


@dataclass(frozen=True)
class Setting:
    """Where and on what a case runs.

    Attributes:
        device: of everything.
        precision: fp32 or bf16.
        batch: images per run.
        compiled: whether the contenders with compiled blocks run too.
    """

    device: torch.device
    precision: str
    batch: int
    compiled: bool = False


def random_model(device: torch.device, preset: str, **options: Any) -> LightningDiT:
    """A model all of whose weights are random: with the gates of a fresh one, whole blocks would multiply by zero."""
    model = LightningDiT.from_preset(preset, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02, generator=generator)
    return model.to(device)


def forward_flops(model: LightningDiT) -> int:
    """Floating-point operations of the matrix products that predict one velocity."""
    with torch.device("meta"):
        skeleton = LightningDiT(**model.arguments)
        x, t, labels = example(skeleton, 1, torch.device("meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        skeleton(x, t, labels)
    return counter.get_total_flops()


def example(model: LightningDiT, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, C, H, W), times (B,) and labels (B,) that fit the model."""
    side = [cells * model.config.patch_size for cells in model.grid]
    latents = torch.randn(batch, model.config.in_channels, *side, device=device)
    return latents, torch.rand(batch, device=device), torch.arange(batch, device=device) % model.config.num_classes


def training(model: LightningDiT, setting: Setting) -> list[Contender]:
    """One step on random latents: draws, forward pass, loss, backward pass, optimizer and moving average."""
    latents, _, labels = example(model, setting.batch, setting.device)
    flops = 3.0 * forward_flops(model) * setting.batch
    contenders = []
    for suffix in ("", ", compiled") if setting.compiled else ("",):
        plain, own = baseline.PlainLightningDiT(model), copy.deepcopy(model)
        if suffix:
            compile_blocks(plain.blocks)
            compile_blocks(own.blocks)
        plain_step = PlainTraining(plain, latents, labels, model.null_label, setting)
        own_step = Training(own, latents, labels, setting)
        contenders.append(Contender("plain" + suffix, plain_step, setting.batch, flops))
        contenders.append(Contender("alight" + suffix, own_step, setting.batch, flops))
    return contenders


class PlainTraining:
    """A training step as one would first write it."""

    def __init__(self, model: nn.Module, x_1: Tensor, labels: Tensor, null_label: int, setting: Setting) -> None:
        self.model, self.x_1, self.labels, self.null_label, self.setting = model, x_1, labels, null_label, setting
        self.optimizer = torch.optim.AdamW(
            model.parameters(), OPTIMIZER.lr, OPTIMIZER.betas, weight_decay=OPTIMIZER.weight_decay
        )
        self.ema = baseline.PlainEMA(model, EMA_DECAY)
        self.rng = np.random.default_rng(0)

    def __call__(self) -> float:
        """One step; the loss."""
        t = baseline.logit_normal_times(len(self.x_1), self.rng).to(self.x_1.device)
        dropped = torch.rand(len(self.labels), device=self.labels.device) < 0.1
        labels = torch.where(dropped, self.null_label, self.labels)
        with autocast(self.setting.device, self.setting.precision):
            loss = baseline.loss(self.model, self.x_1, torch.randn_like(self.x_1), t, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.ema.update(self.model)
        return loss.item()


class Training:
    """A training step of the library's parts, as its training stage joins them.

    Args:
        model: the transformer.
        x_1: (B, C, h, w) latents.
        labels: (B,) int64.
        setting: device and precision.
        forward: the module that averages gradients over processes; None = the model.
        ema: moving average; None = a new one of the model.
    """

    def __init__(
        self,
        model: LightningDiT,
        x_1: Tensor,
        labels: Tensor,
        setting: Setting,
        forward: nn.Module | None = None,
        ema: EMA[LightningDiT] | None = None,
    ) -> None:
        self.model, self.x_1, self.labels, self.setting = model, x_1, labels, setting
        self.forward = forward if forward is not None else model
        self.optimizer = make_optimizer(model.named_parameters(), OPTIMIZER)
        self.ema = ema or EMA(model, EMA_DECAY)
        self.generator = torch.Generator(setting.device).manual_seed(0)

    def __call__(self) -> Tensor:
        """One step; the loss, still on the device."""
        t = sample_timesteps(len(self.x_1), generator=self.generator, device=self.setting.device)
        labels = self.model.drop_labels(self.labels, generator=self.generator)
        x_0 = standard_normal(self.x_1.shape, self.generator, self.x_1.device, self.x_1.dtype)
        batch = TransformerBatch(self.x_1, labels, t, x_0, labels)
        losses = transformer_backward(self.forward, batch, FlowConfig(), self.setting.precision)
        optimizer_step(self.optimizer, OPTIMIZER.lr, None)
        self.ema.update(self.model)
        return losses["loss"]


def sampling(model: LightningDiT, setting: Setting, steps: int) -> list[Contender]:
    """Noise to latents by Euler's method with guidance, in the published setting; `steps` is the number of calls."""
    noise, _, labels = example(model, setting.batch, setting.device)
    times = time_grid(steps, TIMESTEP_SHIFT).tolist()
    flops = float(forward_flops(model) * setting.batch)  # of one forward pass per image
    contenders = []
    for suffix in ("", ", compiled") if setting.compiled else ("",):
        plain, own = baseline.PlainLightningDiT(model).eval(), copy.deepcopy(model).eval()
        if setting.precision == "bf16":
            own.bfloat16()  # once, instead of at every call
        if suffix:
            compile_blocks(plain.blocks)
            compile_blocks(own.blocks)
        plain_sampler = partial(sample_plainly, plain, noise, labels, model.null_label, times, setting)
        own_sampler = partial(sample, own, noise, labels, steps)
        contenders.append(Contender("plain" + suffix, plain_sampler, setting.batch, flops * 2 * steps))
        contenders.append(Contender("alight" + suffix, own_sampler, setting.batch, flops * evaluations(steps)))
    return contenders


def evaluations(steps: int) -> int:
    """Evaluations for each image of the published setting, which guides from `GUIDANCE_START` on."""
    times = time_grid(steps, TIMESTEP_SHIFT).tolist()
    return steps + sum(t >= GUIDANCE_START for t in times[:-1])


def sample_plainly(
    model: nn.Module, noise: Tensor, labels: Tensor, null_label: int, times: Sequence[float], setting: Setting
) -> Tensor:
    """The baseline's sampler; bf16 by autocast."""
    with autocast(setting.device, setting.precision):
        return baseline.sample(model, noise, labels, null_label, times, GUIDANCE_SCALE, GUIDANCE_START)


@torch.no_grad()
def sample(model: LightningDiT, noise: Tensor, labels: Tensor, steps: int) -> Tensor:
    """The library's sampler; bf16 by the model's weights, while the state stays float32."""
    null_labels = torch.full_like(labels, model.null_label)
    velocity = GuidedVelocity(model, labels, null_labels, GUIDANCE_SCALE, guidance_interval=(GUIDANCE_START, 1.0))
    return solve_ode(velocity, noise, steps, timestep_shift=TIMESTEP_SHIFT).x


def reading(folder: Path, batch: int, batches: int) -> list[Contender]:
    """Random batches of stored latents, normalised: a file opened per image against one gather per batch."""
    dataset = LatentDataset(folder)
    order = np.random.default_rng(0).permutation(len(dataset))[: batch * batches].reshape(batches, batch)
    files = PlainLatents(folder, dataset)

    def plain_reader() -> None:
        for indices in order:
            files.gather(indices)

    def own_reader() -> None:
        for indices in order:
            dataset.gather(indices)

    return [Contender("plain", plain_reader, order.size), Contender("alight", own_reader, order.size)]


class PlainLatents:
    """The same latents as the given dataset, each read by opening its file."""

    def __init__(self, folder: Path, dataset: LatentDataset) -> None:
        self.mean, self.std = dataset.mean, dataset.std
        self.places: list[tuple[Path, int]] = []  # of every image: file and row
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as shard:
                self.places += [(path, row) for row in range(shard.get_slice("labels").get_shape()[0])]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One latent (C, h, w) and its label."""
        path, row = self.places[index]
        with safe_open(path, "pt") as shard:
            latent = shard.get_slice("latents")[row : row + 1]
            label = shard.get_slice("labels")[row : row + 1]
        return (latent[0] - self.mean) / self.std, label[0]

    def gather(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """A batch."""
        latents, labels = zip(*(self[int(index)] for index in indices), strict=True)
        return torch.stack(latents), torch.stack(labels)


@contextmanager
def stored_latents(count: int, shape: tuple[int, int, int] = (32, 16, 16), shard_size: int = 1024) -> Iterator[Path]:
    """A temporary folder with `count` random latents in the published layout."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator = torch.Generator().manual_seed(0)
        records = []
        for number, start in enumerate(range(0, count, shard_size)):
            size = min(shard_size, count - start)
            tensors = {LATENTS: torch.randn(size, *shape, generator=generator), LABELS: torch.arange(size) % 10}
            records.append(write_shard(folder / shard_name(number), tensors))
        ones = torch.ones(shape[0])
        write_index(folder, records, (0.1 * ones, 2.0 * ones), "data", [str(label) for label in range(10)])
        yield folder
