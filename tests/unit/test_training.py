"""The parts of the training loop: schedule, averaging, checkpoints, and the bookkeeping of a run."""

import json
import os
import signal

import pytest
import torch
from torch import nn

from alight.config import OptimizerConfig, TrainingConfig
from alight.runtime.errors import InputError
from alight.training.checkpoint import list_checkpoints, load_latest_checkpoint, save_checkpoint
from alight.training.ema import EMA
from alight.training.optimizer import learning_rate, make_optimizer, optimizer_step
from alight.training.run import TrainingRun, read_log


def test_schedules_at_their_corners():
    cosine = OptimizerConfig(lr=1.0, warmup_steps=10, schedule="cosine", final_lr_fraction=0.1)
    assert learning_rate(0, 110, cosine) == pytest.approx(0.1)
    assert learning_rate(9, 110, cosine) == pytest.approx(1.0)
    assert learning_rate(60, 110, cosine) == pytest.approx(0.55)  # half way: the mean of peak and floor
    assert learning_rate(110, 110, cosine) == pytest.approx(0.1)
    linear = OptimizerConfig(lr=2.0, schedule="linear")
    assert learning_rate(25, 100, linear) == pytest.approx(1.5)
    assert learning_rate(10**6, 100, OptimizerConfig(lr=2.0)) == 2.0


def test_clipping_limits_the_step_and_reports_the_norm():
    model = nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    model.weight.grad = torch.tensor([[3.0, 0.0, 4.0]])
    norm = optimizer_step(optimizer, lr=1.0, max_grad_norm=1.0)
    assert float(norm) == pytest.approx(5.0)
    torch.testing.assert_close(before - model.weight, torch.tensor([[0.6, 0.0, 0.8]]))
    assert model.weight.grad is None


def test_frozen_parameters_get_no_optimizer_state():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = make_optimizer(model.parameters(), OptimizerConfig())
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_average_in_closed_form():
    model = nn.BatchNorm1d(1)
    ema = EMA(model, decay=0.9)
    for value in (1.0, 2.0, 3.0):
        nn.init.constant_(model.bias, value)
        model.running_mean.fill_(value)
        ema.update(model)
    # sum of (1 - d) d^(n-k) x_k, the start being zero
    assert float(ema.model.bias.detach()) == pytest.approx(0.1 * (0.81 * 1 + 0.9 * 2 + 3))
    assert float(ema.model.running_mean) == 3.0
    assert not ema.model.training
    assert not ema.model.bias.requires_grad


def test_checkpoints_keep_the_newest_and_survive_damage(tmp_path):
    for step in (5, 10, 100, 2000):
        save_checkpoint(tmp_path, step, {"value": torch.tensor(step)}, keep=2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [100, 2000]
    newest = list_checkpoints(tmp_path)[-1][1]
    newest.write_bytes(newest.read_bytes()[:200])
    state, damaged = load_latest_checkpoint(tmp_path)
    assert state["value"] == 100
    assert damaged == [newest]


def train(folder, steps, stop_at=None, config=None, **options):
    """Follow a random walk of one parameter, and return where it ends."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = make_optimizer(model.parameters(), OptimizerConfig(lr=0.1))
    settings = TrainingConfig(steps=steps, **{"log_every": 2, "checkpoint_every": 4} | options)
    state = {"model": model, "optimizer": optimizer}
    with TrainingRun(folder, config or {"seed": 0}, settings, state, "test") as run:
        for step in run.steps():
            target = torch.randn(1, generator=torch.Generator().manual_seed(step))
            loss = (model.weight - target).square().sum()
            loss.backward()
            optimizer_step(optimizer, 0.1, 1.0)
            run.log(loss=loss, even=float(step) if step % 2 == 0 else None)
            if step == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
    return model.weight.detach().clone()


def test_interrupted_equals_uninterrupted(tmp_path):
    whole = train(tmp_path / "whole", 12)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", 12, stop_at=5)
    assert [step for step, _ in list_checkpoints(tmp_path / "parts")] == [4, 6]
    assert torch.equal(train(tmp_path / "parts", 12), whole)
    lines = read_log(tmp_path / "parts")
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert [line["even"] for line in lines] == [0, 2, 4, 6, 8, 10]  # averaged over the steps that gave it


def test_the_log_of_steps_taken_again_is_dropped(tmp_path):
    train(tmp_path, 12)
    for step, path in list_checkpoints(tmp_path):
        if step > 8:
            path.unlink()
    train(tmp_path, 12)
    assert [line["step"] for line in read_log(tmp_path)] == [2, 4, 6, 8, 10, 12]


def test_a_run_of_another_configuration_is_not_mixed_up(tmp_path):
    train(tmp_path, 4)
    with pytest.raises(InputError, match="seed: 0 -> 1"):
        train(tmp_path, 4, config={"seed": 1})


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = nn.Linear(1, 1)
    with (  # noqa: PT012
        pytest.raises(InputError, match="not finite after step 2"),
        TrainingRun(tmp_path, {}, TrainingConfig(steps=8, log_every=2), {"model": model}, "test") as run,
    ):
        for _ in run.steps():
            run.log(loss=torch.tensor(float("nan")))
    assert list_checkpoints(tmp_path) == []


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_log(tmp_path) == [{"step": 1}]
