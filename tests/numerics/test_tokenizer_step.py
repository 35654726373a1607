"""The gradient that is taken in pieces equals the one taken of the whole objective at once."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import alight.training.tokenizer_step as module
from alight.config import AlignmentConfig, ReconstructionConfig
from alight.losses import (
    hinge_discriminator_loss,
    vanilla_discriminator_loss,
)
from alight.models.discriminator import PatchDiscriminator
from alight.models.foundation import FoundationModel
from alight.models.perceptual import LPIPS
from alight.runtime.seeding import seeded_initialisation
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward, discriminator_backward
from helpers.models import tiny_tokenizer, tiny_vit
from helpers.tokenizer_objective import tokenizer_objective

CHANNELS, FEATURES = 4, 16
RECONSTRUCTION = ReconstructionConfig(perceptual_weight=0, kl_weight=1e-2)
ALIGNMENT = AlignmentConfig(weight=0.3, cosine_margin=0.1, distance_margin=0.05, distance_weight=2.0)


def build(projection="to_features", decoder_only=False):
    attention = {"level_attention": True, "mid_block_attention": True}
    vae = tiny_tokenizer(block_out_channels=(8, 8, 8), norm_num_groups=4, **attention).train()
    vit = tiny_vit(patch_size=4, hidden_size=FEATURES)
    with seeded_initialisation(0):
        widths = (CHANNELS, FEATURES) if projection == "to_features" else (FEATURES, CHANNELS)
        networks = TokenizerNetworks(
            vae.double(),
            nn.Conv2d(*widths, 1, bias=False).double(),
            FoundationModel(vit).double(),
            PatchDiscriminator(width=8).double(),
        )
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    return networks


@pytest.fixture
def networks():
    return build()


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).clamp(-1, 1)


def batch(size=2):
    return draw(size, 3, 32, 32, seed=1), draw(size, CHANNELS, 8, 8, seed=2)


def turn_and_disturb(images, latents):
    """A regularisation that changes what is decoded and what it should give."""
    latents = F.interpolate(latents, (10, 10), mode="bilinear") * 1.5 + 0.1
    return F.interpolate(images, (40, 40)).rot90(dims=(2, 3)), latents.rot90(dims=(2, 3))


def gradients(networks):
    """Of everything that may get one, by name; None where there is none."""
    parts = {"vae": networks.vae, "projection": networks.projection, "discriminator": networks.discriminator}
    return {
        f"{part}.{name}": parameter.grad
        for part, network in parts.items()
        for name, parameter in network.named_parameters()
    }


def assert_pieces_equal_the_whole(networks, reconstruction, alignment, factor=1.0, regularisation=None):
    images, noise = batch()
    total = tokenizer_objective(networks, images, noise, reconstruction, alignment, factor, regularisation).total
    total.backward()
    networks.discriminator.zero_grad()
    expected = gradients(networks)
    for network in (networks.vae, networks.projection):
        network.zero_grad()
    step = autoencoder_backward(
        networks,
        images,
        noise,
        reconstruction,
        alignment,
        adversarial_factor=factor,
        regularisation=regularisation,
    )
    for name, gradient in gradients(networks).items():
        assert (gradient is None) == (expected[name] is None), name
        if gradient is not None:  # float64: only the order of additions differs
            torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)
    elements = step.images[0].numel() if reconstruction.reduction == "sum" else 1
    torch.testing.assert_close(step.scalars["loss"] * elements, total.detach(), rtol=1e-9, atol=0)
    return step


@pytest.mark.parametrize("factor", [None, 0.0, 1.0])
@pytest.mark.parametrize("projection", ["to_features", "to_latent"])
@pytest.mark.parametrize("distance_on", ["projected", "latent"])
def test_pieces_equal_the_whole(factor, projection, distance_on):
    networks = build(projection)
    for reduction, regularisation, adaptive in product(("sum", "mean"), (None, turn_and_disturb), (True, False)):
        reconstruction = RECONSTRUCTION.model_copy(update={"reduction": reduction, "logvar": 0.4})
        changes = {"projection": projection, "distance_on": distance_on, "adaptive": adaptive}
        alignment = ALIGNMENT.model_copy(update=changes)
        step = assert_pieces_equal_the_whole(networks, reconstruction, alignment, factor, regularisation)
        assert step.reconstructions.shape == step.images.shape == (2, 3, *(2 * [40 if regularisation else 32]))
        for network in (networks.vae, networks.projection):
            network.zero_grad()


@pytest.mark.parametrize("factor", [None, 0.0, 1.0])
def test_decoder_alone(factor):
    """With a frozen encoder no gradient goes there, no alignment is taken, and the KL term is only measured."""
    networks = build(decoder_only=True)
    step = assert_pieces_equal_the_whole(networks, RECONSTRUCTION, ALIGNMENT, factor)
    assert step.scalars["kl"] > 0
    assert "mcos" not in step.scalars
    assert networks.vae.encoder.conv_in.weight.grad is None
    assert networks.vae.decoder.conv_in.weight.grad.any()


def test_pieces_equal_the_whole_with_lpips(networks):
    with seeded_initialisation(1):
        networks.lpips = LPIPS().double()
    step = assert_pieces_equal_the_whole(
        networks, RECONSTRUCTION.model_copy(update={"perceptual_weight": 0.7}), ALIGNMENT
    )
    assert step.scalars["lpips"] > 0


def test_expensive_parts_are_differentiated_once(networks):
    """One backward pass through LPIPS, discriminator and encoder; a second through the decoder only for the ratio."""
    with seeded_initialisation(1):
        networks.lpips = LPIPS().double()
    visits = dict.fromkeys(("lpips", "discriminator", "encoder", "decoder"), 0)

    def count(name):
        def hook(*_):
            visits[name] += 1

        return hook

    networks.lpips.features[0].register_full_backward_hook(count("lpips"))
    networks.discriminator.main[2].register_full_backward_hook(count("discriminator"))
    networks.vae.encoder.mid_block.register_full_backward_hook(count("encoder"))
    networks.vae.decoder.mid_block.register_full_backward_hook(count("decoder"))
    reconstruction = RECONSTRUCTION.model_copy(update={"perceptual_weight": 1.0})
    autoencoder_backward(networks, *batch(), reconstruction, ALIGNMENT)
    assert visits == {"lpips": 1, "discriminator": 0, "encoder": 1, "decoder": 1}
    autoencoder_backward(networks, *batch(), reconstruction, ALIGNMENT, adversarial_factor=1.0)
    assert visits == {"lpips": 2, "discriminator": 1, "encoder": 2, "decoder": 3}
    fixed = ALIGNMENT.model_copy(update={"adaptive": False})
    autoencoder_backward(networks, *batch(), reconstruction, fixed, adversarial_factor=1.0)
    assert visits == {"lpips": 3, "discriminator": 2, "encoder": 3, "decoder": 4}


def test_before_its_start_the_discriminator_is_only_measured(networks):
    """Factor 0 changes no gradient, but measures and updates the batch statistics; None leaves it alone."""
    statistics = networks.discriminator.main[3].running_mean
    before = statistics.clone()
    plain = autoencoder_backward(networks, *batch(), RECONSTRUCTION, ALIGNMENT)
    expected = {name: value for name, value in gradients(networks).items() if value is not None}
    assert torch.equal(statistics, before)
    assert "adversarial" not in plain.scalars
    networks.vae.zero_grad()
    networks.projection.zero_grad()
    measured = autoencoder_backward(networks, *batch(), RECONSTRUCTION, ALIGNMENT, adversarial_factor=0.0)
    assert not torch.equal(statistics, before)
    assert measured.scalars["adversarial_adaptive_weight"] > 0
    assert torch.equal(measured.scalars["loss"], plain.scalars["loss"])
    found = gradients(networks)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_known_features_take_the_place_of_the_foundation_model(networks):
    images, noise = batch()
    expected = autoencoder_backward(networks, images, noise, RECONSTRUCTION, ALIGNMENT).scalars
    features = networks.foundation(images, grid=noise.shape[2:])
    networks.foundation = None
    assert "mcos" not in autoencoder_backward(networks, images, noise, RECONSTRUCTION, ALIGNMENT).scalars
    found = autoencoder_backward(networks, images, noise, RECONSTRUCTION, ALIGNMENT, features=features).scalars
    assert found == expected


def test_activation_checkpointing_changes_nothing(networks):
    autoencoder_backward(networks, *batch(), RECONSTRUCTION, ALIGNMENT, adversarial_factor=1.0)
    expected = gradients(networks)
    networks.vae.zero_grad()
    networks.projection.zero_grad()
    networks.vae.train().enable_gradient_checkpointing()
    autoencoder_backward(networks, *batch(), RECONSTRUCTION, ALIGNMENT, adversarial_factor=1.0)
    for name, gradient in gradients(networks).items():
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)


def test_micro_batches_add_up(networks):
    """Without batch statistics and with fixed weights, two halves give the gradient of the whole batch."""
    alignment = ALIGNMENT.model_copy(update={"adaptive": False})
    images, noise = batch(4)
    autoencoder_backward(networks, images, noise, RECONSTRUCTION, alignment)
    expected = gradients(networks)
    networks.vae.zero_grad()
    networks.projection.zero_grad()
    for half in (slice(0, 2), slice(2, 4)):
        autoencoder_backward(networks, images[half], noise[half], RECONSTRUCTION, alignment, share=0.5)
    for name, gradient in gradients(networks).items():
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)


def test_several_processes_weigh_like_one(networks):
    """With the two layers' gradients averaged over processes, both weights are those of the whole batch."""
    networks.discriminator.eval()  # batch statistics are of a process
    images, noise = batch(4)
    halves = [(images[half], noise[half]) for half in (slice(0, 2), slice(2, 4))]

    def run(images, noise, average):
        return autoencoder_backward(
            networks, images, noise, RECONSTRUCTION, ALIGNMENT, adversarial_factor=1.0, average=average
        ).scalars

    # every process gives up its gradients, in the same order; the weights themselves do not change those
    given = [[], []]
    for process, half in enumerate(halves):
        run(*half, lambda gradient, process=process: given[process].append(gradient) or gradient)
    means = [(first + second) / 2 for first, second in zip(*given, strict=True)]
    whole = run(images, noise, None)
    for half in halves:
        queue = iter(means)
        scalars = run(*half, lambda gradient, queue=queue: next(queue))
        for name in ("adversarial_adaptive_weight", "alignment_adaptive_weight"):
            torch.testing.assert_close(scalars[name], whole[name], rtol=1e-9, atol=0)


