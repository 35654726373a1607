"""The gradient of the tokenizer's objective, with every expensive part of it taken once.

The objective is L_rec + w_kl L_kl + w_adv L_adv + w_align L_align (paper, section 3.2), where two weights are ratios
of gradient norms at inner layers. The graph is therefore cut at the reconstruction and at the latent: each loss is
differentiated up to a cut, the ratios follow from there through one convolution, and the sum goes down the rest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alight.config import AlignmentConfig, ReconstructionConfig
from alight.losses import (
    adaptive_weight,
    generator_loss,
    hinge_discriminator_loss,
    kl_loss,
    marginal_cosine_loss,
    marginal_distance_matrix_loss,
    reconstruction_loss,
    vanilla_discriminator_loss,
)
from alight.losses.adaptive_weight import ADVERSARIAL_LIMIT, ALIGNMENT_LIMIT
from alight.models.discriminator import PatchDiscriminator
from alight.models.foundation import FoundationModel
from alight.models.perceptual import LPIPS
from alight.models.vavae import VAVAE


@dataclass
class TokenizerNetworks:
    """What takes part in training a tokenizer; the optional parts are off where they are None."""

    vae: VAVAE
    projection: nn.Conv2d | None = None  # latents to the feature dimension of the foundation model
    foundation: FoundationModel | None = None
    discriminator: PatchDiscriminator | None = None
    lpips: LPIPS | None = None


@dataclass(frozen=True)
class TokenizerStep:
    """Named scalars of one step, without gradient, and the reconstructions for the discriminator."""

    reconstructions: Tensor
    scalars: dict[str, Tensor]


def autoencoder_backward(
    networks: TokenizerNetworks,
    images: Tensor,
    noise: Tensor,
    reconstruction: ReconstructionConfig,
    alignment: AlignmentConfig,
    adversarial_on: bool = False,
    share: float = 1.0,
) -> TokenizerStep:
    """Add the gradient of the autoencoder's objective to its parameters and to the projection's.

    Args:
        networks: what takes part.
        images: (B, 3, H, W) in [-1, 1].
        noise: (B, C, h, w) standard normal, of the posterior sample.
        reconstruction: weights of L1, LPIPS, KL and the adversarial term.
        alignment: weights and margins of the alignment term.
        adversarial_on: whether the adversarial term has started.
        share: of this micro-batch in the optimizer step.
    """
    vae = networks.vae
    posterior = vae.posterior(images)
    mean, logvar = _at_least_float32(posterior.mean), _at_least_float32(posterior.logvar)
    sample = mean + (0.5 * logvar).exp() * noise  # (B, C, h, w)
    latents = sample.detach().requires_grad_()  # the first cut
    output = vae.decode_raw_latents(latents)  # (B, 3, H, W)
    pixels = _at_least_float32(output.detach()).requires_grad_()  # the second cut

    perceptual = networks.lpips(pixels, images) if networks.lpips is not None else None
    rec = reconstruction_loss(pixels, images, reconstruction.l1_weight, perceptual, reconstruction.perceptual_weight)
    kl = kl_loss(mean, logvar)
    scalars = {"l1": rec.l1_per_pixel, "kl": kl.detach(), "reconstruction": rec.objective.detach()}
    total = rec.objective.detach() + reconstruction.kl_weight * kl.detach()

    (rec_at_pixels,) = torch.autograd.grad(rec.objective, pixels)
    adversarial_at_pixels = None
    if networks.discriminator is not None and adversarial_on:
        adversarial = generator_loss(networks.discriminator(pixels))
        (adversarial_at_pixels,) = torch.autograd.grad(adversarial, pixels)
        weight = reconstruction.adversarial_weight * _balance(
            output, vae.last_decoder_layer, rec_at_pixels, adversarial_at_pixels, ADVERSARIAL_LIMIT
        )
        adversarial_at_pixels = weight * adversarial_at_pixels
        scalars |= {"adversarial": adversarial.detach(), "adversarial_adaptive_weight": weight}
        total = total + weight * adversarial.detach()
    output.backward(share * rec_at_pixels.to(output), retain_graph=adversarial_at_pixels is not None)
    assert latents.grad is not None
    rec_at_latents = latents.grad.clone() / share
    if adversarial_at_pixels is not None:
        output.backward(share * adversarial_at_pixels.to(output))
    at_latents = latents.grad

    if networks.foundation is not None and networks.projection is not None:
        features = networks.foundation(images, grid=(sample.shape[2], sample.shape[3]))  # (B, D, h, w)
        projected = _at_least_float32(networks.projection(latents))  # (B, D, h, w)
        cosine = marginal_cosine_loss(projected, features, alignment.cosine_margin)
        distance = marginal_distance_matrix_loss(projected, features, alignment.distance_margin)
        loss = alignment.cosine_weight * cosine + alignment.distance_weight * distance
        align_at_latents, at_projection = torch.autograd.grad(loss, [latents, networks.projection.weight])
        ratio = torch.ones((), device=images.device)
        if alignment.adaptive:
            ratio = _balance(sample, vae.last_encoder_layer, rec_at_latents, align_at_latents, ALIGNMENT_LIMIT)
        weight = alignment.weight * ratio
        at_latents = at_latents + share * weight * align_at_latents
        _accumulate(networks.projection.weight, share * weight * at_projection)
        scalars |= {"mcos": cosine.detach(), "mdms": distance.detach(), "alignment_adaptive_weight": weight}
        total = total + weight * loss.detach()

    at_kl = torch.full_like(kl, share * reconstruction.kl_weight)
    torch.autograd.backward([sample, kl], [at_latents.to(sample), at_kl])
    return TokenizerStep(output.detach(), scalars | {"loss": total / images[0].numel()})


def discriminator_backward(
    discriminator: PatchDiscriminator, images: Tensor, reconstructions: Tensor, kind: str, share: float = 1.0
) -> dict[str, Tensor]:
    """Add the gradient of the discriminator's loss to its parameters.

    Args:
        discriminator: the PatchGAN.
        images: (B, 3, H, W) in [-1, 1].
        reconstructions: the same, from the autoencoder.
        kind: `hinge` or `vanilla`.
        share: of this micro-batch in the optimizer step.
    """
    real, fake = discriminator(images), discriminator(reconstructions.detach())
    loss = (hinge_discriminator_loss if kind == "hinge" else vanilla_discriminator_loss)(real, fake)
    (share * loss).backward()
    accuracy = 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())
    return {"discriminator": loss.detach(), "discriminator_accuracy": accuracy.detach()}


def _balance(output: Tensor, layer: nn.Parameter, reference: Tensor, other: Tensor, limit: float) -> Tensor:
    """The adaptive weight at `layer`, from two gradients at `output`, which lies a few operations behind it."""
    (reference_at_layer,) = torch.autograd.grad(output, layer, reference.to(output), retain_graph=True)
    (other_at_layer,) = torch.autograd.grad(output, layer, other.to(output), retain_graph=True)
    return adaptive_weight(reference_at_layer, other_at_layer, limit)


def _accumulate(parameter: Tensor, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _at_least_float32(x: Tensor) -> Tensor:
    """Losses are taken in float32 whatever the networks run in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
