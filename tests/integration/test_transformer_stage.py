"""The transformer stage on latents made here: every path and prediction trains, and time is drawn as configured."""

import pytest
import torch
from PIL import Image

from alight import VAVAE, LightningDiT
from alight.artifacts import write_manifest
from alight.config import FlowConfig, TrainTransformerConfig
from alight.outputs import writing_folder
from alight.runtime.errors import InputError
from alight.stages import train_transformer
from alight.training.transformer_step import draw_times
from helpers.models import tiny_tokenizer
from helpers.runs import losses, train_in_processes
from helpers.written import TOKENIZER_HASH, same_weights, write_latents, write_model

TINY_MODEL = {"preset": None, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "patch_size": 1}


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("latents"), count=40)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One that has learned nothing, under the hash that the latents name."""
    return write_model(tmp_path_factory.mktemp("tokenizer"), "tokenizer", tiny_tokenizer(), TOKENIZER_HASH)


def configure(latents, output, steps=4, **options):
    training = {"steps": steps, "global_batch_size": 8, "log_every": 1, "ema_decay": 0.9}
    training |= options.pop("training", {})
    values = {"latents": latents, "output": output, "device": "cpu", "model": TINY_MODEL, "training": training}
    return TrainTransformerConfig.model_validate(values | options)


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
    early, late = (draw_times(flow, step, 20_000, torch.Generator().manual_seed(0)) for step in (9, 10))
    # P(|t - 1/2| < 1/4): uniform 1/2; logit-normal 2 Phi(ln 3) - 1 = 0.728; standard error 0.0035
    inside = [((t - 0.5).abs() < 0.25).float().mean().item() for t in (early, late)]
    assert inside == pytest.approx([0.728, 0.5], abs=0.02)


def test_another_run_in_the_same_folder_is_refused(latents, tmp_path):
    train_transformer.run(configure(latents, tmp_path))
    with pytest.raises(InputError, match=r"optimizer\.lr"):
        train_transformer.run(configure(latents, tmp_path, optimizer={"lr": 0.5}))


# --- samples on the way -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema_decay", [0.9, None])
def test_samples_are_drawn_on_the_way_and_change_nothing(latents, tokenizer, tmp_path, ema_decay):
    training = {"ema_decay": ema_decay, "tensorboard": True}
    watched = {"samples_every": 2, "sample_images": 5, "samples_tokenizer": tokenizer, "training": training}
    train_transformer.run(configure(latents, tmp_path / "watched", **watched))
    train_transformer.run(configure(latents, tmp_path / "alone", training={"ema_decay": ema_decay}))
    assert same_weights(tmp_path / "watched", tmp_path / "alone")
    assert losses(tmp_path / "watched") == losses(tmp_path / "alone")
    pictures = sorted((tmp_path / "watched" / "training" / "samples").iterdir())
    assert [path.name for path in pictures] == ["step-00000002.png", "step-00000004.png"]
    grids = [Image.open(path) for path in pictures]
    assert {grid.size for grid in grids} == {(3 * 4 + 2 * 2, 2 * 4 + 2)}  # 5 images of 4 x 4 pixels in rows of 3
    assert grids[0].tobytes() != grids[1].tobytes()
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulator.EventAccumulator(str(tmp_path / "watched" / "training" / "tensorboard"))
    shown.Reload()
    assert [image.step for image in shown.Images("samples")] == [2, 4]


def test_samples_are_drawn_by_default_where_the_tokenizer_is_known(latents, tokenizer, tmp_path):
    for name, options in (("shown", {}), ("hidden", {"sample_images": 0})):
        train_transformer.run(configure(latents, tmp_path / name, samples_tokenizer=tokenizer, **options))
    assert same_weights(tmp_path / "shown", tmp_path / "hidden")
    assert losses(tmp_path / "shown") == losses(tmp_path / "hidden")
    assert not list((tmp_path / "hidden" / "training").rglob("*.png"))
    folder = tmp_path / "shown" / "training"
    drawn = sorted((folder / "samples").iterdir())
    assert [path.name for path in drawn] == ["step-00000001.png", "step-00000002.png", "step-00000004.png"]
    assert (folder / "samples.png").read_bytes() == drawn[-1].read_bytes()
    train_transformer.run(configure(latents, tmp_path / "unknown"))  # no tokenizer, and nobody asked
    assert not list((tmp_path / "unknown" / "training").rglob("*.png"))


def test_watching_may_begin_and_end_within_a_run(latents, tokenizer, tmp_path):
    train_transformer.run(configure(latents, tmp_path))
    for leftover in (*tmp_path.glob("*.json"), *(tmp_path / "training").glob("step-*")):
        leftover.unlink()
    watched = {"samples_every": 1, "samples_tokenizer": tokenizer, "training": {"tensorboard": True}}
    train_transformer.run(configure(latents, tmp_path, **watched))  # the same run for all that matters
    assert train_transformer.run(configure(latents, tmp_path)).facts["steps"] == 4


def test_samples_need_the_tokenizer_of_the_latents(latents, tokenizer, tmp_path):
    with pytest.raises(InputError, match="is not known. Name its folder with --samples-tokenizer"):
        train_transformer.run(configure(latents, tmp_path, samples_every=1))
    other = tmp_path.with_name("other")
    with writing_folder(other) as staging:
        VAVAE.from_pretrained(tokenizer).save_pretrained(staging)
        write_manifest(staging, "tokenizer", {}, "o" * 64)
    with pytest.raises(InputError, match="were made with another tokenizer"):
        train_transformer.run(configure(latents, tmp_path, samples_every=1, samples_tokenizer=other))
    assert not list((tmp_path / "training").glob("*"))


def test_processes_that_share_one_model_draw_together(latents, tokenizer, tmp_path):
    for name, options in (("alone", {}), ("watched", {"samples_every": 2, "samples_tokenizer": str(tokenizer)})):
        train_in_processes(configure(latents, tmp_path / name, training={"sharding": "shard"}, **options))
    assert same_weights(tmp_path / "watched", tmp_path / "alone")
    train_transformer.run(configure(latents, tmp_path / "single", samples_every=2, samples_tokenizer=tokenizer))
    two, one = (
        Image.open(tmp_path / name / "training" / "samples" / "step-00000002.png") for name in ("watched", "single")
    )
    difference = torch.tensor(list(two.tobytes())).sub(torch.tensor(list(one.tobytes()))).abs().max()
    assert difference <= 1  # gradients were added in another order
