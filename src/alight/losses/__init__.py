"""Losses: tensors in, named scalars out."""

from alight.losses.adaptive_weight import adaptive_weight
from alight.losses.adversarial import generator_loss, hinge_discriminator_loss, vanilla_discriminator_loss
from alight.losses.alignment import marginal_cosine_loss, marginal_distance_matrix_loss
from alight.losses.reconstruction import kl_loss, reconstruction_loss
from alight.losses.representation import spatial_norm, token_alignment_loss

__all__ = [
    "adaptive_weight",
    "generator_loss",
    "hinge_discriminator_loss",
    "kl_loss",
    "marginal_cosine_loss",
    "marginal_distance_matrix_loss",
    "reconstruction_loss",
    "spatial_norm",
    "token_alignment_loss",
    "vanilla_discriminator_loss",
]
