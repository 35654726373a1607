"""The vision foundation model alignment loss of VA-VAE (paper, section 3.2): two marginal similarity terms.

Beside them stand the terms of PAE (Yue et al., arXiv 2605.07915), which have no margins.

A linear projection (Eq. 1), learned with the rest, brings one side to the width of the other before they meet here.
Legend: B images, D feature channels, h x w positions, N = h*w.
"""

import torch.nn.functional as F
from torch import Tensor

from alight.runtime.errors import InputError


def marginal_cosine_loss(latents: Tensor, features: Tensor, margin: float = 0.5) -> Tensor:
    """Position by position, turn each projected latent towards the foundation model's feature (Eq. 2, mcos).

    mean relu(1 - margin - cos(z_ij, f_ij)): positions that are already similar enough cost nothing.

    Args:
        latents: projected latents (B, D, h, w).
        features: foundation features (B, D, h, w).
        margin: how far from parallel two vectors may stay, in [0, 2].

    Raises:
        InputError: if the shapes differ.
    """
    _same_shape(latents, features)
    cosine = F.cosine_similarity(latents, features, dim=1)  # (B, h, w)
    return F.relu(1.0 - margin - cosine).mean()


def marginal_distance_matrix_loss(latents: Tensor, features: Tensor, margin: float = 0.25) -> Tensor:
    """Make positions of one image relate to each other as they do in the foundation model (Eq. 3, mdms).

    mean relu(|cos(z_i, z_j) - cos(f_i, f_j)| - margin) over all pairs of positions, the diagonal included. The two
    sides may have different numbers of channels: only their similarity matrices meet.

    Args:
        latents: projected or raw latents (B, D', h, w).
        features: foundation features (B, D, h, w).
        margin: how far two similarities may differ, in [0, 2].

    Raises:
        InputError: if batch or grid differ.
    """
    if latents.shape[0] != features.shape[0] or latents.shape[2:] != features.shape[2:]:
        _same_shape(latents, features)
    difference = _similarity_matrix(latents) - _similarity_matrix(features)  # (B, N, N)
    return F.relu(difference.abs() - margin).mean()


def gram_matching_loss(latents: Tensor, features: Tensor) -> Tensor:
    """Match the Gram matrices of unit vectors of each image, without a margin (PAE, spatial structure).

    mean (cos(z_i, z_j) - cos(f_i, f_j))^2 over all pairs of positions, the diagonal included: the matrices of
    `marginal_distance_matrix_loss` under a squared error. An orthogonal map of the channels of either side changes
    nothing, and the two sides may have different numbers of channels.

    Args:
        latents: projected or raw latents (B, D', h, w).
        features: foundation features (B, D, h, w).

    Raises:
        InputError: if batch or grid differ.
    """
    if latents.shape[0] != features.shape[0] or latents.shape[2:] != features.shape[2:]:
        _same_shape(latents, features)
    return (_similarity_matrix(latents) - _similarity_matrix(features)).square().mean()


def pooled_cosine_loss(latents: Tensor, features: Tensor) -> Tensor:
    """Turn the mean of an image's projected latents towards the mean of its features (PAE, global semantics).

    mean over images of 1 - cos(mean_ij z_ij, mean_ij f_ij), in [0, 2].

    Args:
        latents: projected latents (B, D, h, w).
        features: foundation features (B, D, h, w).

    Raises:
        InputError: if the shapes differ.
    """
    _same_shape(latents, features)
    cosine = F.cosine_similarity(latents.mean(dim=(2, 3)), features.mean(dim=(2, 3)), dim=1)  # (B,)
    return (1.0 - cosine).mean()


def patch_cosine_loss(latents: Tensor, features: Tensor) -> Tensor:
    """Turn each projected latent towards the feature at its position (PAE, global semantics).

    mean 1 - cos(z_ij, f_ij), in [0, 2]: `marginal_cosine_loss` without a margin, as a term beside it.

    Args:
        latents: projected latents (B, D, h, w).
        features: foundation features (B, D, h, w).

    Raises:
        InputError: if the shapes differ.
    """
    return marginal_cosine_loss(latents, features, margin=0.0)


def _similarity_matrix(x: Tensor) -> Tensor:
    unit = F.normalize(x.flatten(2), dim=1)  # (B, D, N)
    return unit.transpose(1, 2) @ unit  # (B, N, N)


def _same_shape(latents: Tensor, features: Tensor) -> None:
    if latents.shape != features.shape:
        raise InputError(
            f"Latents of shape {tuple(latents.shape)} cannot be aligned with features of shape "
            f"{tuple(features.shape)}. Project the latents to the feature dimension, and resize the input of the "
            "foundation model so that its patch grid meets the latent grid."
        )
