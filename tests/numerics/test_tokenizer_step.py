"""The gradient that is taken in pieces equals the one taken of the whole objective at once."""

import pytest
import torch
from torch import nn

from alight.config import AlignmentConfig, ReconstructionConfig
from alight.losses import (
    adaptive_weight,
    generator_loss,
    kl_loss,
    marginal_cosine_loss,
    marginal_distance_matrix_loss,
    reconstruction_loss,
)
from alight.models.discriminator import PatchDiscriminator
from alight.models.foundation import FoundationModel
from alight.models.vavae import VAVAE
from alight.runtime.seeding import seeded_initialisation
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward, discriminator_backward


@pytest.fixture
def networks():
    from transformers import ViTConfig, ViTModel

    with seeded_initialisation(0):
        vae = VAVAE.build(latent_channels=4, block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8)
        vit = ViTModel(
            ViTConfig(
                image_size=32,
                patch_size=2,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
            )
        )
        projection = nn.Conv2d(4, 16, 1, bias=False)
        discriminator = PatchDiscriminator(width=8)
    return TokenizerNetworks(vae.double(), projection.double(), FoundationModel(vit).double(), discriminator.double())


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).clamp(-1, 1)


def whole_objective(networks, images, noise, reconstruction, alignment):
    """The objective as the paper writes it, with retained graphs and no cuts."""
    vae = networks.vae
    posterior = vae.posterior(images)
    latents = posterior.mean + posterior.std * noise
    output = vae.decode_raw_latents(latents)
    rec = reconstruction_loss(output, images).objective
    adversarial = generator_loss(networks.discriminator(output))

    def gradient(loss, layer):
        return torch.autograd.grad(loss, layer, retain_graph=True)[0]

    last = vae.last_decoder_layer
    adversarial_weight = adaptive_weight(gradient(rec, last), gradient(adversarial, last), 1e4)
    features = networks.foundation(images, grid=latents.shape[2:])
    projected = networks.projection(latents)
    align = marginal_cosine_loss(projected, features, alignment.cosine_margin) + marginal_distance_matrix_loss(
        projected, features, alignment.distance_margin
    )
    first = vae.last_encoder_layer
    align_weight = adaptive_weight(gradient(rec, first), gradient(align, first), 1e8)
    return (
        rec
        + reconstruction.kl_weight * kl_loss(posterior.mean, posterior.logvar)
        + reconstruction.adversarial_weight * adversarial_weight * adversarial
        + alignment.weight * align_weight * align
    )


def test_pieces_equal_the_whole(networks):
    reconstruction = ReconstructionConfig(perceptual_weight=0, kl_weight=1e-2)
    alignment = AlignmentConfig(weight=0.3, cosine_margin=0.1, distance_margin=0.05)
    images, noise = draw(2, 3, 32, 32, seed=1), draw(2, 4, 16, 16, seed=2)
    parameters = {**dict(networks.vae.named_parameters()), "projection": networks.projection.weight}

    whole_objective(networks, images, noise, reconstruction, alignment).backward()
    expected = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    for parameter in [*parameters.values(), *networks.discriminator.parameters()]:
        parameter.grad = None
    autoencoder_backward(networks, images, noise, reconstruction, alignment, adversarial_on=True)
    assert all(parameter.grad is None for parameter in networks.discriminator.parameters())
    for name, parameter in parameters.items():  # float64: only the order of additions differs
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-9, msg=name)


def test_micro_batches_add_up(networks):
    """Without batch statistics and with fixed weights, two halves give the gradient of the whole batch."""
    reconstruction = ReconstructionConfig(perceptual_weight=0)
    alignment = AlignmentConfig(weight=0.3, adaptive=False)
    images, noise = draw(4, 3, 32, 32, seed=1), draw(4, 4, 16, 16, seed=2)
    autoencoder_backward(networks, images, noise, reconstruction, alignment)
    expected = networks.vae.last_encoder_layer.grad.clone()
    networks.vae.zero_grad()
    for half in (slice(0, 2), slice(2, 4)):
        autoencoder_backward(networks, images[half], noise[half], reconstruction, alignment, share=0.5)
    torch.testing.assert_close(networks.vae.last_encoder_layer.grad, expected, rtol=1e-5, atol=1e-8)


def test_discriminator_learns_to_tell_apart(networks):
    discriminator = networks.discriminator
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    real, fake = draw(8, 3, 32, 32, seed=1), draw(8, 3, 32, 32, seed=2) * 0.2
    accuracies = []
    for _ in range(15):
        scalars = discriminator_backward(discriminator, real, fake, "hinge")
        accuracies.append(float(scalars["discriminator_accuracy"]))
        optimizer.step()
        optimizer.zero_grad()
    assert accuracies[-1] > 0.95
