"""The parts of the training loop: schedule, averaging, checkpoints, and the bookkeeping of a run."""

import json
import multiprocessing
import os
import resource
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from alight.artifacts import library_versions
from alight.config import OptimizerConfig, TrainingConfig
from alight.runtime.errors import InputError
from alight.runtime.hardware import resident_set
from alight.runtime.run_log import read_log
from alight.training.checkpoint import list_checkpoints, load_latest_checkpoint, save_checkpoint
from alight.training.ema import EMA
from alight.training.optimizer import learning_rate, make_optimizer, optimizer_step
from alight.training.run import TrainingRun


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
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
    model.weight.grad = torch.tensor([[3.0, 0.0, 4.0]])
    norm = optimizer_step(optimizer, lr=1.0, max_grad_norm=1.0)
    assert float(norm) == pytest.approx(5.0)
    torch.testing.assert_close(before - model.weight, torch.tensor([[0.6, 0.0, 0.8]]))
    assert model.weight.grad is None


def test_frozen_parameters_get_no_optimizer_state():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = make_optimizer(model.named_parameters(), OptimizerConfig())
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


def train(folder, steps, stop_at=None, config=None, spoil=None, **options):
    """Follow a random walk of one parameter, and return where it ends."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = make_optimizer(model.named_parameters(), OptimizerConfig(lr=0.1))
    settings = TrainingConfig(steps=steps, **{"log_every": 2, "checkpoint_every": 4} | options)
    state = {"model": model, "optimizer": optimizer}
    with TrainingRun(folder, config or {"seed": 0}, settings, state, "test") as run:
        for step in run.steps():
            target = torch.randn(1, generator=torch.Generator().manual_seed(step))
            loss = (model.weight - target).square().sum()
            loss.backward()
            run.check(optimizer_step(optimizer, 0.1, 1.0))
            if spoil is not None and step == 5:
                spoil()
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


def test_going_on_with_other_versions_is_said(tmp_path, monkeypatch, caplog):
    train(tmp_path, 4)
    state, _ = load_latest_checkpoint(tmp_path)
    assert state["versions"] == library_versions()
    monkeypatch.setattr("alight.training.run.library_versions", lambda: library_versions() | {"torch": "9.9"})
    train(tmp_path, 8)
    assert f"torch: {library_versions()['torch']} -> 9.9" in caplog.text
    caplog.clear()
    train(tmp_path, 12)  # whose checkpoint is of the new ones
    assert "other versions" not in caplog.text


def train_through_nan(folder, bad_steps, **options):
    """Steps of minus one, with gradients that are not finite at some of them; gives the weight after each step."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = make_optimizer(model.named_parameters(), OptimizerConfig(lr=0.1))
    settings = TrainingConfig(steps=8, **{"checkpoint_every": 2} | options)
    weights = []
    with TrainingRun(folder, {}, settings, {"model": model, "optimizer": optimizer}, "test") as run:
        for step in run.steps():
            model.weight.grad = torch.full((1, 1), float("nan") if step in bad_steps else 1.0)
            norm = optimizer_step(optimizer, 0.1, None)
            weights.append(round(model.weight.item(), 4))
            run.check(norm)
    return weights


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_applied(tmp_path):
    with pytest.raises(
        InputError, match="gradient is not finite. It was not applied, and the last good checkpoint is"
    ):
        train_through_nan(tmp_path, {5})
    state, _ = load_latest_checkpoint(tmp_path)
    assert state["step"] == 4
    assert torch.isfinite(state["state"]["model"]["weight"]).all()


def test_a_run_that_stops_before_its_first_checkpoint_names_none(tmp_path):
    with pytest.raises(InputError, match=r"nothing was saved yet. Lower the learning rate \(optimizer.lr\)") as caught:
        train_through_nan(tmp_path, {1})
    assert "checkpoint" not in str(caught.value)


def test_gradients_that_are_not_finite_are_skipped(tmp_path):
    weights = train_through_nan(tmp_path, {2, 5}, on_non_finite="skip")
    assert weights == [-0.1, -0.2, -0.2, -0.3, -0.4, -0.4, -0.5, -0.6]