def test_losses_are_float32_islands_in_bf16(networks, monkeypatch):
    for network in (networks.vae, networks.projection, networks.foundation, networks.discriminator):
        network.float()
    with seeded_initialisation(1):
        networks.lpips = LPIPS()
    seen = []

    def spy(name):
        loss = getattr(module, name)

        def call(*arguments):
            seen.append((name, {value.dtype for value in arguments if isinstance(value, torch.Tensor)}))
            if name == "marginal_distance_matrix_loss":  # holds a matrix product
                assert not torch.is_autocast_enabled("cpu")
            return loss(*arguments)

        monkeypatch.setattr(module, name, call)

    names = ["reconstruction_loss", "kl_loss", "generator_loss", "adaptive_weight", "hinge_discriminator_loss"]
    names += ["marginal_cosine_loss", "marginal_distance_matrix_loss"]
    for name in names:
        spy(name)
    images, noise = (value.float() for value in batch())
    reconstruction = RECONSTRUCTION.model_copy(update={"perceptual_weight": 1.0})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = autoencoder_backward(networks, images, noise, reconstruction, ALIGNMENT, adversarial_factor=1.0)
        judged = discriminator_backward(networks.discriminator, step.images, step.reconstructions, "hinge")
    assert {name for name, _ in seen} == set(names)
    assert all(dtypes == {torch.float32} for _, dtypes in seen), seen
    assert all(value.dtype == torch.float32 for value in (step.scalars | judged).values())


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_discriminator_gradient_is_that_of_its_loss(networks, kind):
    real, fake = draw(2, 3, 32, 32, seed=1), draw(2, 3, 32, 32, seed=2)
    loss = {"hinge": hinge_discriminator_loss, "vanilla": vanilla_discriminator_loss}[kind]
    discriminator = networks.discriminator
    loss(discriminator(real), discriminator(fake)).backward()
    expected = {name: parameter.grad for name, parameter in discriminator.named_parameters()}
    for factor, share in ((1.0, 1.0), (1.0, 0.25), (0.0, 1.0)):
        discriminator.zero_grad()
        scalars = discriminator_backward(discriminator, real, fake, kind, factor=factor, share=share)
        for name, parameter in discriminator.named_parameters():
            torch.testing.assert_close(parameter.grad, factor * share * expected[name])
        assert scalars["discriminator"] > 0  # what is measured does not depend on the factor


def test_discriminator_learns_to_tell_apart(networks):
    discriminator = networks.discriminator
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    real, fake = draw(8, 3, 32, 32, seed=1), draw(8, 3, 32, 32, seed=2) * 0.2
    for _ in range(15):
        scalars = discriminator_backward(discriminator, real, fake, "hinge")
        optimizer.step()
        optimizer.zero_grad()
    assert scalars["discriminator_accuracy"] > 0.95
    assert scalars["discriminator_real"] > scalars["discriminator_fake"]
