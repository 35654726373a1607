"""Continuity of the decoder as a demand of training: latents that are turned must be decoded to nearly the same image.

With K angles a_1 < a_2 < ..., one random orthogonal direction per position, and z_0 the latent that is decoded anyway,
L = 1/K sum_k mean (D(z_k) - sg D(z_(k-1)))^2, where z_k is z_0 turned by a_k along the same great circle. Each image
follows the one before it, which is held fixed (sg); the first follows the reconstruction. PAE (Yue et al., arXiv
2605.07915) has the demand, the angles 42.5 and 85 degrees and the cascade; this definition is this project's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from alight.config import LatentRegularisationConfig
from alight.losses import continuity_loss, turned
from alight.models.tokenizer import Tokenizer
from alight.runtime.ahead import sent

Regularisation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class DecoderContinuity:
    """The turns of one step.

    Attributes:
        weight: of the squared change of an element, beside the weight of its absolute error.
        angles: in degrees, increasing.
        directions: (B, C, h, w) standard normal.
    """

    weight: float
    angles: tuple[float, ...]
    directions: Tensor

    @classmethod
    def of(cls, config: LatentRegularisationConfig, directions: Tensor) -> "DecoderContinuity | None":
        """The turns that a configuration asks for along these directions; None where it asks for none."""
        if config.continuity_weight == 0:
            return None
        return cls(config.continuity_weight, config.continuity_angles, directions)

    def part(self, images: slice) -> "DecoderContinuity":
        """The same for some images of the batch."""
        return replace(self, directions=self.directions[images])


class ContinuityGradient(NamedTuple):
    """The loss with and without its weight, and its weighed gradient at the latents."""

    loss: Tensor
    weighed: Tensor
    at_latents: Tensor


def continuity_backward(
    vae: Tokenizer,
    images: Tensor,
    latents: Tensor,
    output: Tensor,
    continuity: DecoderContinuity,
    factor: float,
    regularisation: Regularisation | None = None,
) -> ContinuityGradient:
    """Add the gradient of the continuity loss to the decoder's parameters, one angle after another.

    Args:
        vae: the tokenizer.
        images: (B, 3, H, W), of which the regularisation makes targets.
        latents: (B, C, h, w), before regularisation.
        output: (B, 3, H', W'), decoded from them, without graph.
        continuity: weight, angles and directions.
        factor: of the loss in the gradient, times its weight.
        regularisation: images and latents -> targets and what was decoded.
    """
    own = latents.detach().requires_grad_()
    decoded = own if regularisation is None else regularisation(images, own)[1]  # (B, C, h', w')
    height, width = decoded.shape[2:]
    directions = sent(continuity.directions, decoded.device)[:, :, :height, :width].to(decoded)
    centre = decoded.detach().requires_grad_()
    before, total = _at_least_float32(output), torch.zeros((), device=output.device)
    for angle in continuity.angles:
        image = _at_least_float32(vae.decode_raw_latents(turned(centre, directions, angle)))
        loss = continuity_loss(image, before) / len(continuity.angles)
        (factor * continuity.weight * loss).backward()
        before, total = image.detach(), total + loss.detach()
    assert centre.grad is not None
    (at_latents,) = torch.autograd.grad(decoded, own, centre.grad)
    return ContinuityGradient(total, continuity.weight * total, at_latents)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