def test_rolling_back_takes_the_weights_of_the_last_checkpoint_and_the_next_batch(tmp_path):
    weights = train_through_nan(tmp_path, {5}, on_non_finite="rollback", checkpoint_every=3)
    assert weights == [-0.1, -0.2, -0.3, -0.4, -0.5, -0.5, -0.4, -0.5]  # step 6 starts from the -0.3 after step 3


def test_too_many_gradients_that_are_not_finite_end_the_run(tmp_path):
    with pytest.raises(InputError, match="for the 3. time"):
        train_through_nan(tmp_path, {1, 3, 4, 5, 6}, on_non_finite="skip", max_non_finite=3)


def test_a_flipped_bit_is_noticed_and_the_checkpoint_before_is_taken(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"value": torch.full((1000,), float(step))}, keep=2)
    newest = list_checkpoints(tmp_path)[-1][1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1  # within the tensor, where torch would not look
    newest.write_bytes(data)
    state, damaged = load_latest_checkpoint(tmp_path)
    assert (state["step"], damaged) == (1, [newest])


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_anew(tmp_path):
    train(tmp_path, 4)
    for _, path in list_checkpoints(tmp_path):
        path.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="All checkpoints in .* are damaged"):
        train(tmp_path, 4)
    assert len(read_log(tmp_path)) == 2


def test_milestones_stay(tmp_path):
    for step in range(1, 8):
        save_checkpoint(tmp_path, step, {}, keep=1, keep_every=3)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [3, 6, 7]
    assert {path.stem for path in tmp_path.glob("*.sha256")} == {path.stem for path in tmp_path.glob("*.pt")}


def test_single_steps_are_saved_and_stay(tmp_path):
    train(tmp_path, 9, checkpoint_every=4, keep_checkpoints=1, save_at=(2, 3))
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2, 3, 9]


def fail():
    raise RuntimeError("on purpose")


def test_no_thread_process_or_file_is_left_behind(tmp_path):
    train(tmp_path / "before", 12, tensorboard=True)  # what is opened once and for all is open now
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    train(tmp_path / "whole", 12, tensorboard=True)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "interrupted", 12, stop_at=5, tensorboard=True)
    with pytest.raises(RuntimeError, match="on purpose"):
        train(tmp_path / "failed", 12, spoil=fail, tensorboard=True)
    with pytest.raises(InputError, match="another configuration"):
        train(tmp_path / "whole", 12, config={"seed": 1}, tensorboard=True)
    assert set(threading.enumerate()) == threads
    assert len(os.listdir("/proc/self/fd")) == files
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_memory_stays_flat_over_thousands_of_steps(tmp_path):
    """With everything on that is written beside training; what is learned has a quarter of a megabyte."""
    model = nn.Linear(256, 256)
    optimizer = make_optimizer(model.named_parameters(), OptimizerConfig())
    settings = TrainingConfig(steps=2_500, log_every=5, checkpoint_every=50, tensorboard=True)
    picture, sizes = np.zeros((64, 64, 3), np.uint8), []
    state = {"model": model, "optimizer": optimizer}
    with TrainingRun(tmp_path, {}, settings, state, "test", dataset_size=100) as run:
        for step in run.steps():
            loss = model(torch.ones(4, 256)).square().mean()
            loss.backward()
            norm = optimizer_step(optimizer, 1e-3, 1.0)
            run.log(loss=loss, grad_norm=norm, lr=1e-3)
            run.check(norm)
            if step % 50 == 0:
                run.picture("squares", step + 1, picture)
                sizes.append(resident_set() / 2**20)
    assert max(sizes[10:]) - sizes[10] < 20  # MiB, over the last 2,000 steps


def test_a_disk_that_is_full_while_writing_in_the_background_ends_the_run(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def spoil():
        while not list_checkpoints(tmp_path):  # the first one is still being written
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    try:
        with pytest.raises(InputError, match="Cannot write to"):
            train(tmp_path, 12, log_every=100, spoil=spoil)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    state, damaged = load_latest_checkpoint(tmp_path)
    assert (state["step"], damaged) == (4, [])


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_log(tmp_path) == [{"step": 1}]
