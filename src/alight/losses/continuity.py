"""Continuity of a decoder: latents that are turned a little are decoded to nearly the same image.

PAE (Yue et al., arXiv 2605.07915) asks for consistency under perturbations of growing angle, 42.5 and 85 degrees, on
latents of a fixed length. The equations here are this project's own.
Legend: B images, C channels of the latent, h x w positions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from alight.runtime.errors import InputError


def turned(latents: Tensor, directions: Tensor, angle: float) -> Tensor:
    """Turn the vector at each position by an angle, which keeps its length.

    cos(a) z + sin(a) |z| u, where u is the unit vector along the part of the given direction that is orthogonal to z:
    a step along a great circle of the sphere through z. Other angles with the same direction lie on the same circle.

    Args:
        latents: (B, C, h, w), C at least 2; a gradient flows through them, and through u.
        directions: (B, C, h, w), such as standard normal numbers, so that all orthogonal directions are as likely.
        angle: a, in degrees, in [0, 180].

    Raises:
        InputError: latents of a single channel, which have no orthogonal direction.
    """
    if latents.shape[1] < 2:
        raise InputError(
            "Latents of a single channel cannot be turned: there is no direction orthogonal to them. Set "
            "regularisation.continuity_weight to 0, or give the latents more channels."
        )
    along = F.normalize(latents, dim=1)  # (B, C, h, w)
    across = directions - (directions * along).sum(1, keepdim=True) * along
    across = F.normalize(across - (across * along).sum(1, keepdim=True) * along, dim=1)  # twice is exact to rounding
    length = torch.linalg.vector_norm(latents, dim=1, keepdim=True)  # (B, 1, h, w)
    radians = math.radians(angle)
    return math.cos(radians) * latents + math.sin(radians) * length * across


def continuity_loss(decoded: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference between an image decoded from turned latents and its reference, per element.

    The reference is held fixed (stop-gradient): what is decoded from turned latents follows it, and it does not
    follow them.

    Args:
        decoded: (B, 3, H, W), from latents that were turned.
        reference: the same shape, from latents that were turned less, or not at all.
    """
    return (decoded - reference.detach()).square().mean()
