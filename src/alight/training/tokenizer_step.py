"""The gradient of the tokenizer's objective, with every expensive part of it taken once.

The objective is L_rec + w_kl L_kl + w_adv L_adv + w_align L_align (paper, section 3.2), where two weights are ratios
of gradient norms at inner layers, with L_rec as their reference; optionally, the continuity of the decoder is added.
The graph is therefore cut at the reconstruction and at the latent: each loss is differentiated up to a cut, the ratios
follow from there through one convolution, and the sum goes down the rest.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from alight.config import AlignmentConfig, ReconstructionConfig
from alight.losses import (
    adaptive_weight,
    generator_loss,
    gram_matching_loss,
    hinge_discriminator_loss,
    kl_loss,
    marginal_cosine_loss,
    marginal_distance_matrix_loss,
    patch_cosine_loss,
    pooled_cosine_loss,
    reconstruction_loss,
    vanilla_discriminator_loss,
)
from alight.losses.adaptive_weight import ADVERSARIAL_LIMIT, ALIGNMENT_LIMIT
from alight.models.discriminator import PatchDiscriminator
from alight.models.foundation import FoundationModel
from alight.models.perceptual import LPIPS
from alight.models.tokenizer import Tokenizer
from alight.models.vavae import VAVAE
from alight.options import Reduction
from alight.runtime.device import full_float32, without_autocast
from alight.training.decoder_continuity import (
    ContinuityGradient,
    DecoderContinuity,
    Regularisation,
    continuity_backward,
)
from alight.training.shortage import of_autoencoder

Average = Callable[[Tensor], Tensor]


@dataclass
class TokenizerNetworks:
    """The networks of tokenizer training; optional ones are off where they are None."""

    vae: Tokenizer
    projection: nn.Module | None = None  # between latents and the features of the foundation model
    foundation: FoundationModel | None = None
    discriminator: PatchDiscriminator | None = None
    lpips: LPIPS | None = None


@dataclass(frozen=True)
class TokenizerStep:
    """Results of a step for the discriminator and for the log, all without gradient.

    Attributes:
        images: targets of the reconstruction (B, 3, H', W'); the images themselves without regularisation.
        reconstructions: the same shape.
        scalars: of the log, by name.
    """

    images: Tensor
    reconstructions: Tensor
    scalars: dict[str, Tensor]


@of_autoencoder
def autoencoder_backward(
    networks: TokenizerNetworks,
    images: Tensor,
    noise: Tensor,
    reconstruction: ReconstructionConfig,
    alignment: AlignmentConfig,
    *,
    adversarial_factor: float | None = None,
    share: float = 1.0,
    regularisation: Regularisation | None = None,
    average: Average | None = None,
    features: Tensor | None = None,
    alignment_noise: Tensor | None = None,
    continuity: DecoderContinuity | None = None,
) -> TokenizerStep:
    """Add the gradient of the autoencoder's objective to its parameters (unless frozen) and to the projection's.

    Args:
        networks: those whose losses are on.
        images: (B, 3, H, W) in [-1, 1].
        noise: (B, C, h, w) standard normal, of the posterior sample.
        reconstruction: weights of L1, LPIPS, KL and the adversarial term.
        alignment: weights, margins and sides of the alignment term.
        adversarial_factor: 1 = on; 0 = only measured, as published before its start; None = without discriminator.
        share: of this micro-batch in the optimizer step; the losses are balanced within it.
        regularisation: images and latents -> targets and what is decoded; differentiable in latents.
        average: over processes, of the gradients whose norms are compared.
        features: of the foundation model (B, D, h, w); None = computed here.
        alignment_noise: (B, C, h, w), added to the latents that are aligned; None = none.
        continuity: turned latents that should be decoded alike; None = none.
    """
    vae = networks.vae
    sample, kl = _encode(vae, images, noise, reconstruction.reduction)
    latents = sample.detach().requires_grad_(sample.requires_grad)  # the first cut
    aligned = _align(networks, images, latents, features, alignment, alignment_noise)
    targets, decoded = regularisation(images, latents) if regularisation is not None else (images, latents)
    output = vae.decode_raw_latents(decoded)  # (B, 3, H', W')
    passed = _Forward(sample, kl, latents, aligned, targets, output)
    turns = None
    if continuity is not None:
        inputs = images, latents, output.detach(), continuity
        turns = functools.partial(continuity_backward, vae, *inputs, regularisation=regularisation)
    return _backward(networks, passed, turns, reconstruction, alignment, adversarial_factor, share, average)


class _Forward(NamedTuple):
    """A forward pass, cut at the latents; the rest is as in `autoencoder_backward`."""

    sample: Tensor  # of the posterior, with its graph
    kl: Tensor | None
    latents: Tensor  # the sample as a leaf
    aligned: "_Alignment | None"
    targets: Tensor
    output: Tensor


def _backward(
    networks: TokenizerNetworks,
    passed: _Forward,
    turns: Callable[[float], ContinuityGradient] | None,
    reconstruction: ReconstructionConfig,
    alignment: AlignmentConfig,
    adversarial_factor: float | None,
    share: float,
    average: Average | None,
) -> TokenizerStep:
    """Differentiate the objective from its ends to the parameters."""
    vae, (sample, kl, latents, aligned, targets, output) = networks.vae, passed
    pixels = _at_least_float32(output.detach()).requires_grad_()  # the second cut
    rec, scalars = _reconstruct(networks, pixels, targets, reconstruction)
    total = rec.detach() if kl is None else rec.detach() + reconstruction.kl_weight * kl.detach()
    (rec_at_pixels,) = torch.autograd.grad(rec, pixels)
    at_pixels, rec_at_latents = rec_at_pixels, None
    if networks.discriminator is not None and adversarial_factor is not None:
        adversarial, adversarial_at_pixels = _deceive(networks.discriminator, pixels)
        opposed, layer = (rec_at_pixels, adversarial_at_pixels), vae.last_decoder_layer
        weight = reconstruction.adversarial_weight * _balance(output, layer, *opposed, ADVERSARIAL_LIMIT, average)
        scalars |= {"adversarial": adversarial, "adversarial_adaptive_weight": weight}
        if adversarial_factor > 0:
            at_pixels = rec_at_pixels + adversarial_factor * weight * adversarial_at_pixels
            total = total + adversarial_factor * weight * adversarial
            if aligned is not None and alignment.adaptive:  # its reference is the reconstruction alone
                (rec_at_latents,) = torch.autograd.grad(output, latents, rec_at_pixels.to(output), retain_graph=True)
    output.backward(share * at_pixels.to(output))
    if (at_latents := latents.grad) is not None and aligned is not None:  # the encoder learns, too
        reference = at_latents / share if rec_at_latents is None else rec_at_latents
        weight = _alignment_weight(vae, sample, reference, aligned, alignment, average)
        at_latents = at_latents + share * weight * aligned.at_latents
        for parameter, gradient in zip(aligned.parameters, aligned.at_parameters, strict=True):
            _accumulate(parameter, share * weight * gradient)
        scalars |= aligned.terms | {"alignment_adaptive_weight": weight}
        total = total + weight * aligned.loss
    elements = targets[0].numel() if reconstruction.reduction == "sum" else 1  # so that sizes compare
    if turns is not None:
        turned = turns(share * elements)
        at_latents = None if at_latents is None else at_latents + turned.at_latents
        scalars |= {"continuity": turned.loss}
        total = total + elements * turned.weighed
    if at_latents is not None:
        ends, gradients = [sample], [at_latents]
        if kl is not None:
            ends, gradients = [sample, kl], [at_latents, torch.full_like(kl, share * reconstruction.kl_weight)]
        torch.autograd.backward(ends, gradients)
    scalars |= {} if kl is None else {"kl": kl.detach()}
    return TokenizerStep(targets.detach(), output.detach(), scalars | {"loss": total / elements})


def discriminator_backward(
    discriminator: PatchDiscriminator,
    images: Tensor,
    reconstructions: Tensor,
    kind: str,
    *,
    factor: float = 1.0,
    share: float = 1.0,
) -> dict[str, Tensor]:
    """Add the gradient of the discriminator's loss to its parameters.

    Args:
        discriminator: the PatchGAN.
        images: (B, 3, H, W) in [-1, 1], the targets of the reconstruction.
        reconstructions: the same, from the autoencoder.
        kind: `hinge` or `vanilla`.
        factor: 1 = on; 0 = only measured: the gradient is zero.
        share: of this micro-batch in the optimizer step.

    Returns:
        The loss, the mean logit on either side and the share of patches that were classified correctly.
    """
    real = _at_least_float32(discriminator(images))
    fake = _at_least_float32(discriminator(reconstructions.detach()))
    loss = (hinge_discriminator_loss if kind == "hinge" else vanilla_discriminator_loss)(real, fake)
    (share * factor * loss).backward()
    accuracy = 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())
    return {
        "discriminator": loss.detach(),
        "discriminator_real": real.detach().mean(),
        "discriminator_fake": fake.detach().mean(),
        "discriminator_accuracy": accuracy,
    }


def _encode(vae: Tokenizer, images: Tensor, noise: Tensor, reduction: Reduction) -> tuple[Tensor, Tensor | None]:
    """A sample of the posterior (B, C, h, w) and its KL divergence, with their graphs; of a point there is none."""
    posterior = vae.posterior(images)
    if posterior.deterministic:  # on the sphere, and of a frozen encoder
        return _at_least_float32(posterior.mean), None
    mean, logvar = _at_least_float32(posterior.mean), _at_least_float32(posterior.logvar)
    return mean + (0.5 * logvar).exp() * noise, kl_loss(mean, logvar, reduction)


def _reconstruct(
    networks: TokenizerNetworks, pixels: Tensor, targets: Tensor, reconstruction: ReconstructionConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The reconstruction objective, with its graph down to the pixels, and its terms for the log."""
    perceptual = networks.lpips(pixels, targets) if networks.lpips is not None else None
    loss = reconstruction_loss(
        pixels,
        targets,
        reconstruction.l1_weight,
        perceptual,
        reconstruction.perceptual_weight,
        reconstruction.logvar,
        reconstruction.reduction,
    )
    scalars = {"l1": loss.l1_per_pixel, "reconstruction": loss.objective.detach()}
    if perceptual is not None:
        scalars["lpips"] = perceptual.detach().mean()
    return loss.objective, scalars


