"""Precision and compilation that are left to the device: chosen, recorded, and kept where a run goes on."""

import json
import logging

import pytest
import torch
from pydantic import BaseModel

from alight import device_settings
from alight.artifacts import differences, read_artifact
from alight.config import (
    EvaluateConfig,
    QuickstartConfig,
    SampleConfig,
    TrainTokenizerConfig,
    TrainTransformerConfig,
)
from alight.config.commands import COMMANDS
from alight.config.recipes import load_config, shipped_recipes
from alight.device_settings import STEPS, compiles, settled, with_compilation
from alight.runtime.device import default_precision
from alight.runtime.errors import InputError
from alight.stages import train_transformer
from helpers.runs import losses, stopping_after
from helpers.written import same_weights, write_latents

CPU, MPS, CUDA = torch.device("cpu"), torch.device("mps"), torch.device("cuda")
MODEL = {"preset": None, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "patch_size": 1}


@pytest.fixture
def modern_gpu(monkeypatch):
    """Decide as on a machine with a GPU that computes in bf16 and can be compiled for; nothing runs on it."""
    monkeypatch.setattr(device_settings, "default_precision", lambda device: "bf16" if device == CUDA else "fp32")
    monkeypatch.setattr(device_settings, "can_compile", lambda device: device == CUDA)


def values(config, key):
    """Every value of a key in a configuration, in any section."""
    found = [] if not isinstance(config, BaseModel) else [pair for pair in config]
    own = [value for name, value in found if name == key]
    return own + [each for _, value in found for each in values(value, key)]


# --- the choice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [CPU, MPS])
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_everything_but_cuda_computes_in_float32_and_compiles_nothing(command, device):
    config = settled(COMMANDS[command].config(), device)
    assert set(values(config, "precision")) <= {"fp32", None}  # None: of Muon
    assert not any(values(getattr(config, "training", None), "compile"))
    if values(config, "compile") == ["auto"]:
        assert with_compilation(config, device, 10**9, 1).compile is False


@pytest.mark.usefixtures("modern_gpu")
@pytest.mark.parametrize("recipe", sorted(shipped_recipes()))
def test_a_gpu_computes_every_shipped_recipe_in_bf16(recipe):
    config = load_config(recipe)
    given = values(config, "precision")
    found = values(settled(config, CUDA), "precision")
    assert found == ["bf16" if value == "auto" else value for value in given]
    assert "fp32" not in found or recipe == "imagenet/latents"  # as published


@pytest.mark.usefixtures("modern_gpu")
def test_only_long_trainings_are_compiled():
    for steps, compiled in ((STEPS - 1, False), (STEPS, True)):
        config = TrainTokenizerConfig(training={"steps": steps})
        assert settled(config, CUDA).training.compile is compiled
        assert settled(config, CPU).training.compile is False
    assert settled(load_config("imagenet/transformer_xl_64ep"), CUDA).training.compile is True
    assert settled(load_config("imagenet/tokenizer_f16d32_released"), CUDA).training.compile is True
    assert not any(values(settled(load_config("quickstart"), CUDA).transformer, "compile"))


@pytest.mark.usefixtures("modern_gpu")
def test_derivatives_in_forward_mode_are_not_compiled():
    config = TrainTransformerConfig(init_from="somewhere", flow={"objective": "average_velocity"})
    assert settled(config, CUDA).training.compile is False


@pytest.mark.usefixtures("modern_gpu")
def test_what_is_given_stays():
    for precision, compiled in (("fp32", False), ("bf16", True)):
        training = {"steps": 10**6 if not compiled else 1, "precision": precision, "compile": compiled}
        for device in (CPU, CUDA):
            found = settled(TrainTransformerConfig(training=training), device).training
            assert (found.precision, found.compile) == (precision, compiled)
            assert compiles(compiled, device, 10**9, 1) == compiled


