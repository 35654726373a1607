"""The tokenizer's objective as the paper writes it: one sum for autograd, without cuts in the graph."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alight.config import AlignmentConfig, ReconstructionConfig
from alight.losses import (
    adaptive_weight,
    generator_loss,
    kl_loss,
    marginal_cosine_loss,
    marginal_distance_matrix_loss,
    reconstruction_loss,
)
from alight.losses.reconstruction import ReconstructionTerms
from alight.models.vavae import VAVAE
from alight.training.decoder_continuity import DecoderContinuity
from alight.training.tokenizer_step import TokenizerNetworks

ADVERSARIAL_LIMIT, ALIGNMENT_LIMIT = 1e4, 1e8  # of the adaptive weights, as published


@dataclass
class Objective:
    """The sum, its terms, and the weights that stand before them; None for terms that are not taken."""

    total: Tensor
    output: Tensor
    reconstruction: ReconstructionTerms
    perceptual: Tensor | None
    kl: Tensor
    adversarial: Tensor | None = None
    adversarial_weight: Tensor | float = 0.0
    alignment: Tensor | None = None
    alignment_weight: Tensor | float = 0.0
    norms: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # reference and own, at "decoder", "encoder"

    def balance(self, loss: Tensor, name: str, layer: Tensor, limit: float) -> Tensor:
        """Weigh a loss against the reconstruction by their gradients at a layer, which `norms` records."""
        (reference,) = torch.autograd.grad(self.reconstruction.unweighted, layer, retain_graph=True)
        (own,) = torch.autograd.grad(loss, layer, retain_graph=True)
        self.norms[name] = reference.norm(), own.norm()
        return adaptive_weight(reference, own, limit)


def tokenizer_objective(
    networks: TokenizerNetworks,
    images: Tensor,
    noise: Tensor,
    reconstruction: ReconstructionConfig,
    alignment: AlignmentConfig,
    factor: float | None = 1.0,
    regularisation: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    features: Tensor | None = None,
    logvar: Tensor | float | None = None,
    sample_weights: Tensor | None = None,
    alignment_noise: Tensor | float = 0.0,
    continuity: DecoderContinuity | None = None,
) -> Objective:
    """Compute the objective of a batch.

    Args:
        networks: as training has them.
        images: the batch.
        noise: of the posterior.
        reconstruction: weights of its terms.
        alignment: weights of its terms.
        factor: of the adversarial loss; None leaves it out.
        regularisation: changes targets and latents before the decoder.
        features: of the foundation model, where it is not asked for them.
        logvar: in place of the configured one.
        sample_weights: of the reconstruction.
        alignment_noise: on the latents that are aligned.
        continuity: turns of what is decoded.
    """
    vae = networks.vae
    posterior = vae.posterior(images)
    sphere = getattr(vae, "latent_space", "gaussian") == "sphere"
    latents = posterior.mean if sphere else posterior.mean + posterior.std * noise
    targets, decoded = regularisation(images, latents) if regularisation else (images, latents)
    output = vae.decode_raw_latents(decoded)
    perceptual = networks.lpips(output, targets) if networks.lpips is not None else None
    terms = reconstruction_loss(
        output,
        targets,
        reconstruction.l1_weight,
        perceptual,
        reconstruction.perceptual_weight,
        reconstruction.logvar if logvar is None else logvar,
        reconstruction.reduction,
        sample_weights=sample_weights,
    )
    kl = 0 * latents.sum() if sphere else kl_loss(posterior.mean, posterior.logvar, reconstruction.reduction)
    objective = Objective(terms.objective + reconstruction.kl_weight * kl, output, terms, perceptual, kl)
    if factor is not None:
        objective.adversarial = generator_loss(networks.discriminator(output))
        ratio = objective.balance(objective.adversarial, "decoder", vae.last_decoder_layer, ADVERSARIAL_LIMIT)
        objective.adversarial_weight = reconstruction.adversarial_weight * ratio
        objective.total = objective.total + factor * objective.adversarial_weight * objective.adversarial
    if latents.requires_grad and (features is not None or networks.foundation is not None):
        _add_alignment(objective, networks, images, latents + alignment_noise, features, alignment)
    if continuity is not None:
        elements = output[0].numel() if reconstruction.reduction == "sum" else 1
        change = elements * continuity.weight * _change(vae, decoded, output, continuity)
        objective.total = objective.total + change
    return objective


def _change(vae: VAVAE, decoded: Tensor, output: Tensor, continuity: DecoderContinuity) -> Tensor:
    """The mean squared change from one turn to the next, in the basis of two orthogonal vectors per position."""
    directions = continuity.directions[:, :, : decoded.shape[2], : decoded.shape[3]]
    first = decoded / (decoded * decoded).sum(1, keepdim=True).sqrt()
    second = directions - (directions * first).sum(1, keepdim=True) * first
    second = second / (second * second).sum(1, keepdim=True).sqrt()
    length = (decoded * first).sum(1, keepdim=True)
    changes, before = [], output.detach()
    for angle in torch.tensor(continuity.angles, dtype=decoded.dtype).deg2rad():
        image = vae.decode_raw_latents(length * (angle.cos() * first + angle.sin() * second))
        changes.append(((image - before) ** 2).mean())
        before = image.detach()
    return torch.stack(changes).mean()


def _add_alignment(
    objective: Objective,
    networks: TokenizerNetworks,
    images: Tensor,
    latents: Tensor,
    features: Tensor | None,
    config: AlignmentConfig,
) -> None:
    if features is None:
        features = networks.foundation(images, grid=latents.shape[2:])
    if config.projection == "to_features":
        pair = networks.projection(latents), features
    else:
        pair = latents, networks.projection(features)
    related = {"projected": pair, "latent": (latents, features)}[config.distance_on]
    cosine = marginal_cosine_loss(*pair, config.cosine_margin)
    distance = marginal_distance_matrix_loss(*related, config.distance_margin)
    pooled, patches = (1 - _cosines(*(means(x) for x in pair)).mean() for means in (_pooled, _same))
    objective.alignment = (
        config.cosine_weight * cosine
        + config.distance_weight * distance
        + config.gram_weight * (_gram(related[0]) - _gram(related[1])).pow(2).mean()
        + config.pooled_weight * pooled
        + config.patch_weight * patches
    )
    ratio = 1.0
    if config.adaptive:
        layer = networks.vae.last_encoder_layer
        ratio = objective.balance(objective.alignment, "encoder", layer, ALIGNMENT_LIMIT)
    objective.alignment_weight = config.weight * ratio
    objective.total = objective.total + objective.alignment_weight * objective.alignment


def _unit(x: Tensor) -> Tensor:
    return x / x.pow(2).sum(1, keepdim=True).sqrt()


def _gram(x: Tensor) -> Tensor:
    """Cosines between all pairs of positions, (B, h, w, h, w)."""
    return torch.einsum("bcij,bckl->bijkl", _unit(x), _unit(x))


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("bc...,bc...->b...", _unit(a), _unit(b))


def _pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def _same(x: Tensor) -> Tensor:
    return x
