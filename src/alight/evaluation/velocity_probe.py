"""A small LightningDiT with a fixed budget, and the error that it leaves on latents it has not seen.

The budget is the same for all tokenizers, so that a lower error says that a generator learns these latents faster.
The error of any network bounds the ambiguity of the velocity from above; see `metrics/velocity_ambiguity.py`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alight.config import ProbeConfig
from alight.flow.path import LinearPath, time_like
from alight.models.lightning_dit import LightningDiT
from alight.runtime.seeding import random_stream, seeded_initialisation

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)  # at which the error is measured, evenly over the path
WARMUP = 20  # steps


class VelocityProbe(nn.Module):
    """The velocity of independent values of variance 1, corrected by a small LightningDiT.

    The first part, (2 t - 1) / s times the noisy latent with s = t^2 + (1 - t)^2, is the best that is known without
    any structure. The network sees the noisy latent at unit size and adds what it learns; at first that is nothing.
    """

    def __init__(self, shape: tuple[int, int, int], hidden_size: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.network = LightningDiT(
            sample_size=shape[1:],
            in_channels=shape[0],
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            patch_size=1,
            num_classes=1,
            class_dropout_prob=0.0,
        )

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Velocities (B, C, h, w) of noisy latents at times (B,)."""
        time = time_like(t, x_t)
        size = time**2 + (1 - time) ** 2
        unit = x_t * size.rsqrt()
        labels = torch.zeros(len(t), dtype=torch.int64, device=t.device)
        velocity: Tensor = without_structure(x_t, time) + size.rsqrt() * self.network(unit, t, labels)
        return velocity


def without_structure(x_t: Tensor, time: Tensor) -> Tensor:
    """The velocity of independent values of mean 0 and variance 1 at a noisy latent."""
    return (2 * time - 1) / (time**2 + (1 - time) ** 2) * x_t


@dataclass(frozen=True)
class HeldOutErrors:
    """Squared errors of velocities of held-out latents, each summed over times and averaged over numbers.

    Attributes:
        probe: (N,) of the trained probe.
        trivial: (N,) of the velocity without structure, on the same points.
    """

    probe: NDArray[np.float64]
    trivial: NDArray[np.float64]


def train_probe(latents: Tensor, config: ProbeConfig, seed: int, device: torch.device) -> VelocityProbe:
    """Train a probe on normalised latents (N, C, h, w); the seed decides on its weights, batches, times and noise."""
    with seeded_initialisation(seed, "probe"):
        _, channels, height, width = latents.shape
        probe = VelocityProbe((channels, height, width), config.hidden_size, config.num_layers, config.num_heads)
    probe.to(device).train()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0)
    path, generator = LinearPath(), random_stream(seed, "probe batches")
    for step in range(config.steps):
        chosen = torch.randint(len(latents), (config.batch_size,), generator=generator)
        x_1, t = latents[chosen], torch.rand(config.batch_size, generator=generator)
        x_0 = torch.randn(x_1.shape, generator=generator)
        point = path.sample(x_1.to(device), x_0.to(device), t.to(device))
        time = time_like(point.t, point.x_t)
        errors = (probe(point.x_t, point.t) - point.velocity).square() * (time**2 + (1 - time) ** 2)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / WARMUP) * (1 - step / config.steps)
        optimizer.zero_grad(set_to_none=True)
        errors.mean().backward()
        optimizer.step()
    return probe.eval()


@torch.no_grad()
def held_out_errors(
    probe: VelocityProbe, latents: Tensor, batch_size: int, seed: int, device: torch.device
) -> HeldOutErrors:
    """The errors at fixed times, with noise that the seed decides on alone."""
    path, columns = LinearPath(), []
    for number, moment in enumerate(TIMES):
        noise = torch.randn(latents.shape, generator=random_stream(seed, "probe noise", number))
        rows = []
        for x_1, x_0 in zip(latents.split(batch_size), noise.split(batch_size), strict=True):
            t = torch.full((len(x_1),), moment, device=device)
            point = path.sample(x_1.to(device), x_0.to(device), t)
            both = probe(point.x_t, t), without_structure(point.x_t, time_like(t, point.x_t))
            rows.append(torch.stack([(each - point.velocity).square().mean((1, 2, 3)) for each in both], dim=1))
        columns.append(torch.cat(rows).cpu().double())
    total = torch.stack(columns).sum(0).numpy()  # (N, 2)
    return HeldOutErrors(total[:, 0], total[:, 1])
