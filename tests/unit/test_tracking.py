"""What is seen of a training run: its figures, and the places where they are shown."""

import json
import logging
import resource
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from alight.config import TrainingConfig
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.run_log import read_log
from alight.training import meter
from alight.training.checkpoint import list_checkpoints
from alight.training.flops import known_flops, weightless
from alight.training.meter import Averages, Meter
from alight.training.run import TrainingRun
from alight.training.tracking import TensorBoardTracker

ALONE = Processes(0, 1, torch.device("cpu"))


def follow(folder, stop=None, bad_step=None, spoil=None, **options):
    """A run that learns nothing, and logs a loss of one over the step, a learning rate and, at step 4, a picture."""
    settings = TrainingConfig(**{"steps": 6, "log_every": 2, "checkpoint_every": 2, "global_batch_size": 8} | options)
    with TrainingRun(folder, {"output": "here"}, settings, {}, "test", dataset_size=32, flops_per_image=1e6) as run:
        for step in run.steps():
            if step == stop:
                break
            run.log(loss=torch.tensor(1 / (step + 1)), lr=2e-4)
            run.check(torch.tensor(float("nan") if step == bad_step else 1.0))
            if step + 1 == 4:
                run.picture("squares", 4, np.full((3, 5, 4), 255, np.uint8))
            if spoil is not None and step == 4:
                spoil()


def remove_checkpoints_after(folder, step):
    for number, path in list_checkpoints(folder):
        if number > step:
            path.unlink()


# --- figures ------------------------------------------------------------------------------------------------------


def test_a_line_of_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(meter, "_measured_rate", lambda device, precision: 1e12)
    follow(tmp_path, on_non_finite="skip", bad_step=1)
    first, second, third = read_log(tmp_path)
    assert first["loss"] == pytest.approx(0.75)
    assert [line["lr"] for line in (first, second, third)] == [2e-4] * 3  # as written in the recipe, not in binary
    assert [line["epoch"] for line in (first, second, third)] == [0.5, 1.0, 1.5]
    assert [line["non_finite"] for line in (first, second, third)] == [1, 1, 1]
    assert first["mfu"] == pytest.approx(first["images_per_second"] * 1e6 / 1e12, rel=1e-5)
    assert 0.05 < first["memory_gib"] < 100
    assert first["seconds"] < second["seconds"] < third["seconds"]


def test_the_progress_bar_shows_loss_and_speed(tmp_path, capsys):
    logger = logging.getLogger("alight")
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with TrainingRun(tmp_path, {}, TrainingConfig(steps=2, log_every=1), {}, "test") as run:
            for _ in run.steps():
                run.log(loss=0.5)
            shown = str(run._bar)
    finally:
        logger.setLevel(level)
    assert "loss=0.5" in shown
    assert "img/s=" in shown


def test_bad_gradients_are_counted_over_interruptions_but_limited_per_start(tmp_path):
    limited = {"on_non_finite": "skip", "max_non_finite": 2}
    follow(tmp_path, stop=5, bad_step=1, **limited)  # the last checkpoint is that of step 4
    follow(tmp_path, bad_step=5, **limited)
    assert [line["non_finite"] for line in read_log(tmp_path)] == [1, 1, 2]


def test_means_are_of_the_values_since_the_line_before():
    averages = Averages()
    for value in (1.0, torch.tensor(2.0, dtype=torch.float64), torch.tensor(6.0, requires_grad=True)):
        averages.add("a", value)
    averages.add("b", 5)
    assert averages.take(ALONE) == {"a": 3.0, "b": 5.0}
    assert averages.take(ALONE) == {}


def test_share_of_the_machine_counts_all_processes(monkeypatch):
    monkeypatch.setattr(meter, "_measured_rate", lambda device, precision: 1e12)
    settings = TrainingConfig(steps=10, global_batch_size=4)
    one, two = (Meter(settings, Processes(0, size, ALONE.device), 0, None, 1e9).read(5) for size in (1, 2))
    ratios = [figures["mfu"] / figures["images_per_second"] for figures in (one, two)]
    assert ratios == pytest.approx([1e9 / 1e12, 1e9 / 2e12])
    assert "epoch" not in one  # of an unknown number of images


def test_operations_are_counted_without_memory_and_without_drawing():
    original = nn.Linear(6, 5, bias=False)
    before = torch.get_rng_state()
    layer = weightless(original)
    assert layer.weight.is_meta
    x = torch.empty(7, 6, device="meta", requires_grad=True)
    assert known_flops(lambda: layer(x)) == 2 * 7 * 6 * 5
    assert known_flops(lambda: layer(x).sum().backward()) == 3 * 2 * 7 * 6 * 5  # forward, weight and input gradient
    assert known_flops(lambda: layer(x).sum().item()) is None  # it looks at a value
    assert torch.equal(before, torch.get_rng_state())


