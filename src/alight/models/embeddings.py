"""The inputs of the transformer: image patches, the time and the class, as vectors of the model width.

Legend: B batch, C channels, N tokens, D model width, p patch size.
"""

import math
from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alight.models.position import Grid
from alight.runtime.errors import InputError

TIME_FREQUENCIES = 256


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """Cut (B, C, H, W) into tokens (B, N, C p p), row by row; within a token the channel is the slowest axis."""
    p = patch_size
    x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (B, C, H / p, p, W / p, p)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, C p p)


def unpatchify(tokens: Tensor, patch_size: int, grid: Grid) -> Tensor:
    """Arrange tokens (B, N, p p C) as (B, C, H, W); within a token the channel is the fastest axis.

    The order inside a token is not that of `patchify`: both are the published ones.
    """
    p = patch_size
    x = tokens.unflatten(2, (p, p, -1)).unflatten(1, grid)  # (B, H / p, W / p, p, p, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, C, H, W)


def sinusoidal_embedding(t: Tensor, width: int = TIME_FREQUENCIES, max_period: float = 10_000.0) -> Tensor:
    """Cosines, then sines of `t` at geometrically spaced frequencies from 1 down to 1 / `max_period`.

    LightningDiT gives the time as it is, in [0, 1], not multiplied by 1000 as diffusion models with integer steps do.

    Args:
        t: (B,), any float dtype.
        width: number of channels, even.
        max_period: the longest wavelength divided by 2 pi.

    Returns:
        (B, width), computed in float32, or wider if `t` is.
    """
    half = width // 2
    t = t.to(torch.promote_types(t.dtype, torch.float32))
    exponents = torch.arange(half, device=t.device, dtype=t.dtype) / half
    angles = t[:, None] * torch.exp(-math.log(max_period) * exponents)  # (B, width / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # (B, width)


class TimeEmbedding(nn.Module):
    """Time (B,) in [0, 1] to (B, D): sinusoids, then a two-layer network."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(TIME_FREQUENCIES, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, t: Tensor) -> Tensor:
        """Embed `t` (B,) as (B, D)."""
        sinusoids = sinusoidal_embedding(t).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(sinusoids)))


class FourierTimeEmbedding(nn.Module):
    """Time (B,) in [0, 1] to (B, D): sines and cosines at random frequencies, then a two-layer network.

    The frequencies are standard normal and never trained, but part of the weights. The time that they see is noise
    time 1 - t, as in the published models with a wide head (RAE, arXiv 2510.11690). They stay float32 in a network of
    narrower weights: rounded to bf16 they would turn the angles by up to 0.04 rad.
    """

    frequencies: Tensor

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(2 * TIME_FREQUENCIES, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)
        self.register_buffer("frequencies", torch.empty(TIME_FREQUENCIES, dtype=torch.float32))

    def forward(self, t: Tensor) -> Tensor:
        """Embed `t` (B,) as (B, D)."""
        noise_time = 1 - t.to(torch.promote_types(t.dtype, torch.float32))
        angles = 2 * math.pi * (noise_time[:, None] * self.frequencies)  # (B, F)
        sinusoids = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(sinusoids)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Change types and devices, as `to` and its relatives do, but never to frequencies narrower than float32."""
        before = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype.itemsize < before.dtype.itemsize:
            self.frequencies = before.to(self.frequencies.device, torch.float32)
        return self


def drop_labels(
    class_labels: Tensor,
    probability: float,
    null_label: int,
    *,
    generator: torch.Generator | None = None,
    u: Tensor | None = None,
) -> Tensor:
    """Replace each label by the null class with the given probability.

    Classifier-free guidance (arXiv 2207.12598) needs an unconditional velocity too; the null class teaches it to the
    same model.

    Args:
        class_labels: (B,) int64.
        probability: chance of a replacement, 0.1 in the paper's recipe.
        null_label: the index that stands for "no class", `num_classes`.
        generator: source of the uniform numbers, on the device of `class_labels`.
        u: the uniform numbers themselves (B,) in [0, 1), instead of drawing; a label is dropped where u < probability.

    Returns:
        (B,) int64, a new tensor.
    """
    if u is None:
        u = torch.rand(class_labels.shape, generator=generator, device=class_labels.device)
    return torch.where(u < probability, null_label, class_labels)


def validate_class_labels(class_labels: Tensor, num_classes: int, *, null_allowed: bool = True) -> None:
    """Refuse labels that the model has no embedding for.

    It reads the values, so on an accelerator it waits for them: call it once where labels enter (a pipeline, a data
    set), not in a training step.

    Args:
        class_labels: any shape, an integer dtype.
        num_classes: number of classes; index `num_classes` is the null class.
        null_allowed: whether the null class may occur.

    Raises:
        InputError: a label is not an integer, negative or too large.
    """
    if class_labels.is_floating_point() or class_labels.is_complex() or class_labels.dtype == torch.bool:
        raise InputError(f"Class labels must be integers, not {class_labels.dtype}; give them as an int64 tensor.")
    if class_labels.numel() == 0:
        return
    last = num_classes if null_allowed else num_classes - 1
    low, high = (int(bound) for bound in class_labels.aminmax())
    if low < 0 or high > last:
        wrong = low if low < 0 else high
        raise InputError(
            f"Class label {wrong} is out of range: this model has the classes 0 to {num_classes - 1}"
            + (f", and {num_classes} for no class at all; " if null_allowed else "; ")
            + "choose labels in that range, or a model that was trained with more classes."
        )
