"""Sampling, decoding, extraction and the features of evaluation on CUDA: the numbers of the CPU."""

import numpy as np
import pytest
import torch

from alight.config import ExtractLatentsConfig
from alight.evaluation.features import FeatureNetworks, ImageFeatures, foundation_features
from alight.flow import SOLVERS
from alight.metrics.features import GreyPixels
from alight.models.foundation import FoundationModel
from alight.models.perceptual import LPIPS
from alight.options import MEAN_SOLVER, SDE_SOLVERS
from alight.pipelines import LightningDiTPipeline
from alight.runtime.device import autocast
from alight.runtime.seeding import seeded_initialisation
from alight.stages.extract_latents import encode, encode_features
from helpers.models import HEAD, normalised, tiny_tokenizer, tiny_transformer, tiny_vit
from helpers.random_inception import random_inception
from helpers.stage_steps import normal

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LABELS, SEEDS = [1, 2, 3], [5, 6, 7]
GUIDANCE = {
    "none": {},
    "classifier_free": {"guidance_scale": 2.0, "guidance_interval": (0.1, 0.9)},
    "some_channels": {"guidance_scale": 2.0, "guidance_channels": 3},
    "internal": {"internal_scale": 1.5, "internal_interval": (0.2, 0.8)},
}

pytestmark = pytest.mark.usefixtures("exact")


def pipeline(device, **options):
    transformer = tiny_transformer(std=0.05, num_layers=2, **options)
    facts = {"latents_mean": [0.1] * 4, "latents_std": [1.5] * 4}
    return LightningDiTPipeline.from_models(tiny_tokenizer(), transformer, facts).to(device)


def draw(device, solver="euler", output_type="latent", transformer=None, **options):
    made = pipeline(device, **(transformer or {}))
    return made(LABELS, 4, solver=solver, seeds=SEEDS, output_type=output_type, **options).images.cpu()


@pytest.mark.parametrize("solver", [*SOLVERS, *SDE_SOLVERS])
def test_every_solver_draws_the_latents_of_the_cpu(solver):
    expected, found = (draw(device, solver, guidance_scale=2.0) for device in (CPU, CUDA))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)  # adaptive solvers may choose other steps


def test_average_velocities_draw_the_latents_of_the_cpu():
    options = {"transformer": {"interval_embedding": True}}
    expected, found = (draw(device, MEAN_SOLVER, **options) for device in (CPU, CUDA))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_wide_head_draws_the_latents_of_the_cpu():
    options = {"transformer": {"head": HEAD}, "timestep_shift": "auto", "last_time": 0.9}
    expected, found = (draw(device, "heun", **options) for device in (CPU, CUDA))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", GUIDANCE)
def test_every_guidance_draws_the_images_of_the_cpu(name):
    options = {"transformer": {"auxiliary_block": 1}, "output_type": "pt", **GUIDANCE[name]}
    expected, found = (draw(device, "ab2", **options) for device in (CPU, CUDA))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_autoguidance_draws_the_latents_of_the_cpu():
    drawn = [
        draw(device, guidance_scale=1.5, guide=tiny_transformer(3, std=0.05, hidden_size=8).to(device))
        for device in (CPU, CUDA)
    ]
    torch.testing.assert_close(drawn[1], drawn[0], rtol=1e-4, atol=1e-4)


def test_bf16_draws_images_that_are_close():
    expected = draw(CUDA, "heun", "pt", guidance_scale=2.0)
    with autocast(CUDA, "bf16"):
        found = draw(CUDA, "heun", "pt", guidance_scale=2.0).float()
    assert (found - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2", "ucgm", "sde_euler", "mean"])
def test_steps_never_wait_for_the_device(solver, no_waiting):
    transformer = {"interval_embedding": True, "auxiliary_block": 1}
    made = pipeline(CUDA, **transformer)
    scale = 1.0 if solver == MEAN_SOLVER else 2.0

    def count(done, latents):
        if done == 1:  # labels and noise have been copied
            no_waiting()
        if done == 4:
            torch.cuda.set_sync_debug_mode("default")

    # one generator on the device, since the noise of single seeds is drawn on the CPU
    generator = torch.Generator(CUDA).manual_seed(0)
    settings = {"guidance_scale": scale, "output_type": "latent", "on_step": count}
    made(LABELS, 6, solver=solver, generator=generator, **settings)


@pytest.mark.parametrize("posterior", ["sample", "mode", "moments"])
def test_extraction_encodes_as_on_the_cpu(posterior):
    config = ExtractLatentsConfig(posterior=posterior, precision="fp32")
    images = normal(4, 3, 32, 32).clamp(-1, 1)

    def encoded(device):
        vae = tiny_tokenizer(mid_block_attention=True).to(device, memory_format=torch.channels_last)
        with torch.no_grad():
            return {key: value.cpu() for key, value in encode(vae, images.to(device), range(4), config).items()}

    expected, found = encoded(CPU), encoded(CUDA)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_extraction_takes_the_features_of_the_cpu(precision):
    config = ExtractLatentsConfig(precision=precision, features={"dtype": "fp32"})
    images = normal(4, 3, 32, 32).clamp(-1, 1)

    def features(device):
        foundation = FoundationModel(tiny_vit(patch_size=4)).to(device)
        return encode_features(foundation, images.to(device), (8, 8), config)

    expected, found = features(CPU), features(CUDA)
    for key, value in found.items():
        error = (value - expected[key]).norm() / expected[key].norm()
        assert error < (1e-4 if precision == "fp32" else 0.03), key


def test_decoding_gives_the_images_of_the_cpu():
    latents = normal(3, 4, 8, 8)

    def images(device):
        vae = normalised(tiny_tokenizer(mid_block_attention=True)).to(device)
        with torch.no_grad():
            return vae.decode_latents(latents.to(device)).cpu()

    torch.testing.assert_close(images(CUDA), images(CPU), rtol=1e-3, atol=1e-4)


def test_statistics_of_latents_are_checked_on_the_device():
    vae = normalised(tiny_tokenizer()).to(CUDA)
    vae.check_latents_statistics(normal(16, 4, 8, 8).to(CUDA))


def test_features_of_evaluation_are_those_of_the_cpu():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)

    def features(device):
        extractors = {
            "foundation": foundation_features(FoundationModel(tiny_vit()).to(device), "vit", 32, device),
            "grey_pixels": GreyPixels(8),
        }
        return ImageFeatures(FeatureNetworks(device, random_inception().to(device), extractors)).update(pixels)

    expected, found = features(CPU), features(CUDA)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert (value - expected[key]).norm() / expected[key].norm() < 1e-3, key


def test_lpips_is_that_of_the_cpu():
    with seeded_initialisation(0):
        lpips = LPIPS()
    pair = normal(2, 3, 32, 32).clamp(-1, 1), normal(2, 3, 32, 32, seed=1).clamp(-1, 1)
    expected = lpips(*pair)
    found = lpips.to(CUDA)(*(images.to(CUDA) for images in pair))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-6)