def test_operations_are_those_that_torch_counts():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.SiLU(), nn.ConvTranspose2d(8, 4, 2), nn.Flatten())
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, 3, 9, 9)).sum().backward()
    shadow, images = weightless(network), torch.empty(2, 3, 9, 9, device="meta")
    assert known_flops(lambda: shadow(images).sum().backward()) == counter.get_total_flops()
    assert all(parameter.grad is not None and not parameter.grad.is_meta for parameter in network.parameters())


# --- places -------------------------------------------------------------------------------------------------------


def events(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulator.EventAccumulator(str(folder / "tensorboard"))
    shown.Reload()
    return shown


def test_pictures_lie_beside_the_log(tmp_path):
    follow(tmp_path)
    (path,) = (tmp_path / "squares").iterdir()
    assert path.name == "step-00000004.png"
    assert Image.open(path).size == (5, 3)
    assert not (tmp_path / "tensorboard").exists()  # nobody asked for it


def test_tensorboard_is_told_what_the_log_is_told(tmp_path):
    follow(tmp_path, tensorboard=True)
    shown = events(tmp_path)
    for line in read_log(tmp_path):
        for name, value in line.items():
            if name != "step":
                found = {event.step: event.value for event in shown.Scalars(name)}
                assert found[line["step"]] == pytest.approx(value, rel=1e-6), name
    assert [image.step for image in shown.Images("squares")] == [4]


def test_tensorboard_hides_the_steps_that_are_taken_again(tmp_path):
    follow(tmp_path, tensorboard=True, keep_checkpoints=9)
    remove_checkpoints_after(tmp_path, 2)
    follow(tmp_path, tensorboard=True, keep_checkpoints=9)
    shown = events(tmp_path)
    assert [event.step for event in shown.Scalars("loss")] == [2, 4, 6]
    assert [image.step for image in shown.Images("squares")] == [4]
    remove_checkpoints_after(tmp_path, 0)  # a run that begins anew
    follow(tmp_path, stop=3, tensorboard=True)
    assert [event.step for event in events(tmp_path).Scalars("loss")] == [2]


def test_event_files_are_read_in_the_order_in_which_they_were_made(tmp_path):
    pytest.importorskip("tensorboard")
    made: list[str] = []
    for _ in range(3):
        TensorBoardTracker(tmp_path, 0).close()
        made += [path.name for path in (tmp_path / "tensorboard").iterdir() if path.name not in made]
    assert made == sorted(made)
    assert len({name.split(".")[3] for name in made}) == 3  # within a second the order is that of numbers as text


def test_watching_may_begin_while_a_run_goes_on(tmp_path):
    follow(tmp_path, stop=5)
    follow(tmp_path, tensorboard=True)
    assert [event.step for event in events(tmp_path).Scalars("loss")] == [6]


@pytest.mark.parametrize(
    ("package", "option"), [("tensorboard", {"tensorboard": True}), ("wandb", {"wandb_project": "alight"})]
)
def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch, package, option):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        InputError, match=rf"training\.{next(iter(option))} needs .* pip install 'alight\[{package}\]'"
    ):
        follow(tmp_path / "run", **option)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_explained_also_where_tensorboard_notices_it(tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)  # TensorBoard's thread dies of it
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def spoil():
        (path,) = (tmp_path / "tensorboard").iterdir()
        assert path.stat().st_size > 2 * (tmp_path / "log.jsonl").stat().st_size  # which has room for a line, then
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))

    try:
        with pytest.raises(InputError, match="Cannot write to"):
            follow(tmp_path, tensorboard=True, checkpoint_every=100, spoil=spoil)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [line["step"] for line in read_log(tmp_path)] == [2, 4, 6]


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    follow(tmp_path, stop=5, wandb_project="alight")
    name = (tmp_path / "wandb-run-id.txt").read_text().strip()
    follow(tmp_path, wandb_project="alight")
    assert (tmp_path / "wandb-run-id.txt").read_text().strip() == name
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{name}"))) >= 1
    remove_checkpoints_after(tmp_path, 0)  # a run that begins anew
    follow(tmp_path, wandb_project="alight")
    assert (tmp_path / "wandb-run-id.txt").read_text().strip() != name


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    with TrainingRun(tmp_path, {}, TrainingConfig(steps=1), {}, "test") as run:
        for _ in run.steps():
            run.log(loss=1.0, broken=float("nan"))
    (line,) = (json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines())
    assert line["loss"] == 1.0
    assert "broken" not in line
