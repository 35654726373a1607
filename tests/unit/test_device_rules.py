"""The rules of an accelerator, kept on the meta device: no tensor is left behind, and hardly anything waits for it.

Every hot path runs here as it would on a GPU, but for the values. `WAITS` names the places that may wait.
"""

import numpy as np
import pytest
import torch

from alight.config import ExtractLatentsConfig
from alight.evaluation.features import FeatureNetworks, ImageFeatures, foundation_features
from alight.flow import GUIDANCES
from alight.flow.solvers import FIXED_STEP
from alight.metrics.features import GreyPixels
from alight.models.foundation import FoundationModel
from alight.options import MEAN_SOLVER, SDE_SOLVERS
from alight.pipelines import LightningDiTPipeline
from alight.stages.extract_latents import encode, encode_features
from alight.training.meter import Averages
from helpers.meta_device import META, AcceleratorRules, Place, StrandedTensorError, use_fused_optimizers
from helpers.models import HEAD, tiny_tokenizer, tiny_transformer, tiny_vit
from helpers.random_inception import random_inception
from helpers.stage_steps import (
    TOKENIZER_STEPS,
    TRANSFORMER_STEPS,
    Parts,
    TokenizerTraining,
    TransformerTraining,
    normal,
)

FINITE = Place("pipelines/call_arguments.py", "require_finite")
STORED = Place("stages/extract_latents.py", "encode_features")
MUON = Place("training/optimizer.py", "optimizer_step")
MEASURED = Place("evaluation/features.py", "update")
INCEPTION = Place("metrics/inception_set.py", "update")
STATISTICS = Place("metrics/frechet.py", "update")
CLASSES = Place("metrics/inception_score.py", "update")
WAITS = {
    MUON: "it has no fused kernel that could skip a step that is not finite, so the host decides, once in a step",
    FINITE: "latents and images that are not finite are refused, once in a call",
    STORED: "features are written to disk, once in a batch",
    MEASURED: "features are added up in float64 on the host, once in a batch",
    INCEPTION: "likewise",
    STATISTICS: "likewise",
    CLASSES: "likewise",
}
# Adaptive solvers are left out: they choose the length of each step by an error that the host reads.
SOLVERS = [*FIXED_STEP, *SDE_SOLVERS]


@pytest.fixture(autouse=True)
def _fused_kernels(monkeypatch):
    use_fused_optimizers(monkeypatch)


@pytest.fixture
def rules():
    with AcceleratorRules() as active:
        yield active


def places(rules):
    """The places that waited, all of which may."""
    assert rules.waits.keys() <= WAITS.keys()
    return set(rules.waits)


# --- the instrument -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question",
    [
        torch.Tensor.item,
        torch.Tensor.cpu,
        torch.Tensor.tolist,
        bool,
        float,
        int,
        torch.nonzero,
        lambda x: torch.zeros(1).copy_(x),
        lambda x: torch.equal(x, x),
        lambda x: x.to("cpu", torch.float64),
    ],
)
def test_questions_are_noted(rules, question):
    question(torch.ones(1, device=META))
    assert len(rules.waits) == 1


def test_tensors_left_behind_are_refused(rules):
    on_device = torch.ones(3, device=META)
    for operation in (torch.add, torch.dot, lambda x, y: torch.stack([x, y]), lambda x, y: x[y.long()]):
        with pytest.raises(StrandedTensorError, match="left on the CPU"):
            operation(on_device, torch.ones(3))


def test_what_needs_no_answer_is_not_noted(rules):
    x = torch.ones(3).to(META) * torch.tensor(2.0)
    x.to("cpu", non_blocking=True)
    torch.zeros(3).copy_(x, non_blocking=True)
    assert not rules.waits


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", TRANSFORMER_STEPS)
def test_the_step_of_the_transformer(rules, kind, optimizer):
    training, averages = TransformerTraining.build(META, kind, optimizer=optimizer), Averages()
    for name, scalar in training.step(META).items():
        averages.add(name, scalar)
        assert scalar.device == META, name
    assert places(rules) == ({MUON} if optimizer == "muon" else set())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", TOKENIZER_STEPS)
def test_the_step_of_the_tokenizer(rules, kind, checkpointing):
    training, averages = TokenizerTraining.build(META, kind), Averages()
    if checkpointing:
        training.networks.vae.enable_gradient_checkpointing()
    for name, scalar in training.step(META).items():
        averages.add(name, scalar)
        assert scalar.device == META, name
    assert not rules.waits


