"""Tokenizers with newer losses and latents, from training through evaluation, extraction and planning."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from alight import VAVAE
from alight.artifacts import PROJECTION_FILE
from alight.config import (
    EvaluateTokenizerConfig,
    ExtractLatentsConfig,
    PlanConfig,
    TrainFoundationConfig,
    TrainTokenizerConfig,
)
from alight.config.recipes import validate
from alight.evaluation.alignment import alignment_scores
from alight.evaluation.tokenizers import applicable_projection, open_evaluated, open_metric_networks
from alight.models.latent_projector import BlockProjector
from alight.plan.inputs import Inputs
from alight.plan.workload import TokenizerWorkload
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.stages import extract_latents, train_foundation, train_tokenizer
from alight.training.tokenizer_accumulation import Accumulation
from alight.training.tokenizer_flops import tokenizer_flops
from alight.training.tokenizer_networks import Origin, adopt_weights, build_networks, load_foundation
from alight.training.tokenizer_schedule import tokenizer_schedule
from helpers.models import TOKENIZER, tiny_tokenizer
from helpers.runs import log_of
from helpers.written import WEIGHTS, write_model

DIGITS = {"source": "digits", "size": 16}
MODEL = TOKENIZER | {"block_out_channels": (8, 8, 16), "norm_num_groups": 4}
SPHERE = MODEL | {"latent_space": "sphere"}
TERMS = {"gram_weight": 1, "pooled_weight": 1, "patch_weight": 1, "layers": [1, 2], "latent_noise": 0.1}
BLOCK = {"projector": "block", "projector_width": 32}
FITTING = BLOCK | {"layers": [1, 2]}
CONTINUITY = {"continuity_weight": 1, "noise": 0.25, "noise_law": "normal"}
TRAINING = {"steps": 2, "global_batch_size": 4, "log_every": 1, "ema_decay": None, "checkpoint_every": 1}
ALL = {"model": SPHERE, "alignment": TERMS | BLOCK, "regularisation": CONTINUITY}


@pytest.fixture(scope="module")
def foundation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foundation")
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "patch_size": 8}
    training = {"steps": 2, "global_batch_size": 8, "ema_decay": None}
    values = {"output": folder, "images": DIGITS, "device": "cpu", "model": sizes, "training": training}
    train_foundation.run(TrainFoundationConfig.model_validate(values))
    return folder


@pytest.fixture
def configure(foundation, tmp_path):
    def build(output="tokenizer", **options):
        values = {
            "output": tmp_path / output,
            "images": DIGITS,
            "device": "cpu",
            "model": MODEL,
            "reconstruction": {"perceptual_weight": 0, "adversarial_weight": 0},
            "optimizer": {"lr": 1e-3, "betas": (0.5, 0.9), "max_grad_norm": None},
            "preview_images": 0,
        } | options
        values["alignment"] = {"foundation": str(foundation)} | options.get("alignment", {})
        values["training"] = TRAINING | options.get("training", {})
        return validate(TrainTokenizerConfig, values, "test")

    return build


@pytest.fixture(scope="module")
def everything(foundation, tmp_path_factory):
    """A tokenizer with all of them at once."""
    output = tmp_path_factory.mktemp("everything") / "tokenizer"
    values = {
        "output": output,
        "images": DIGITS,
        "device": "cpu",
        "reconstruction": {"perceptual_weight": 0, "adversarial_weight": 0},
        "optimizer": {"lr": 1e-3, "betas": (0.5, 0.9), "max_grad_norm": None},
        "training": TRAINING | {"steps": 3, "keep_checkpoints": 9},
        "preview_images": 0,
    }
    alignment = ALL["alignment"] | {"foundation": str(foundation)}
    train_tokenizer.run(validate(TrainTokenizerConfig, values | ALL | {"alignment": alignment}, "test"))
    return output


def test_every_term_is_in_the_log_by_name(everything):
    lines = log_of(everything)
    expected = {"mcos", "mdms", "gram", "pooled_cosine", "patch_cosine", "continuity", "alignment_adaptive_weight"}
    for line in lines:
        assert expected <= line.keys()
        assert "kl" not in line
        assert all(line[name] > 0 for name in expected)


def test_the_sphere_is_recorded_and_holds_after_training(everything):
    vae = VAVAE.from_pretrained(everything)
    assert vae.latent_space == "sphere"
    assert vae.has_latents_statistics
    assert json.loads((everything / "alight.json").read_text())["facts"]["latent_space"] == "sphere"
    rms = vae.encode_raw_latents(torch.rand(2, 3, 16, 16) * 2 - 1).square().mean(1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), rtol=0, atol=3e-7)


@pytest.mark.parametrize("posterior", ["sample", "mode"])
def test_extracted_latents_lie_on_the_sphere(everything, posterior, tmp_path):
    values = {"tokenizer": everything, "output": tmp_path / "latents", "images": DIGITS, "device": "cpu"}
    values |= {"posterior": posterior, "batch_size": 250, "flips": False, "statistics": "data"}
    extract_latents.run(validate(ExtractLatentsConfig, values, "test"))
    shard = next((tmp_path / "latents").glob("*.safetensors"))
    rms = load_file(shard)["latents"].square().mean(1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), rtol=0, atol=3e-7)


def test_a_stopped_run_goes_on_to_the_bit(everything, configure, tmp_path):
    shutil.copytree(everything, tmp_path / "parts")
    config = configure("parts", **ALL, training={"steps": 3, "keep_checkpoints": 9})
    left = [*config.output.glob("*.json"), *config.output.glob("*.safetensors")]
    for path in (*left, *(config.output / "training" / f"step-0000000{step}.pt" for step in (2, 3))):
        path.unlink()
    train_tokenizer.run(config)
    for name in (WEIGHTS, PROJECTION_FILE):
        one, two = load_file(everything / name), load_file(config.output / name)
        assert all(torch.equal(one[key], two[key]) for key in one), name


@pytest.mark.parametrize(
    ("alignment", "fits"),
    [
        (FITTING, True),
        (FITTING | {"projector": "linear"}, False),
        (FITTING | {"projector_width": 64}, False),
        (FITTING | {"foundation": "other"}, False),
        (FITTING | {"layers": [2]}, False),
        (BLOCK, False),
    ],
)
def test_fine_tuning_takes_over_a_projector_that_fits(everything, configure, alignment, fits):
    aligned = load_foundation(configure())
    config = configure(init_from=str(everything), model={}, alignment=alignment)
    origin = Origin.of(config)
    assert origin.vae.latent_space == "sphere"  # of a section that was left out
    networks = build_networks(config, torch.device("cpu"), origin.vae, aligned, None)
    before = {name: value.clone() for name, value in networks.projection.state_dict().items()}
    adopt_weights(networks, origin, config)
    kept = load_file(everything / PROJECTION_FILE)
    for name, value in networks.projection.state_dict().items():
        assert torch.equal(value, kept[name] if fits else before[name]), name


def test_a_tuned_decoder_keeps_how_its_tokenizer_was_aligned(everything, configure):
    config = configure("tuned", init_from=str(everything), train="decoder", model={}, alignment={"foundation": None})
    tuned = train_tokenizer.run(config)
    before, after = open_evaluated([everything, tuned.path])
    assert after.projection.settings == before.projection.settings
    again = Origin.of(configure(init_from=str(tuned.path), model={}))
    assert again.alignment["layers"] == [1, 2]


def test_a_tokenizer_of_the_other_latents_is_refused(everything, configure, tmp_path):
    plain = write_model(tmp_path / "plain", "tokenizer", tiny_tokenizer(**MODEL))
    with pytest.raises(InputError, match="has gaussian latents, and model.latent_space asks for sphere"):
        train_tokenizer.run(configure("round", init_from=str(plain), model=SPHERE))
    with pytest.raises(InputError, match="has sphere latents, and model.latent_space asks for gaussian"):
        train_tokenizer.run(configure("flat", init_from=str(everything), model=MODEL))


def test_layers_that_do_not_exist_are_refused_before_training(configure):
    with pytest.raises(InputError, match="asks for layer 3 of .*, which has 2"):
        train_tokenizer.run(configure(alignment={"layers": [1, 3]}))


def test_the_projector_is_measured_as_it_was_trained(everything):
    (tokenizer,) = open_evaluated([everything])
    networks, notes = open_metric_networks(EvaluateTokenizerConfig(), [tokenizer])
    assert not notes
    assert networks.foundation.layers == (1, 2)
    projection = applicable_projection(tokenizer, networks.foundation)
    named, _ = open_metric_networks(EvaluateTokenizerConfig(foundation=networks.foundation.name), [tokenizer])
    assert named.foundation.layers is None  # one measure for tokenizers that were aligned with different layers
    assert applicable_projection(tokenizer, named.foundation) is None
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        raw = tokenizer.vae.encode_raw_latents(images)
        features = networks.foundation(images, (4, 4))
        scores = alignment_scores(raw, features, projection)
        projector = BlockProjector(4, 16, 32)
        projector.load_state_dict(load_file(everything / PROJECTION_FILE))
        cosine = torch.nn.functional.cosine_similarity(projector(raw), features, dim=1).mean((1, 2))
    torch.testing.assert_close(scores["alignment_cosine"].float(), cosine, rtol=1e-5, atol=1e-6)


def test_cost_and_plan_know_the_decoders_further_passes(configure):
    counted = {}
    for name, options in {"plain": {}, "continuity": {"regularisation": CONTINUITY}, "all": ALL}.items():
        config = configure(**options)
        networks = build_networks(config, torch.device("cpu"), None, load_foundation(config), None)
        counted[name] = tokenizer_flops(config, networks, False, True, False)
        workload = TokenizerWorkload(config, torch.device("cpu"), 16, Inputs(PlanConfig()))
        workload.backward(2)
        assert workload.parameters > 0
    assert counted["plain"] < counted["continuity"] < counted["all"]


def test_noise_of_alignment_and_turns_are_those_of_each_image(configure):
    """However a batch is divided over processes, an image has the same."""
    config = configure(**ALL)
    networks = build_networks(config, torch.device("cpu"), None, None, None)
    accumulation = Accumulation(config, networks, None, (4, 4, 8, 8), None)
    phase = tokenizer_schedule(config, 8)[0]
    noise, turns = accumulation._noises(slice(0, 4), 3, phase)
    later_noise, later_turns = accumulation._noises(slice(2, 4), 3, phase)
    assert torch.equal(noise[2:], later_noise)
    assert torch.equal(turns.directions[2:], later_turns.directions)
    assert not torch.equal(noise, 0.1 * turns.directions)
    assert noise.std().item() == pytest.approx(0.1, rel=0.1)


def test_a_target_of_the_latents_own_width_is_fitted_once_and_fixed(configure, monkeypatch, caplog):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level("INFO", logger="alight")
    options = {"alignment": {"projection": "components", "gram_weight": 1}, "training": {"keep_checkpoints": 9}}
    config = configure(**options)
    train_tokenizer.run(config)
    assert "the 4 components that latents are aligned with keep" in caplog.text
    weight = load_file(config.output / PROJECTION_FILE)["weight"]
    assert weight.shape == (4, 16, 1, 1)
    rows = weight.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(4), rtol=0, atol=1e-6)
    saved = torch.load(config.output / "training" / "step-00000001.pt", weights_only=True)["state"]
    assert torch.equal(saved["projection"]["weight"], weight)
    assert log_of(config.output)[-1]["mcos"] > 0
    (tokenizer,) = open_evaluated([config.output])
    networks, _ = open_metric_networks(EvaluateTokenizerConfig(), [tokenizer])
    projection = applicable_projection(tokenizer, networks.foundation)
    assert not projection.to_features
    assert torch.equal(projection.weight, weight)


def test_components_are_no_more_than_the_features_have(configure):
    model = MODEL | {"latent_channels": 20}
    with pytest.raises(InputError, match="takes 20 components.*has features of 16"):
        train_tokenizer.run(configure(model=model, alignment={"projection": "components"}))
