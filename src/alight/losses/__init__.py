"""Losses: tensors in, named scalars out."""

from alight.losses.adaptive_weight import adaptive_weight
from alight.losses.adversarial import generator_loss, hinge_discriminator_loss, vanilla_discriminator_loss
from alight.losses.alignment import (
    gram_matching_loss,
    marginal_cosine_loss,
    marginal_distance_matrix_loss,
    patch_cosine_loss,
    pooled_cosine_loss,
)
from alight.losses.continuity import continuity_loss, turned
from alight.losses.reconstruction import kl_loss, reconstruction_loss
from alight.losses.representation import spatial_norm, token_alignment_loss

__all__ = [
    "adaptive_weight",
    "continuity_loss",
    "generator_loss",
    "gram_matching_loss",
    "hinge_discriminator_loss",
    "kl_loss",
    "marginal_cosine_loss",
    "marginal_distance_matrix_loss",
    "patch_cosine_loss",
    "pooled_cosine_loss",
    "reconstruction_loss",
    "spatial_norm",
    "token_alignment_loss",
    "turned",
    "vanilla_discriminator_loss",
]
