"""Alignment of a diffusion transformer's hidden tokens with features of a vision foundation model.

REPA (Yu et al., arXiv 2410.06940) turns each projected token towards the foundation model's feature at its place.
iREPA (Singh et al., arXiv 2512.10794) normalises these features over the places of an image first, which takes away
the part that all places share and leaves what tells them apart.
"""

import torch.nn.functional as F
from torch import Tensor

from alight.runtime.errors import InputError

SPATIAL_EPS = 1e-6  # added to the standard deviation, as published


def token_alignment_loss(projected: Tensor, features: Tensor) -> Tensor:
    """Turn each projected token towards the feature at its place: the mean of -cos, in [-1, 1].

    A zero vector counts as 0 and gets no gradient.

    Args:
        projected: tokens (B, N, D) brought to the width of the features.
        features: targets (B, N, D).

    Raises:
        InputError: the shapes differ.
    """
    if projected.shape != features.shape:
        raise InputError(
            f"Tokens of shape {tuple(projected.shape)} cannot be aligned with features of shape "
            f"{tuple(features.shape)}. Project the tokens to the width of the features, on the same grid."
        )
    return -(F.normalize(projected, dim=-1) * F.normalize(features, dim=-1)).sum(-1).mean()


def spatial_norm(features: Tensor, gamma: float) -> Tensor:
    """Normalise features over the tokens of each image, channel by channel: (f - gamma mean) / (std + 1e-6).

    With gamma = 1 a constant that all tokens of an image share is removed, and the scale of a channel with it. With
    less, a channel that does not vary within an image becomes very large.

    Args:
        features: (B, N, D) of at least two tokens.
        gamma: share of the mean that is subtracted, 0.6 as published for latents.
    """
    mean, std = features.mean(dim=1, keepdim=True), features.std(dim=1, keepdim=True)  # std with N - 1
    return (features - gamma * mean) / (std + SPATIAL_EPS)
