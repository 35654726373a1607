"""The tokenizer's gradient: each loss differentiated by itself, against every expensive part taken once."""

import torch
from torch import Tensor, nn

from alight.config import AlignmentConfig, ReconstructionConfig
from alight.losses import (
    adaptive_weight,
    generator_loss,
    kl_loss,
    marginal_cosine_loss,
    marginal_distance_matrix_loss,
    reconstruction_loss,
)
from alight.losses.adaptive_weight import ADVERSARIAL_LIMIT, ALIGNMENT_LIMIT
from alight.models.discriminator import PatchDiscriminator
from alight.models.perceptual import LPIPS
from alight.models.vavae import VAVAE
from alight.runtime.device import autocast
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward
from benchmarks.cases import Setting
from benchmarks.measure import Contender

FEATURE_DIM = 1024  # of DINOv2-large
RECONSTRUCTION = ReconstructionConfig(vgg16_weights="download", lpips_weights="download")
ALIGNMENT = AlignmentConfig()


def tokenizer_training(setting: Setting, image_size: int = 256, **architecture: object) -> list[Contender]:
    """The autoencoder's backward pass with LPIPS, discriminator and alignment on, all of random weights.

    The features of the foundation model are given, since both contenders would compute them alike.
    """
    torch.manual_seed(0)
    vae = VAVAE.build(sample_size=image_size, **architecture)
    channels, grid = vae.config.latent_channels, image_size // vae.downsampling_factor
    networks = TokenizerNetworks(
        vae.to(setting.device),
        nn.Conv2d(channels, FEATURE_DIM, 1, bias=False).to(setting.device),
        None,
        PatchDiscriminator().to(setting.device),
        LPIPS().to(setting.device),
    )
    images = torch.rand(setting.batch, 3, image_size, image_size, device=setting.device) * 2 - 1
    noise = torch.randn(setting.batch, channels, grid, grid, device=setting.device)
    features = torch.randn(setting.batch, FEATURE_DIM, grid, grid, device=setting.device)

    def plain() -> None:
        with autocast(setting.device, setting.precision):
            loss = whole_objective(networks, images, noise, features)
        loss.backward()
        clear()

    def own() -> None:
        with autocast(setting.device, setting.precision):
            autoencoder_backward(
                networks, images, noise, RECONSTRUCTION, ALIGNMENT, adversarial_factor=1.0, features=features
            )
        clear()

    def clear() -> None:
        for network in (networks.vae, networks.projection, networks.discriminator):
            network.zero_grad()

    return [Contender("plain", plain, setting.batch), Contender("alight", own, setting.batch)]


def whole_objective(networks: TokenizerNetworks, images: Tensor, noise: Tensor, features: Tensor) -> Tensor:
    """The objective as one would first write it; every weight takes its gradients from the whole graph."""
    vae = networks.vae
    posterior = vae.posterior(images)
    latents = posterior.mean + posterior.std * noise
    output = vae.decode_raw_latents(latents)
    perceptual = networks.lpips(output, images)
    rec = reconstruction_loss(output, images, 1.0, perceptual, RECONSTRUCTION.perceptual_weight).objective
    adversarial = generator_loss(networks.discriminator(output))
    projected = networks.projection(latents)
    alignment = marginal_cosine_loss(projected, features, ALIGNMENT.cosine_margin)
    alignment = alignment + marginal_distance_matrix_loss(projected, features, ALIGNMENT.distance_margin)

    def ratio(loss: Tensor, layer: nn.Parameter, limit: float) -> Tensor:
        (reference,) = torch.autograd.grad(rec, layer, retain_graph=True)
        (own,) = torch.autograd.grad(loss, layer, retain_graph=True)
        return adaptive_weight(reference, own, limit)

    adversarial_weight = RECONSTRUCTION.adversarial_weight * ratio(
        adversarial, vae.last_decoder_layer, ADVERSARIAL_LIMIT
    )
    alignment_weight = ALIGNMENT.weight * ratio(alignment, vae.last_encoder_layer, ALIGNMENT_LIMIT)
    kl = RECONSTRUCTION.kl_weight * kl_loss(posterior.mean, posterior.logvar)
    return rec + kl + adversarial_weight * adversarial + alignment_weight * alignment
