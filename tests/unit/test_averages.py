"""The average of the weights: its warm-up, and runs that are shorter than its memory."""

import math

import pytest
import torch
from torch import nn

from alight.artifacts import differences
from alight.config import TrainingConfig, TrainTokenizerConfig, TrainTransformerConfig, TransformerTrainingConfig
from alight.config.recipes import load_config, recipes_folder, validate
from alight.doctor.run_check import average_findings
from alight.runtime.errors import InputError
from alight.training.ema import EMA, decay_at, initial_share, long_average
from alight.training.run import TrainingRun


def settings(steps, decay, warmup=None):
    return TrainingConfig(steps=steps, ema_decay=decay, ema_warmup=warmup)


def measured_share(steps, decay, warmup):
    """The share of the initial weights by averaging: a model that goes from 1 to 0 at the first step."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    ema = EMA(model, decay, warmup)
    nn.init.zeros_(model.weight)
    for step in range(steps):
        ema.update(model, step)
    return ema.model.weight.item()


@pytest.mark.parametrize("warmup", [None, 1.0, 10.0, 30.0])
@pytest.mark.parametrize(("steps", "decay"), [(1, 0.9), (7, 0.9), (40, 0.99), (3, 0.0)])
def test_the_share_of_the_initial_weights_is_the_product_of_the_decays(steps, decay, warmup):
    expected = math.prod(decay_at(step, decay, warmup) for step in range(steps))
    assert measured_share(steps, decay, warmup) == pytest.approx(expected, rel=1e-9)
    found = initial_share(steps, decay, warmup)
    assert found == pytest.approx(expected, rel=1e-9) or (found < 0.01 and expected < 0.01)


def test_the_decay_of_a_warm_up_rises_to_the_full_one():
    decays = [decay_at(step, 0.99, 10.0) for step in range(2000)]
    assert decays[:2] == [1 / 10, 2 / 11]
    assert decays == sorted(decays)
    assert decays[-1] == 0.99


def test_without_a_warm_up_the_step_changes_nothing():
    model = nn.Linear(3, 2)
    one, two = EMA(model, 0.9), EMA(model, 0.9)
    nn.init.ones_(model.weight)
    one.update(model)
    two.update(model, step=123)
    assert torch.equal(one.model.weight, two.model.weight)


@pytest.mark.parametrize(("steps", "share"), [(500, "95%"), (5_000, "61%"), (20_000, "14%")])
def test_a_run_shorter_than_the_memory_is_warned_of_with_a_decay_that_fits(steps, share):
    complaint, remedy = long_average(settings(steps, 0.9999))
    assert f"memory of 10,000 steps (ema_decay 0.9999), too long for a run of {steps:,}" in complaint
    assert f"{share} of the average" in complaint
    decay = float(remedy.split("training.ema_decay to ")[1].split(",")[0])
    assert long_average(settings(steps, decay)) is None
    assert long_average(settings(steps, 0.9999, warmup=10)) is None


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 21, 100, 10**6])
def test_the_decay_that_is_named_fits_a_run_of_any_length(steps):
    found = long_average(settings(steps, 0.9999999))
    assert found is not None
    decay = float(found[1].split("training.ema_decay to ")[1].split(",")[0])
    assert 0 < decay < 1
    assert long_average(settings(steps, decay)) is None


def test_shipped_recipes_are_not_warned_of():
    for path in sorted(recipes_folder().rglob("*.yaml")):
        config = load_config(str(path))
        for section in (config, getattr(config, "transformer", None), getattr(config, "tokenizer", None)):
            training = getattr(section, "training", None)
            if training is not None:
                assert long_average(training) is None, path


def test_a_run_says_so_at_its_start_if_it_averages(tmp_path, caplog):
    with TrainingRun(tmp_path / "a", {}, settings(500, 0.9999), {"ema": nn.Linear(1, 1)}, "test"):
        assert "too long for a run of 500" in caplog.text
    caplog.clear()
    with TrainingRun(tmp_path / "b", {}, settings(500, 0.9999), {"model": nn.Linear(1, 1)}, "test"):
        assert not caplog.text


def test_the_doctor_says_so_of_a_run():
    training = settings(500, 0.9999).model_dump(mode="json")
    (found,) = average_findings({"training": training, "latents": "here"})
    assert (found.verdict, found.subject) == ("warning", "EMA")
    assert not list(average_findings({"training": training | {"ema_decay": 0.98}, "latents": "here"}))
    for odd in ({}, {"training": None}, {"training": {"steps": "many"}}, {"training": training | {"steps": -1}}):
        assert not list(average_findings(odd))


# --- averages whose length is chosen after training ----------------------------------------------------------------


def test_averages_are_described_by_widths_and_an_interval():
    kept = TransformerTrainingConfig(steps=1_000, power_averages=(0.05, 0.1))
    assert (kept.snapshot_interval, kept.num_snapshots) == (32, 64)  # 31 times 32 steps, and the last 8
    assert TransformerTrainingConfig(steps=7, power_averages=(0.1,)).num_snapshots == 7
    assert TransformerTrainingConfig(steps=10, power_averages=(0.1,), snapshot_every=4).num_snapshots == 3
    assert TransformerTrainingConfig(steps=10).num_snapshots == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power_averages": []}, "at least 1 item"),
        ({"power_averages": [0.05, 0.05]}, "differ"),
        ({"power_averages": [0.0]}, "greater than or equal to 0.005"),
        ({"power_averages": [0.3]}, "less than or equal to 0.28"),
        ({"power_averages": ["wide"]}, "number"),
        ({"snapshot_every": 10}, "snapshot_every is about power_averages"),
        ({"power_averages": [0.1], "snapshot_every": 0}, "greater than or equal to 1"),
    ],
    ids=str,
)
def test_averages_that_cannot_be_kept_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        validate(TrainTransformerConfig, {"training": options}, "a recipe")


def test_only_transformers_keep_them():
    with pytest.raises(InputError, match=r"training\.power_averages"):
        validate(TrainTokenizerConfig, {"training": {"power_averages": [0.1]}}, "a recipe")


def test_runs_of_earlier_versions_kept_none():
    now = TrainTransformerConfig().model_dump(mode="json")
    training = {
        key: value for key, value in now["training"].items() if key not in ("power_averages", "snapshot_every")
    }
    assert not differences(now | {"training": training}, now)
    kept = TransformerTrainingConfig(power_averages=(0.1,)).model_dump(mode="json")
    assert differences(now | {"training": training}, now | {"training": kept}) == [
        "training.power_averages: None -> [0.1]"
    ]


def test_the_doctor_looks_at_the_plain_average_alone():
    training = TransformerTrainingConfig(steps=500, power_averages=(0.1,)).model_dump(mode="json")
    (found,) = average_findings({"training": training})
    assert found.subject == "EMA"
    assert not list(average_findings({"training": training, "average": {"width": 0.1}}))