def _deceive(discriminator: PatchDiscriminator, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The generator's loss against the discriminator, and its gradient at the pixels."""
    loss = generator_loss(_at_least_float32(discriminator(pixels)))
    (at_pixels,) = torch.autograd.grad(loss, pixels)
    return loss.detach(), at_pixels


class _Alignment(NamedTuple):
    """The alignment loss with its terms, and its gradients; nothing weighed yet."""

    loss: Tensor
    terms: dict[str, Tensor]  # by their names in the log
    at_latents: Tensor
    parameters: list[nn.Parameter]  # of the projection
    at_parameters: Sequence[Tensor]


def _align(
    networks: TokenizerNetworks,
    images: Tensor,
    latents: Tensor,
    features: Tensor | None,
    alignment: AlignmentConfig,
    noise: Tensor | None,
) -> _Alignment | None:
    """Differentiate the alignment loss at the latents and at the projection; None where it takes no part."""
    if networks.projection is None or not latents.requires_grad:
        return None
    if features is None:
        if networks.foundation is None:
            return None
        features = networks.foundation(images, grid=(latents.shape[2], latents.shape[3]))  # (B, D, h, w)
    seen = latents if noise is None else latents + noise.to(latents)
    if alignment.projection == "to_features":
        pair = _at_least_float32(networks.projection(seen)), features  # (B, D, h, w) both
    else:
        pair = seen, _at_least_float32(networks.projection(features))  # (B, C, h, w) both
    parameters = [each for each in networks.projection.parameters() if each.requires_grad]
    with without_autocast(latents.device), full_float32():  # margins are compared with small differences of cosines
        related = pair if alignment.distance_on == "projected" else (seen, features)
        weighed = _alignment_terms(pair, related, alignment)
        loss = functools.reduce(torch.add, [weight * term for weight, term in weighed.values()])
        at_latents, *at_parameters = torch.autograd.grad(loss, [latents, *parameters])
    terms = {name: term.detach() for name, (_, term) in weighed.items()}
    return _Alignment(loss.detach(), terms, at_latents, parameters, at_parameters)


def _alignment_terms(
    pair: tuple[Tensor, Tensor], related: tuple[Tensor, Tensor], alignment: AlignmentConfig
) -> dict[str, tuple[float, Tensor]]:
    """Weight and value of each alignment term by its name; of those without margins, the terms that are on."""
    weighed = {
        "mcos": (alignment.cosine_weight, marginal_cosine_loss(*pair, alignment.cosine_margin)),
        "mdms": (alignment.distance_weight, marginal_distance_matrix_loss(*related, alignment.distance_margin)),
    }
    if alignment.gram_weight > 0:
        weighed["gram"] = alignment.gram_weight, gram_matching_loss(*related)
    if alignment.pooled_weight > 0:
        weighed["pooled_cosine"] = alignment.pooled_weight, pooled_cosine_loss(*pair)
    if alignment.patch_weight > 0:
        weighed["patch_cosine"] = alignment.patch_weight, patch_cosine_loss(*pair)
    return weighed


def _alignment_weight(
    vae: VAVAE,
    sample: Tensor,
    reference: Tensor,
    aligned: _Alignment,
    alignment: AlignmentConfig,
    average: Average | None,
) -> Tensor:
    """The weight of the alignment loss: fixed, or times the ratio of gradient norms at the encoder's last layer."""
    if not alignment.adaptive:
        return alignment.weight * torch.ones_like(aligned.loss)
    layer = vae.last_encoder_layer
    return alignment.weight * _balance(sample, layer, reference, aligned.at_latents, ALIGNMENT_LIMIT, average)


def _balance(
    output: Tensor, layer: nn.Parameter, reference: Tensor, other: Tensor, limit: float, average: Average | None
) -> Tensor:
    """The adaptive weight at `layer`, from two gradients at `output`, which lies a few operations behind it."""

    def at_layer(gradient: Tensor) -> Tensor:
        (own,) = torch.autograd.grad(output, layer, gradient.to(output), retain_graph=True)
        return own if average is None else average(own)

    return adaptive_weight(at_layer(reference), at_layer(other), limit)


def _accumulate(parameter: Tensor, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _at_least_float32(x: Tensor) -> Tensor:
    """Losses are taken in float32 whatever the networks run in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
