"""Optional demands on a tokenizer's latent: equivariance to scale and rotation, and robustness to noise.

Both are off in the paper. They act between encoder and decoder: what is decoded is a changed latent, and what it is
compared with is the image changed alike. KL and alignment see the latent itself.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from alight.config import LatentRegularisationConfig
from alight.runtime.ahead import sent

SMALLEST_IMAGE = 32  # pixels along a side that the discriminator needs


@dataclass(frozen=True)
class LatentRegularisation:
    """Changes of the latents of one step.

    Attributes:
        grid: (h', w') that the latents are scaled to; None = left as they are.
        turns: quarter turns, counter-clockwise.
        noise: (B, C, h, w) that is added to them; None = none.
        factor: image pixels per latent position along a side.
    """

    grid: tuple[int, int] | None
    turns: int
    noise: Tensor | None
    factor: int

    def __call__(self, images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The images to reconstruct and the latents to decode, (B, 3, h' * factor, w' * factor) and (B, C, h', w')."""
        if self.noise is not None:
            latents = latents + sent(self.noise.to(latents.dtype), latents.device)
        if self.grid is not None:
            size = (self.grid[0] * self.factor, self.grid[1] * self.factor)
            latents, images = resize(latents, self.grid), resize(images, size)
        if self.turns:
            latents, images = (torch.rot90(x, self.turns, dims=(2, 3)) for x in (latents, images))
        return images, latents

    def part(self, images: slice) -> "LatentRegularisation":
        """The same for some images of the batch."""
        return self if self.noise is None else replace(self, noise=self.noise[images])


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, H, W) to (B, C, *size), bilinear with antialiasing, with a gradient on every device."""
    if x.device.type == "mps":  # which has no backward pass of `interpolate` with antialiasing
        return resize_by_products(x, size)
    return F.interpolate(x, size, mode="bilinear", antialias=True)


def resize_by_products(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The same as two matrix products, since every row and every column is resized by one linear map."""
    rows, columns = (_resizing(old, new).to(x) for old, new in zip(x.shape[2:], size, strict=True))
    return rows @ x @ columns.T


def _resizing(old: int, new: int) -> Tensor:
    """The matrix (new, old) that resizes one side: the resized columns of the unit matrix."""
    unit = torch.eye(old)[None, None]
    return F.interpolate(unit, (new, old), mode="bilinear", antialias=True)[0, 0]


def draw_regularisation(
    config: LatentRegularisationConfig,
    latent_shape: tuple[int, int, int, int],
    factor: int,
    generator: torch.Generator,
) -> LatentRegularisation | None:
    """Draw the changes of the latents of one step, for the whole batch, so that dividing it changes nothing.

    With probability p, scale by s ~ U(min_scale, 1), to whole positions, and turn by a random multiple of 90 degrees:
    decoding the changed latent must give the changed image (EQ-VAE, Kouzelis et al. 2025). Noise has a standard
    deviation per image of u ~ U(0, noise) (as in the decoder of RAE, Zheng et al. 2025), or |u| with u ~ N(0, noise^2)
    under the law `normal` (as in GAE, Liu et al. 2026, with 0.25 for latents on the sphere). It may leave the sphere.

    Returns:
        None where nothing happens.
    """
    grid, turns, noise = None, 0, None
    if config.equivariance_probability > 0:
        chance, scale, turn = torch.rand(3, generator=generator).tolist()
        if chance < config.equivariance_probability:
            scale = config.equivariance_min_scale + (1 - config.equivariance_min_scale) * scale
            smallest = math.ceil(SMALLEST_IMAGE / factor)
            height, width = (min(max(round(scale * side), smallest), side) for side in latent_shape[2:])
            grid, turns = (height, width), int(4 * turn)
    if config.noise > 0:
        draw = torch.rand if config.noise_law == "uniform" else torch.randn  # the sign of the latter is that of noise
        strength = config.noise * draw(latent_shape[0], 1, 1, 1, generator=generator)
        noise = strength * torch.randn(latent_shape, generator=generator)
    if grid is None and noise is None:
        return None
    return LatentRegularisation(grid, turns, noise, factor)