# --- sampling -----------------------------------------------------------------------------------------------------


def pipeline(**options):
    facts = {"latents_mean": [0.1] * 4, "latents_std": [1.5] * 4}
    transformer = tiny_transformer(num_layers=2, auxiliary_block=1, interval_embedding=True, **options)
    return LightningDiTPipeline.from_models(tiny_tokenizer(), transformer, facts).to(META)


@pytest.mark.parametrize("solver", SOLVERS)
def test_steps_of_every_solver(rules, solver):
    seen = []
    settings = {"guidance_scale": 2.0, "guidance_interval": (0.1, 0.9), "timestep_shift": 0.3, "output_type": "latent"}
    on_step = lambda done, latents: seen.append(dict(rules.waits))  # noqa: E731
    latents = pipeline()([1, 2], 4, solver=solver, seeds=[3, 4], on_step=on_step, **settings).images
    assert latents.device == META
    assert len(seen) >= 4
    assert not any(seen)
    assert places(rules) == {FINITE}


@pytest.mark.parametrize("output_type", ["latent", "pt"])
def test_steps_of_average_velocities(rules, output_type):
    pipeline()([1, 2], 4, solver=MEAN_SOLVER, seeds=[3, 4], output_type=output_type)
    assert places(rules) == {FINITE}


@pytest.mark.parametrize("guidance", [*GUIDANCES, "internal"])
@pytest.mark.parametrize("channels", [None, 3])
def test_every_guidance(rules, guidance, channels):
    options = {"guidance_scale": 2.0, "guidance": guidance, "guidance_channels": channels}
    if guidance == "autoguidance":
        options["guide"] = tiny_transformer(hidden_size=8).to(META)
    if guidance == "internal":
        options = {"internal_scale": 1.5, "internal_interval": (0.2, 0.8)}
    pipeline()([1, 2], 4, solver="heun", seeds=[3, 4], output_type="latent", **options)
    assert places(rules) == {FINITE}


def test_a_wide_head_and_guidance_of_rows(rules):
    facts = {"latents_mean": [0.1] * 4, "latents_std": [1.5] * 4}
    made = LightningDiTPipeline.from_models(tiny_tokenizer(), tiny_transformer(head=HEAD), facts).to(META)
    settings = {"guidance_scale": 2.0, "timestep_shift": "auto", "last_time": 0.9, "output_type": "latent"}
    assert made([1, 2], 4, seeds=[3, 4], **settings).images.device == META
    velocity = made.velocity([1, 2], 2.0, (0.1, 0.9))
    with torch.no_grad():
        assert velocity(normal(2, 4, 4, 4).to(META), torch.rand(2).to(META)).device == META
    assert places(rules) == {FINITE}


# --- extraction and evaluation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", ["sample", "mode", "moments"])
def test_encoding(rules, posterior):
    vae = tiny_tokenizer(level_attention=True, mid_block_attention=True).to(META, memory_format=torch.channels_last)
    images = normal(2, 3, 32, 32).to(META)
    with torch.no_grad():
        encoded = encode(vae, images, range(2), ExtractLatentsConfig(posterior=posterior, precision="fp32"))
    assert all(tensor.device == META for tensor in encoded.values())
    assert not rules.waits


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("foundation_input", ["own", "published"])
def test_features_of_extraction(rules, foundation_input, size):
    foundation = FoundationModel(tiny_vit(), input_mode=foundation_input).to(META)
    encode_features(foundation, normal(2, 3, size, size).to(META), (5, 5), ExtractLatentsConfig(precision="fp32"))
    assert places(rules) == {STORED}


def test_features_of_evaluation(rules):
    foundation = foundation_features(FoundationModel(tiny_vit()).to(META), "vit", 32, META)
    networks = FeatureNetworks(META, random_inception().to(META), {"foundation": foundation, "grey": GreyPixels(8)})
    ImageFeatures(networks).update(np.zeros((2, 32, 32, 3), dtype=np.uint8))
    assert places(rules) == {MEASURED, INCEPTION, STATISTICS, CLASSES}


def test_lpips_alone(rules):
    lpips = Parts.build().lpips.to(META)
    assert lpips(*(normal(2, 3, 32, 32, seed=seed).to(META) for seed in (0, 1))).device == META
    assert not rules.waits
