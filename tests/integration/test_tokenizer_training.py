"""Training tokenizers: staged schedules, fine-tuning, decoder only, several processes, exact resume."""

import contextlib
import gc
import logging
import multiprocessing
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from alight import VAVAE
from alight.artifacts import read_artifact
from alight.config import TrainFoundationConfig, TrainTokenizerConfig
from alight.data.loading import open_source
from alight.runtime.errors import InputError
from alight.stages import train_foundation, train_tokenizer
from alight.training.tokenizer_flops import tokenizer_flops
from alight.training.tokenizer_networks import build_networks, load_foundation
from helpers.models import TOKENIZER
from helpers.pictures import write_digits
from helpers.runs import log_of
from helpers.written import WEIGHTS

MODEL = TOKENIZER | {"block_out_channels": (8, 8, 16), "norm_num_groups": 4}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The section `images` of a configuration, of few of them."""
    return {"source": str(write_digits(tmp_path_factory.mktemp("digits"), 80)), "size": 32}


@pytest.fixture(scope="module")
def foundation(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("foundation")
    config = {
        "output": folder,
        "images": images,
        "device": "cpu",
        "model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "patch_size": 8},
        "training": {"steps": 2, "global_batch_size": 8, "ema_decay": None},
    }
    train_foundation.run(TrainFoundationConfig.model_validate(config))
    return folder


@pytest.fixture
def configure(foundation, images, tmp_path):
    def build(output="tokenizer", **options):
        training = {"steps": 4, "global_batch_size": 8, "log_every": 1, "ema_decay": None}
        values = {
            "output": tmp_path / output,
            "images": images,
            "device": "cpu",
            "model": MODEL,
            "alignment": {"foundation": str(foundation)},
            "reconstruction": {"perceptual_weight": 0, "adversarial_start_step": 2},
            "optimizer": {"lr": 1e-3, "betas": (0.5, 0.9), "max_grad_norm": None},
            "preview_images": 3,
            "preview_every": 2,
        }
        if "stages" in options:
            del training["steps"]
        values["training"] = training | options.pop("training", {})
        return TrainTokenizerConfig.model_validate(values | options)

    return build


def forget_the_end(folder, step):
    """Make a finished run look as if it had been stopped after a step."""
    for path in (*folder.glob("*.json"), *folder.glob("*.safetensors"), *(folder / "training").glob("step-*.pt")):
        if path.name != f"step-{step:08d}.pt":
            path.unlink()


def test_parts_change_weights_margins_and_the_discriminator(configure, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("alight"), "propagate", True)
    caplog.set_level(logging.INFO, logger="alight")
    stages = [
        {"steps": 3, "alignment_weight": 0.5, "cosine_margin": 0, "distance_margin": 0, "adversarial_start_step": 2},
        {"steps": 2, "alignment_weight": 0.0, "adversarial_start_step": 5},
        {"steps": 2, "adversarial_start_step": 0, "restart": True, "lr": 1e-4},
    ]
    config = configure(stages=stages)
    artifact = train_tokenizer.run(config)
    lines = log_of(config.output)
    assert ["adversarial" in line for line in lines] == [False, False, True, False, False, True, True]
    assert ["mcos" in line for line in lines] == [True, True, True, False, False, True, True]
    assert artifact.facts["steps"] == 7
    assert "steps 5 to 7: alignment weight 0.1, margins (cosine, distance) 0.5, 0.25" in caplog.text
    assert "7 steps of 8 = 1 processes x 1 micro-batches x 8 images" in caplog.text
    assert {path.name for path in config.output.glob("*.safetensors")} == {
        WEIGHTS,
        "projection.safetensors",
        "discriminator.safetensors",
    }


def test_resuming_is_exact_across_a_restart_of_the_discriminator(configure):
    options = {
        "stages": [
            {"steps": 2, "adversarial_start_step": 1},
            {"steps": 2, "adversarial_start_step": 0, "restart": True},
        ],
        "regularisation": {"equivariance_probability": 0.5, "noise": 0.1},
        "training": {"checkpoint_every": 1, "keep_checkpoints": 9, "ema_decay": 0.9, "micro_batch_size": 4},
    }
    whole, parts = configure("whole", **options), configure("parts", **options)
    train_tokenizer.run(whole)
    shutil.copytree(whole.output, parts.output)
    for step in (1, 2, 3):  # before, at and after the beginning of the second part
        forget_the_end(parts.output, step)
        train_tokenizer.run(parts)
        for name in (WEIGHTS, "projection.safetensors", "discriminator.safetensors"):
            one, two = load_file(whole.output / name), load_file(parts.output / name)
            assert all(torch.equal(one[key], two[key]) for key in one), (step, name)


def test_a_restart_begins_with_a_new_discriminator(configure):
    stages = [{"steps": 2, "adversarial_start_step": 0}, {"steps": 1, "adversarial_start_step": 9, "restart": True}]
    config = configure(stages=stages, training={"checkpoint_every": 1, "keep_checkpoints": 9})
    train_tokenizer.run(config)
    states = [
        torch.load(config.output / "training" / f"step-{step:08d}.pt", weights_only=True)["state"] for step in (2, 3)
    ]
    before, after = (state["discriminator"]["main.0.weight"] for state in states)
    assert (before - after).abs().max() > 0.01  # not one step of the optimizer, but other random numbers
    assert states[0]["discriminator_optimizer"]["state"]
    assert not states[1]["discriminator_optimizer"]["state"]
    assert int(next(iter(states[1]["optimizer"]["state"].values()))["step"]) == 1


def test_fine_tuning_takes_over_everything_and_gives_new_latents(configure):
    first = configure("first")
    before = train_tokenizer.run(first)
    tuned = configure("tuned", init_from=str(first.output), training={"steps": 1}, optimizer={"lr": 1e-9})
    after = train_tokenizer.run(tuned)
    for name in (WEIGHTS, "projection.safetensors", "discriminator.safetensors"):
        one, two = load_file(first.output / name), load_file(tuned.output / name)
        for key in one:
            torch.testing.assert_close(one[key], two[key], rtol=1e-5, atol=1e-7, msg=f"{name} {key}")
    assert after.hash != before.hash
    assert "same_latents_as" not in after.facts


def test_a_decoder_trained_alone_keeps_the_latents_and_their_statistics(configure):
    first = configure("first")
    before = train_tokenizer.run(first)
    demands = {"noise": 0.2, "continuity_weight": 1}  # of the decoder
    alone = {"train": "decoder", "alignment": {"foundation": None}}
    tuned = configure("tuned", init_from=str(first.output), regularisation=demands, **alone)
    after = train_tokenizer.run(tuned)
    one, two = load_file(first.output / WEIGHTS), load_file(tuned.output / WEIGHTS)
    for name in one:
        kept = name.startswith(("encoder.", "quant_conv."))
        assert torch.equal(one[name], two[name]) == kept, name
    old, new = VAVAE.from_pretrained(first.output), VAVAE.from_pretrained(tuned.output)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(old.encode_latents(images), new.encode_latents(images))
    assert after.facts["same_latents_as"] == [before.hash]
    assert (tuned.output / "projection.safetensors").is_file()
    assert {"mcos", "mdms"}.isdisjoint(log_of(tuned.output)[-1])
    assert log_of(tuned.output)[-1]["continuity"] > 0

    latents = read_artifact(first.output, "tokenizer")  # stands for what was made with the first one
    object.__setattr__(latents, "inputs", {"tokenizer": before.hash})
    latents.require_input(after)
    third = configure("third", init_from=str(tuned.output), train="decoder", alignment={"foundation": None})
    latents.require_input(train_tokenizer.run(third))  # and so on, however often
    other = train_tokenizer.run(configure("other", seed=1))
    with pytest.raises(InputError, match="was made with another tokenizer"):
        latents.require_input(other)


def test_alignment_can_be_added_to_a_tokenizer_without(configure):
    plain = configure(
        "plain", alignment={"foundation": None}, reconstruction={"perceptual_weight": 0, "adversarial_weight": 0}
    )
    artifact = train_tokenizer.run(plain)
    assert "foundation" not in artifact.facts
    assert not (plain.output / "projection.safetensors").exists()
    aligned = configure("aligned", init_from=str(plain.output))
    assert "foundation" in train_tokenizer.run(aligned).facts
    assert log_of(aligned.output)[-1]["mcos"] > 0


def test_another_architecture_than_that_of_the_origin_is_refused(configure):
    first = configure("first")
    train_tokenizer.run(first)
    wider = MODEL | {"latent_channels": 8}
    with pytest.raises(InputError, match="another architecture"):
        train_tokenizer.run(configure("wider", init_from=str(first.output), model=wider))
    unsaid = configure("unsaid", init_from=str(first.output), model={})
    train_tokenizer.run(unsaid)
    assert VAVAE.from_pretrained(unsaid.output).config.latent_channels == 4
    begun = configure("begun", init_from=str(first.output), model={"initial_encoder": "principal_components"})
    train_tokenizer.run(begun)  # says nothing about the architecture
    assert VAVAE.from_pretrained(begun.output).config.latent_channels == 4


def test_lines_of_the_log_say_how_far_and_how_fast(configure, foundation):
    figures = {"step", "seconds", "loss", "lr", "grad_norm", "epoch", "images_per_second", "mfu", "memory_gib"}
    config = configure()
    train_tokenizer.run(config)
    lines, count = log_of(config.output), len(open_source(config.images, "train"))
    assert [line["lr"] for line in lines] == [1e-3] * 4
    assert [line["epoch"] for line in lines] == pytest.approx([8 * step / count for step in (1, 2, 3, 4)])
    for line in (*lines, *log_of(foundation)):
        assert figures | {"non_finite"} <= line.keys()
        assert 0 < line["mfu"] < 1.5  # of a rate that other programs disturb


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt, RuntimeError])
def test_the_processes_that_read_images_end_with_the_run(configure, images, monkeypatch, ending):
    def step(*arguments):
        raise ending("on purpose")

    if ending is not None:
        monkeypatch.setattr(train_tokenizer, "optimizer_step", step)
    config = configure(images=images | {"workers": 1}, alignment={"foundation": None})
    with pytest.raises(ending) if ending is not None else contextlib.nullcontext():
        train_tokenizer.run(config)
    gc.collect()  # of the traceback
    assert not multiprocessing.active_children()


def test_the_cost_of_a_step_is_that_of_those_who_take_part(configure):
    config = configure()
    networks = build_networks(config, torch.device("cpu"), None, load_foundation(config), None)
    alone, aligned, known, game = (
        tokenizer_flops(config, networks, *options)
        for options in ((False, False, False), (False, True, False), (True, True, False), (False, False, True))
    )
    assert alone < known < aligned
    assert alone < game
    with FlopCounterMode(display=False) as counter:
        networks.foundation(torch.zeros(1, 3, 32, 32), (8, 8))
    attention = 2 * 2 * 65 * 65 * 16  # which torch leaves out on the CPU: two products over 65 tokens of width 16
    assert aligned - known == counter.get_total_flops() + attention


def test_pictures_are_drawn_by_default_change_nothing_and_come_again_the_same(configure):
    options = {"preview_every": None, "training": {"checkpoint_every": 1, "keep_checkpoints": 9}}
    shown, hidden = configure("shown", **options), configure("hidden", **options, preview_images=0)
    train_tokenizer.run(shown)
    train_tokenizer.run(hidden)
    assert (shown.output / WEIGHTS).read_bytes() == (hidden.output / WEIGHTS).read_bytes()
    assert not list((hidden.output / "training").rglob("*.png"))
    folder = shown.output / "training"
    drawn = {path.name: path.read_bytes() for path in (folder / "reconstructions").iterdir()}
    assert sorted(drawn) == ["step-00000001.png", "step-00000002.png", "step-00000004.png"]
    assert (folder / "reconstructions.png").read_bytes() == drawn["step-00000004.png"]
    forget_the_end(shown.output, 1)
    for name in ("step-00000002.png", "step-00000004.png"):
        (folder / "reconstructions" / name).unlink()
    train_tokenizer.run(shown)
    assert {path.name: path.read_bytes() for path in (folder / "reconstructions").iterdir()} == drawn


def test_reconstructions_are_drawn_beside_the_log(configure):
    config = configure(training={"tensorboard": True})
    train_tokenizer.run(config)
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulator.EventAccumulator(str(config.output / "training" / "tensorboard"))
    shown.Reload()
    assert [image.step for image in shown.Images("reconstructions")] == [2, 4]
    pictures = sorted((config.output / "training" / "reconstructions").iterdir())
    assert [path.name for path in pictures] == ["step-00000002.png", "step-00000004.png"]
    assert np.asarray(Image.open(pictures[0])).shape == (3 * 32 + 2 * 2, 3 * 32 + 2 * 2, 4)


def test_a_gradient_that_is_not_finite_stops_before_the_step(configure, monkeypatch):
    config = configure(training={"checkpoint_every": 1, "keep_checkpoints": 9})
    from alight.training import tokenizer_step

    def spoiled(*arguments, **options):
        terms = original(*arguments, **options)
        return terms._replace(objective=terms.objective * float("inf"))

    original = tokenizer_step.reconstruction_loss
    calls = iter(range(9))
    monkeypatch.setattr(
        tokenizer_step,
        "reconstruction_loss",
        # on the meta device nothing is computed: there the cost of a step is counted
        lambda *a, **k: spoiled(*a, **k) if not a[0].is_meta and next(calls) == 2 else original(*a, **k),
    )
    with pytest.raises(InputError, match="The gradient is not finite. It was not applied"):
        train_tokenizer.run(config)
    saved = sorted(path.name for path in (config.output / "training").glob("*.pt"))
    assert saved == ["step-00000001.pt", "step-00000002.pt"]
    monkeypatch.undo()
    assert train_tokenizer.run(config).facts["steps"] == 4  # goes on from there


def test_checkpointed_activations_and_pieces_change_nothing_but_rounding(configure):
    quiet = {"alignment": {"foundation": None}}  # whose adaptive weight is that of each piece
    options = {"reconstruction": {"perceptual_weight": 0, "adversarial_weight": 0}} | quiet
    one, two = configure("one", **options), configure("two", training={"micro_batch_size": 2}, **options)
    three = configure("three", training={"activation_checkpointing": True}, **options)
    for config in (one, two, three):
        train_tokenizer.run(config)
    expected = [line["loss"] for line in log_of(one.output)]
    assert [line["loss"] for line in log_of(two.output)] == pytest.approx(expected, rel=1e-5)
    assert [line["loss"] for line in log_of(three.output)] == pytest.approx(expected, rel=1e-6)


def test_cached_features_are_those_of_every_epoch(configure, images, tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGHT_CACHE", str(tmp_path / "cache"))
    images = images | {"horizontal_flip": True}
    without = configure("without", images=images)
    alignment = without.alignment.model_dump() | {"cache_features": True}
    fresh, again = (configure(name, images=images, alignment=alignment) for name in ("fresh", "again"))
    for config in (without, fresh, again):
        train_tokenizer.run(config)
    one, two, three = (load_file(config.output / WEIGHTS) for config in (without, fresh, again))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=5e-3)  # features rounded to float16
        assert torch.equal(two[name], three[name])
    with pytest.raises(ValueError, match="random crops never come again"):
        configure("random", images=images | {"crop": "random"}, alignment=alignment)