@pytest.mark.usefixtures("modern_gpu")
def test_the_choice_is_logged(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("alight"), "propagate", True)
    caplog.set_level(logging.INFO)
    settled(TrainTransformerConfig(), CPU)
    assert not caplog.text
    settled(TrainTransformerConfig(), CUDA)
    assert "Chosen for cuda: training.precision bf16, training.compile True." in caplog.text


def test_this_machine_has_a_default():
    assert default_precision(CPU) == default_precision(MPS) == "fp32"


# --- comparison -----------------------------------------------------------------------------------------------------


def test_explicit_values_of_earlier_versions_stay_comparable():
    new = TrainTransformerConfig().model_dump(mode="json")
    before = {**new, "training": {**new["training"], "precision": "fp32", "compile": False}}
    assert differences(before, new) == []
    assert differences(before, settled(TrainTransformerConfig(), CPU).model_dump(mode="json")) == []
    other = {**new, "training": {**new["training"], "precision": "bf16"}}
    assert differences(before, other) == ["training.precision: fp32 -> bf16"]
    study = QuickstartConfig().model_dump(mode="json")
    earlier = json.loads(json.dumps(study).replace('"precision": "auto"', '"precision": "fp32"'))
    assert differences(earlier, study) == []


@pytest.mark.parametrize("config", [SampleConfig(), EvaluateConfig()])
def test_results_of_versions_without_compilation_stay_comparable(config):
    new = settled(config, CPU).model_dump(mode="json")
    before = json.loads(json.dumps(new))
    before.pop("compile")
    before.get("draw", {}).pop("compile", None)
    assert differences(before, new) == []
    assert differences(new, {**new, "compile": True}) == []


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("latents"), count=24)


def configure(latents, output, **training):
    options = {"steps": 4, "global_batch_size": 8, "log_every": 1, "ema_decay": 0.9, "checkpoint_every": 1}
    given = {"latents": latents, "output": output, "device": "cpu", "model": MODEL, "training": options | training}
    return TrainTransformerConfig.model_validate(given)


def test_the_value_is_recorded(latents, tmp_path):
    train_transformer.run(configure(latents, tmp_path))
    training = read_artifact(tmp_path, "transformer").config["training"]
    assert (training["precision"], training["compile"]) == ("fp32", False)
    train_transformer.run(configure(latents, tmp_path, precision="fp32"))  # finished already
    with pytest.raises(InputError, match=r"training\.precision: fp32 -> bf16"):
        train_transformer.run(configure(latents, tmp_path, precision="bf16"))


def test_a_run_goes_on_elsewhere_in_the_precision_that_it_was_begun_with(latents, tmp_path, monkeypatch, caplog):
    """Begun in bf16, as on a GPU, and gone on with on the CPU, whose own choice is fp32."""
    monkeypatch.setattr(logging.getLogger("alight"), "propagate", True)
    caplog.set_level(logging.INFO)
    train_transformer.run(configure(latents, tmp_path / "whole", precision="bf16"))
    train_transformer.run(configure(latents, tmp_path / "other"))
    parts = tmp_path / "parts"
    with monkeypatch.context() as gpu, stopping_after(monkeypatch, 2):
        gpu.setattr(device_settings, "default_precision", lambda device: "bf16")
        train_transformer.run(configure(latents, parts))
    with pytest.raises(InputError, match=r"training\.precision: bf16 -> fp32"):
        train_transformer.run(configure(latents, parts, precision="fp32"))
    train_transformer.run(configure(latents, parts))
    assert "training.precision bf16 (as this run was begun)" in caplog.text
    assert same_weights(tmp_path / "whole", parts)
    assert losses(tmp_path / "whole") == losses(parts) != losses(tmp_path / "other")
    assert read_artifact(parts, "transformer").config["training"]["precision"] == "bf16"
    train_transformer.run(configure(latents, parts, steps=5))  # longer, likewise
    assert read_artifact(parts, "transformer").config["training"]["precision"] == "bf16"
