"""The optional terms of the tokenizer's objective: their gradient, taken in pieces, is that of the whole at once."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from alight.config import AlignmentConfig, LatentRegularisationConfig, ReconstructionConfig
from alight.models.discriminator import PatchDiscriminator
from alight.models.foundation import FoundationModel
from alight.models.latent_projector import make_latent_projector
from alight.runtime.seeding import seeded_initialisation
from alight.training.decoder_continuity import DecoderContinuity
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward
from helpers.models import tiny_tokenizer, tiny_vit
from helpers.tokenizer_objective import tokenizer_objective

CHANNELS, FEATURES = 4, 16
RECONSTRUCTION = ReconstructionConfig(perceptual_weight=0, kl_weight=1e-2)
ALIGNMENT = AlignmentConfig(weight=0.3, cosine_margin=0.1, distance_margin=0.05, distance_weight=2.0)
ALL = {"gram_weight": 3.0, "pooled_weight": 0.7, "patch_weight": 0.4}


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(size=2):
    return draw(size, 3, 32, 32, seed=1).clamp(-1, 1), draw(size, CHANNELS, 8, 8, seed=2)


def build(projector="linear", latent_space="gaussian"):
    sizes = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "mid_block_attention": True}
    vae = tiny_tokenizer(**sizes, latent_space=latent_space).train()
    with seeded_initialisation(0):
        return TokenizerNetworks(
            vae.double(),
            make_latent_projector(projector, CHANNELS, FEATURES, 32).double(),
            FoundationModel(tiny_vit(patch_size=4, hidden_size=FEATURES, num_hidden_layers=2)).double(),
            PatchDiscriminator(width=8).double(),
        )


def continuity_of(weight=0.5, size=2):
    return DecoderContinuity(weight, (30.0, 85.0), draw(size, CHANNELS, 8, 8, seed=3))


def smaller_and_turned(images, latents):
    latents = F.interpolate(latents, (6, 6), mode="bilinear")
    return F.interpolate(images, (24, 24)).rot90(dims=(2, 3)), latents.rot90(dims=(2, 3))


def players(networks):
    parts = {"vae": networks.vae, "projection": networks.projection}
    named = ((f"{part}.{name}", each) for part, own in parts.items() for name, each in own.named_parameters())
    return {name: each for name, each in named if each.requires_grad}


def assert_pieces_equal_the_whole(networks, reconstruction, alignment, factor=None, **options):
    given = {name: options[name] for name in ("regularisation", "alignment_noise", "continuity") if name in options}
    objective = tokenizer_objective(networks, *batch(), reconstruction, alignment, factor, **given)
    parameters = players(networks)
    expected = torch.autograd.grad(objective.total, list(parameters.values()), allow_unused=True)
    for parameter in parameters.values():
        parameter.grad = None
    step = autoencoder_backward(networks, *batch(), reconstruction, alignment, adversarial_factor=factor, **given)
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        if gradient is not None:  # float64: only the order of additions differs
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-9, msg=name)
    elements = step.images[0].numel() if reconstruction.reduction == "sum" else 1
    torch.testing.assert_close(step.scalars["loss"] * elements, objective.total.detach(), rtol=1e-9, atol=0)
    return step


@pytest.mark.parametrize("factor", [None, 1.0])
@pytest.mark.parametrize("distance_on", ["projected", "latent"])
def test_terms_without_margins(factor, distance_on):
    networks = build()
    for name, adaptive in product((*ALL, None), (True, False)):
        on = ALL if name is None else {name: ALL[name]}
        alignment = ALIGNMENT.model_copy(update=on | {"adaptive": adaptive, "distance_on": distance_on})
        scalars = assert_pieces_equal_the_whole(networks, RECONSTRUCTION, alignment, factor).scalars
        logged = {"gram_weight": "gram", "pooled_weight": "pooled_cosine", "patch_weight": "patch_cosine"}
        assert {logged[each] for each in on} == scalars.keys() & set(logged.values())
    networks.projection = make_latent_projector("linear", FEATURES, CHANNELS).double()
    towards = ALIGNMENT.model_copy(update=ALL | {"projection": "to_latent", "distance_on": distance_on})
    assert_pieces_equal_the_whole(networks, RECONSTRUCTION, towards, factor)


def test_a_fixed_projection_of_the_features_gets_no_gradient():
    networks = build()
    networks.projection = make_latent_projector("linear", FEATURES, CHANNELS).double().requires_grad_(False)
    alignment = ALIGNMENT.model_copy(update=ALL | {"projection": "components"})
    assert_pieces_equal_the_whole(networks, RECONSTRUCTION, alignment, 1.0)
    assert networks.projection.weight.grad is None


@pytest.mark.parametrize("factor", [None, 1.0])
def test_every_parameter_of_a_projector_with_a_block_learns(factor):
    networks = build("block")
    alignment = ALIGNMENT.model_copy(update=ALL | {"projector": "block"})
    noise = 0.3 * draw(2, CHANNELS, 8, 8, seed=5)
    assert_pieces_equal_the_whole(networks, RECONSTRUCTION, alignment, factor, alignment_noise=noise)
    gradients = {name: each.grad for name, each in networks.projection.named_parameters()}
    assert len(gradients) == 13
    assert all(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("latent_space", ["gaussian", "sphere"])
@pytest.mark.parametrize("factor", [None, 1.0])
def test_continuity_of_the_decoder(latent_space, factor):
    networks = build(latent_space=latent_space)
    for reduction, regularisation in product(("sum", "mean"), (None, smaller_and_turned)):
        reconstruction = RECONSTRUCTION.model_copy(update={"reduction": reduction})
        options = {"continuity": continuity_of(), "regularisation": regularisation}
        step = assert_pieces_equal_the_whole(networks, reconstruction, ALIGNMENT, factor, **options)
        assert step.scalars["continuity"] > 0
        assert ("kl" in step.scalars) == (latent_space == "gaussian")
        networks.discriminator.zero_grad()


def test_continuity_weighs_nothing_in_adaptive_weights():
    """Their reference is the reconstruction alone, as published."""
    networks = build()
    with_it, without = (
        autoencoder_backward(networks, *batch(), RECONSTRUCTION, ALIGNMENT, adversarial_factor=1.0, continuity=each)
        for each in (continuity_of(), None)
    )
    for name in ("adversarial_adaptive_weight", "alignment_adaptive_weight"):
        torch.testing.assert_close(with_it.scalars[name], without.scalars[name], rtol=1e-12, atol=0)


def test_sphere_latents_have_no_kl_term_whatever_its_weight():
    networks = build(latent_space="sphere")
    found = []
    for weight in (0.0, 10.0):
        networks.vae.zero_grad()
        reconstruction = RECONSTRUCTION.model_copy(update={"kl_weight": weight})
        step = assert_pieces_equal_the_whole(networks, reconstruction, ALIGNMENT)
        found.append([parameter.grad for parameter in networks.vae.parameters()])
        assert "kl" not in step.scalars
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    rows = networks.vae.quant_conv.weight.grad.chunk(2)
    assert rows[0].any()
    assert not rows[1].any()  # of the log-variance


def test_micro_batches_of_the_optional_terms_add_up():
    networks, alignment = build("block"), ALIGNMENT.model_copy(update=ALL | {"adaptive": False})
    images, noise = batch(4)
    continuity = DecoderContinuity.of(
        LatentRegularisationConfig(continuity_weight=0.5), draw(4, CHANNELS, 8, 8, seed=3)
    )
    added = 0.3 * draw(4, CHANNELS, 8, 8, seed=5)

    def gradients(*parts):
        for parameter in players(networks).values():
            parameter.grad = None
        for part in parts:
            options = {"continuity": continuity.part(part), "alignment_noise": added[part], "share": 1 / len(parts)}
            autoencoder_backward(networks, images[part], noise[part], RECONSTRUCTION, alignment, **options)
        return {name: parameter.grad for name, parameter in players(networks).items()}

    whole, halves = gradients(slice(0, 4)), gradients(slice(0, 2), slice(2, 4))
    for name, gradient in whole.items():
        torch.testing.assert_close(halves[name], gradient, rtol=1e-9, atol=1e-9, msg=name)


def test_optional_terms_are_float32_in_bf16():
    networks = build("block", "sphere")
    for network in (networks.vae, networks.projection, networks.foundation, networks.discriminator):
        network.float()
    images, noise = (value.float() for value in batch())
    continuity = DecoderContinuity(0.5, (30.0, 85.0), noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alignment = ALIGNMENT.model_copy(update=ALL)
        options = {"alignment_noise": noise, "continuity": continuity, "adversarial_factor": 1.0}
        step = autoencoder_backward(networks, images, noise, RECONSTRUCTION, alignment, **options)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in step.scalars.values())
    assert all(parameter.grad.isfinite().all() for parameter in players(networks).values())
