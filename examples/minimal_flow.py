"""Rectified flow in one file: learn real handwritten digits and draw new ones, in under a minute on a CPU.

    python examples/minimal_flow.py --output digits.png

There is no tokenizer here: the digits are small enough to be their own latents. The rest is the method as the package
trains it: a point between noise and data, the velocity there, and an ODE from noise to data.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from alight import LightningDiT
from alight.data.embedded import enlarge
from alight.flow import GuidedVelocity, LinearPath, flow_matching_loss, solve_ode
from alight.reporting.pictures import image_grid

WHITE = 16  # of an 8 x 8 digit: it counts the inked pixels of 4 x 4 cells


def train(x_1: Tensor, labels: Tensor, steps: int, batch_size: int = 64) -> LightningDiT:
    """Learn the velocity x_1 - x_0 at random points x_t = t x_1 + (1 - t) x_0."""
    model = LightningDiT(
        sample_size=8, in_channels=1, patch_size=2, hidden_size=64, num_layers=3, num_heads=2, num_classes=10
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    path = LinearPath()
    for step in range(1, steps + 1):
        batch = torch.randint(len(x_1), (batch_size,))
        class_labels = model.drop_labels(labels[batch])  # a tenth become the null class, for guidance
        # one channel has no direction, so the direction term is off
        loss = flow_matching_loss(model, x_1[batch], class_labels, path=path, cosine_weight=0.0)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        schedule.step()
        if step == 1 or step % 100 == 0:
            print(f"step {step:4d}  mse {loss.mse.item():.3f}")
    return model.eval()


@torch.no_grad()
def sample(model: LightningDiT, labels: Tensor, guidance_scale: float = 2.0) -> Tensor:
    """Follow the learned velocity from noise (t = 0) to digits (t = 1)."""
    velocity = GuidedVelocity(model, labels, torch.full_like(labels, model.null_label), guidance_scale)
    solution = solve_ode(velocity, torch.randn(len(labels), 1, 8, 8), num_inference_steps=15, solver="heun")
    print(f"{len(labels)} digits, {solution.nfe} model evaluations each")
    return solution.x


def main() -> None:
    """Train, sample, and save a picture with a row per class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--output", type=Path, default=Path("digits.png"))
    arguments = parser.parse_args()

    torch.manual_seed(0)
    digits = load_digits()
    x_1 = torch.tensor(digits.images, dtype=torch.float32)[:, None] / (WHITE / 2) - 1  # (1797, 1, 8, 8) in [-1, 1]
    model = train(x_1, torch.tensor(digits.target), arguments.steps)

    wanted = torch.arange(10).repeat_interleave(12)
    drawn = ((sample(model, wanted)[:, 0].clamp(-1, 1) + 1) * (WHITE / 2)).numpy()
    pictures = torch.stack([torch.from_numpy(enlarge(digit)) for digit in drawn]).numpy()
    Image.fromarray(image_grid(pictures, columns=12)).save(arguments.output)
    print(f"Picture: {arguments.output}")


if __name__ == "__main__":
    main()
