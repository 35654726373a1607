"""The quickstart as Apple's processors would run it: every stage on the meta device, under their limits."""

import contextlib

import numpy as np
import pytest
import torch

from alight.config.recipes import load_config
from alight.data.latent_statistics import ChannelStatistics
from alight.evaluation.alignment import LinearMap, alignment_scores
from alight.evaluation.features import FeatureNetworks, ImageFeatures, foundation_features
from alight.evaluation.reconstruction import encode as encode_for_report
from alight.metrics.features import GreyPixels
from alight.metrics.reconstruction import ssim
from alight.models.foundation import FoundationModel
from alight.models.principal_components import start_from_principal_components
from alight.models.vavae import VAVAE
from alight.pipelines import LightningDiTPipeline
from alight.plan.untrained import LatentShape
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.seeding import noise_of_batch, random_stream
from alight.stages import train_foundation, train_tokenizer
from alight.stages.extract_latents import encode
from alight.training import tokenizer_networks, transformer_networks
from alight.training.optimizer import make_optimizer, optimizer_step
from alight.training.tokenizer_step import autoencoder_backward
from alight.training.transformer_step import TransformerBatch, draw_times, transformer_backward
from helpers.apple import AppleRules, without_kernel
from helpers.meta_device import META, use_fused_optimizers
from helpers.models import normalised
from helpers.stage_steps import normal

RECIPE = load_config("quickstart")
BATCH, CLASSES, SIZE = 2, 10, RECIPE.images.size


@pytest.fixture(autouse=True)
def _fused_kernels(monkeypatch):
    use_fused_optimizers(monkeypatch)


@pytest.fixture
def rules():
    with AppleRules() as active:
        yield active
    assert not active.broken


def images():
    return normal(BATCH, 3, SIZE, SIZE).clamp(-1, 1).to(META)


def foundation_network():
    return train_foundation.build_model(RECIPE.foundation.model_copy(update={"images": RECIPE.images}), CLASSES)


def foundation():
    return FoundationModel(foundation_network().vit).to(META)


def tokenizer():
    return normalised(VAVAE.build(**RECIPE.tokenizer.model.architecture, sample_size=SIZE)).to(META)


def latents():
    vae = RECIPE.tokenizer.model
    side = SIZE // vae.downsampling_factor
    return LatentShape((vae.latent_channels, side, side), CLASSES)


def transformer():
    return transformer_networks.build_networks(RECIPE.transformer, latents(), Processes(0, 1, META))


def test_the_list_of_kernels_is_the_one_of_pytorch():
    missing = without_kernel()
    assert {"_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward"} <= missing
    assert not {"addmm", "native_group_norm", "_upsample_bilinear2d_aa", "convolution", "add.Tensor"} & missing


def test_limits_are_noticed():
    with AppleRules() as active:
        x = torch.ones(1, 1, 8, 8).to(META).requires_grad_()
        torch.nn.functional.interpolate(x, (4, 4), mode="bilinear", antialias=True).sum().backward()
        x.double()
    assert len(active.broken) == 2


def test_foundation_training(rules):
    model, labels = foundation_network().to(META), torch.zeros(BATCH, dtype=torch.int64, device=META)
    optimizer = make_optimizer(model.named_parameters(), RECIPE.foundation.optimizer)
    train_foundation.objective(model, images(), labels, 0, 0).backward()
    optimizer_step(optimizer, 1e-3, RECIPE.foundation.optimizer.max_grad_norm)


@pytest.mark.skipif("native_group_norm_backward" in without_kernel(), reason="an earlier PyTorch, see docs/devices.md")
def test_tokenizer_training(rules):
    config = RECIPE.tokenizer.model_copy(update={"images": RECIPE.images})
    networks = tokenizer_networks.build_networks(config, META, None, foundation(), None)
    start_from_principal_components(networks.vae, images())
    noise = normal(BATCH, *latents().shape).to(META)
    autoencoder_backward(networks, images(), noise, config.reconstruction, config.alignment)
    for optimizer in train_tokenizer.build_optimizers(networks, config.optimizer).values():
        optimizer_step(optimizer, 1e-3, config.optimizer.max_grad_norm)


@torch.no_grad()
def test_statistics_of_latents(rules):
    vae = tokenizer()
    statistics = ChannelStatistics(vae.config.latent_channels)
    statistics.update(vae.encode_raw_latents(images(), random_stream(0, "statistics noise")))


@torch.no_grad()
def test_check_of_the_statistics(rules):
    vae = tokenizer()
    with contextlib.suppress(InputError):  # the values are made up, and need not fit
        vae.check_latents_statistics(vae.posterior(images()).mean)


@torch.no_grad()
def test_extraction(rules):
    encode(tokenizer(), images(), range(BATCH), RECIPE.latents.model_copy(update={"precision": "fp32"}))


def test_transformer_training(rules):
    config, networks = RECIPE.transformer, transformer()
    shape, labels = latents().shape, torch.zeros(BATCH, dtype=torch.int64)
    t, x_0 = draw_times(config.flow, 0, BATCH, random_stream(0, "step", 0)), noise_of_batch(slice(0, 2), shape, 0, "x")
    batch = TransformerBatch(normal(BATCH, *shape), labels, t, x_0, labels).to(META)
    transformer_backward(networks.forward, batch, config.flow)
    optimizer_step(networks.optimizer, 1e-3, config.optimizer.max_grad_norm)
    networks.ema.update(networks.model, 0)


def test_sampling(rules):
    statistics = {name: [1.0] * latents().shape[0] for name in ("latents_mean", "latents_std")}
    pipeline = LightningDiTPipeline.from_models(tokenizer(), transformer().model.eval(), statistics)
    settings = RECIPE.samples.sampling.model_dump(include={"num_inference_steps", "guidance_scale", "solver"})
    for solver in dict.fromkeys((settings.pop("solver"), "ab2")):  # of the samples, and of the previews
        pipeline([0, 1], seeds=[0, 1], output_type="pt", solver=solver, guidance_interval=(0.1, 1.0), **settings)


@torch.no_grad()
def test_report(rules):
    vae, model, pixels = tokenizer(), foundation(), images()
    networks = FeatureNetworks(
        META, None, {"foundation": foundation_features(model, "own", SIZE, META), "grey_pixels": GreyPixels(8)}
    )
    ImageFeatures(networks).update(np.zeros((BATCH, SIZE, SIZE, 3), dtype=np.uint8))
    raw_latents = encode_for_report(vae, pixels, range(BATCH), RECIPE.report)
    ssim(vae.decode_raw_latents(raw_latents), pixels)
    features = model(pixels, raw_latents.shape[2:])
    linear_map = LinearMap(torch.zeros(features.shape[1], raw_latents.shape[1], 1, 1, device=META), 1)
    alignment_scores(raw_latents, features, linear_map=linear_map)
