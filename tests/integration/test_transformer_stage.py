"""The transformer stage on latents made here: every path and prediction trains, and time is drawn as configured."""

import json

import pytest
import torch

from alight import LightningDiT
from alight.artifacts import write_manifest, writing_folder
from alight.config import FlowConfig, TrainTransformerConfig
from alight.data.latents import LatentWriter
from alight.runtime.errors import InputError
from alight.stages import train_transformer

TINY_MODEL = {"preset": None, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "patch_size": 1}


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    generator = torch.Generator().manual_seed(0)
    with writing_folder(folder) as staging:
        writer = LatentWriter(staging, shard_size=16)
        writer.add(torch.randn(40, 4, 2, 2, generator=generator), torch.arange(40) % 3)
        digest = writer.close((writer.statistics.mean, writer.statistics.std), "data", ["a", "b", "c"])
        write_manifest(staging, "latents", {}, digest, {"tokenizer": "t" * 64})
    return folder


def configure(latents, output, steps=4, **options):
    training = {"steps": steps, "global_batch_size": 8, "log_every": 1, "ema_decay": 0.9}
    training |= options.pop("training", {})
    values = {"latents": latents, "output": output, "device": "cpu", "model": TINY_MODEL, "training": training}
    return TrainTransformerConfig.model_validate(values | options)


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "training" / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
@pytest.mark.parametrize("prediction", ["velocity", "noise", "score"])
def test_every_path_and_prediction_trains(latents, tmp_path, path, prediction):
    config = configure(latents, tmp_path, flow={"path": path, "prediction": prediction})
    artifact = train_transformer.run(config)
    assert all(loss == loss and abs(loss) < 1e4 for loss in losses(tmp_path))
    assert (artifact.facts["path"], artifact.facts["prediction"]) == (path, prediction)
    model = LightningDiT.from_pretrained(tmp_path)
    assert model.config.num_classes == 3


def test_accumulation_and_checkpointing_change_nothing(latents, tmp_path):
    train_transformer.run(configure(latents, tmp_path / "whole"))
    options = {"micro_batch_size": 2, "activation_checkpointing": True}
    train_transformer.run(configure(latents, tmp_path / "parts", training=options))
    one, two = (LightningDiT.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "parts"))
    # the same numbers, added in another order: float32 rounding, which Adam's first steps amplify
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "parts"), rel=1e-5)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6, msg=name)


def test_time_turns_uniform_at_the_given_step():
    flow = FlowConfig(uniform_from_step=10)
    early, late = (
        train_transformer.draw_times(flow, step, 20_000, torch.Generator().manual_seed(0)) for step in (9, 10)
    )
    # P(|t - 1/2| < 1/4): uniform 1/2; logit-normal 2 Phi(ln 3) - 1 = 0.728; standard error 0.0035
    inside = [((t - 0.5).abs() < 0.25).float().mean().item() for t in (early, late)]
    assert inside == pytest.approx([0.728, 0.5], abs=0.02)


def test_another_run_in_the_same_folder_is_refused(latents, tmp_path):
    train_transformer.run(configure(latents, tmp_path))
    with pytest.raises(InputError, match=r"optimizer\.lr"):
        train_transformer.run(configure(latents, tmp_path, optimizer={"lr": 0.5}))
