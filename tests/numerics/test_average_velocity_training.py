"""A transformer learns Gaussian latents, then average velocities: one step lands where it should."""

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR

from alight import LightningDiT
from alight.config import FlowConfig
from alight.flow import GuidedVelocity, LinearPath, sample
from alight.runtime.seeding import seeded_initialisation
from alight.training.transformer_step import TransformerBatch, draw_steps, draw_times, transformer_backward

SCALE, BATCH = 0.5, 256
SIZES = {"sample_size": 2, "in_channels": 4, "hidden_size": 64, "num_layers": 1, "num_heads": 2, "num_classes": 1}


def train(model, flow, steps, lr, seed):
    optimizer = AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0)
    decay, generator = LinearLR(optimizer, 1.0, 0.02, steps), torch.Generator().manual_seed(seed)
    for step in range(steps):
        x_1, x_0 = torch.randn(2, BATCH, 4, 2, 2, generator=generator)
        x_1 = SCALE * x_1
        t, until = draw_times(flow, step, BATCH, generator), None
        if flow.objective == "average_velocity":
            t, until = draw_steps(flow, step, t, generator)
        labels = torch.zeros(BATCH, dtype=torch.long)
        transformer_backward(model, TransformerBatch(x_1, labels, t, x_0, labels, until=until), flow)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay.step()


@torch.no_grad()
def error(model, steps, solver="mean"):
    """Root mean square distance from where the flow leads, SCALE times the noise, in units of the data's deviation."""
    noise = torch.randn(512, 4, 2, 2, generator=torch.Generator().manual_seed(9))
    velocity = GuidedVelocity(model, torch.zeros(512, dtype=torch.long))
    found = sample(velocity, noise, steps, solver, path=LinearPath()).x
    return ((found - SCALE * noise).square().mean().sqrt() / SCALE).item()


def test_fine_tuning_learns_the_long_steps():
    with seeded_initialisation(0):
        model = LightningDiT(**SIZES, interval_embedding=True)
    train(model, FlowConfig(cosine_weight=0.0), 150, 4e-3, seed=1)
    # A straight step of the velocity at the noise, which is minus the noise, ends in the middle of the data.
    assert error(model, 1, "euler") > 0.9
    assert error(model, 1) > 0.9
    averages = FlowConfig(objective="average_velocity", average_velocity={"equal_times": 0.5})
    train(model, averages, 250, 2e-3, seed=2)
    found = [error(model, steps) for steps in (1, 2, 4)]
    assert max(found) < 0.25, found
