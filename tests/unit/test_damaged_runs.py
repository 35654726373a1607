"""Runs that were killed, damaged or robbed of their folder: a sentence or the same result, and nothing is lost."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from alight.config import OptimizerConfig, TrainingConfig
from alight.runtime.errors import InputError
from alight.runtime.run_log import LOG_FILE, read_log
from alight.training import checkpoint
from alight.training.checkpoint import list_checkpoints, load_latest_checkpoint
from alight.training.optimizer import make_optimizer, optimizer_step
from alight.training.run import TrainingRun


def train(folder, steps=6, at=None, spoil=None, width=1, parts=(), **options):
    """A few steps of a tiny model, with a checkpoint after every second; `spoil` is called before step `at`."""
    model = nn.Linear(width, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = make_optimizer(model.parameters(), OptimizerConfig(lr=0.1))
    settings = TrainingConfig(steps=steps, **{"log_every": 2, "checkpoint_every": 2, "keep_checkpoints": 9} | options)
    state = {"model": model, "optimizer": optimizer, **dict.fromkeys(parts, model)}
    with TrainingRun(folder, {"seed": 0}, settings, state, "test") as run:
        for step in run.steps():
            if step == at:
                run._writer.wait()  # so that the fault meets a known moment
                spoil()
            loss = (model.weight - step).square().sum()
            loss.backward()
            run.check(optimizer_step(optimizer, 0.1, 1.0))
            run.log(loss=loss)
    return model.weight.detach().clone()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("step-*") if path.is_file()}


def go_back_to(folder, step):
    for number, path in list_checkpoints(folder):
        if number > step:
            path.unlink()


# --- disks that fail ----------------------------------------------------------------------------------------------

FAULTS = (errno.EIO, errno.ESTALE, errno.EXDEV, errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("number", FAULTS, ids=errno.errorcode.get)
def test_a_disk_that_fails_ends_the_run_with_a_sentence_and_what_was_finished_stays(
    tmp_path, monkeypatch, call, number
):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number), str(tmp_path))

    original, before = Path.open, {}

    def refuse_to_write(path, mode="r", *arguments, **options):
        return (refuse if set(mode) & set("wa") else original)(path, mode, *arguments, **options)

    def spoil():
        before.update(contents(tmp_path))
        if call == "open":
            monkeypatch.setattr(Path, "open", refuse_to_write)
        else:
            monkeypatch.setattr(os, call, refuse)

    with pytest.raises(InputError, match="Cannot write to") as caught:
        train(tmp_path, at=2, spoil=spoil)
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert before
    assert {path: content for path, content in contents(tmp_path).items() if path in before} == before
    assert not list(tmp_path.rglob("*.writing"))
    assert torch.equal(train(tmp_path), train(tmp_path / "whole"))


def test_an_output_that_is_removed_while_training_ends_the_run_with_a_sentence(tmp_path):
    with pytest.raises(InputError, match=r"Cannot write to .* was removed meanwhile"):
        train(tmp_path / "run", at=3, spoil=lambda: shutil.rmtree(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_somebody_removed_meanwhile_is_no_fault(tmp_path):
    def spoil():
        list_checkpoints(tmp_path)[0][1].unlink()

    train(tmp_path, at=4, spoil=spoil, keep_checkpoints=1)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [6]


def test_a_checkpoint_that_the_disk_does_not_give_is_not_taken_for_damaged(tmp_path, monkeypatch):
    """Training must not fall back to an older checkpoint because a file system was away for a moment."""
    train(tmp_path)

    def refuse(*paths):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(checkpoint, "file_hash", refuse)
    with pytest.raises(InputError, match=r"step-00000006.pt cannot be read: the network file system lost the file"):
        train(tmp_path, steps=8)


# --- leftovers ----------------------------------------------------------------------------------------------------


def test_leftovers_of_a_killed_checkpoint_are_removed_at_the_next_start_and_nothing_else(tmp_path):
    train(tmp_path)
    leftovers = (
        *("step-00000004.writing", ".step-00000004.pt.writing", ".step-00000004.sha256.writing"),
        *(".log.jsonl.writing", "step-00000005.sha256"),
    )
    strangers = ("step-4.writing", "notes.writing", "step-00000004.txt", "step-00000009.pt.sha256", ".mine.writing")
    for name in (*leftovers, *strangers):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "step-00000008.writing").mkdir()  # no file of a run
    train(tmp_path, steps=6)
    names = {path.name for path in tmp_path.iterdir()}
    assert names.isdisjoint(leftovers)
    assert names > {*strangers, "step-00000008.writing", "step-00000006.pt", "step-00000006.sha256"}


# --- content of another shape -------------------------------------------------------------------------------------


def rewrite(folder, change):
    """Put another content under the newest checkpoint, with the right checksum."""
    content, _ = load_latest_checkpoint(folder)
    path = checkpoint.checkpoint_path(folder, content["step"])
    torch.save(change(content), path)
    path.with_suffix(".sha256").write_text(f"{checkpoint.file_hash(path)}  {path.name}\n")


def without(name):
    return lambda content: {key: value for key, value in content.items() if key != name}


def having(**values):
    return lambda content: content | values


def with_part(name, value):
    return lambda content: content | {"state": content["state"] | {name: value}}


WRONG = {
    "a list": lambda content: [1, 2],
    "a tensor": lambda content: torch.zeros(3),
    "nothing": lambda content: None,
    **{f"no {name}": without(name) for name in ("step", "state", "config", "seconds", "non_finite")},
    "a step of text": having(step="4"),
    "a negative step": having(step=-4),
    "a fraction of a step": having(step=4.5),
    "a later step than the run has": having(step=400),
    "seconds of NaN": having(seconds=float("nan")),
    "seconds of text": having(seconds="long"),
    "a config of text": having(config="seed: 0"),
    "a config of another run": having(config={"seed": 1}),
    "versions of numbers": having(versions={"torch": 2}),
    "versions of a list": having(versions=["torch"]),
    "inputs of a list": having(inputs=["latents"]),
    "planned steps of text": having(planned_steps="6"),
    "a state of a list": having(state=[1]),
    "a state of nothing": having(state={}),
    "a model of text": with_part("model", "weights"),
    "a model of another shape": with_part("model", {"weight": torch.zeros(3, 5)}),
    "a model of other names": with_part("model", {"bias": torch.zeros(1)}),
    "an optimizer of nothing": with_part("optimizer", {}),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_checkpoint_whose_content_has_the_wrong_shape_is_a_sentence(tmp_path, change):
    train(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(InputError, match=r"\w") as caught:
        train(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_checkpoint_of_another_model_or_with_fewer_parts_is_a_sentence(tmp_path):
    train(tmp_path)
    with pytest.raises(InputError, match="does not fit this run: its model is unusable"):
        train(tmp_path, width=2)
    with pytest.raises(InputError, match=r"its ema is unusable .missing"):
        train(tmp_path, parts=["ema"])


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"\n\n", b"x" * 500, None], ids=range(5))
def test_a_damaged_checksum_passes_over_the_checkpoint(tmp_path, content):
    whole = train(tmp_path)
    path = tmp_path / "step-00000006.sha256"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    assert load_latest_checkpoint(tmp_path)[0]["step"] == 4
    if content is not None:
        assert torch.equal(train(tmp_path), whole)


def test_a_fifo_in_place_of_a_checkpoint_or_of_the_log_is_a_sentence(tmp_path):
    train(tmp_path)
    os.mkfifo(tmp_path / "step-00000008.pt")
    with pytest.raises(InputError, match="is not a regular file"):
        train(tmp_path)
    (tmp_path / "step-00000008.pt").unlink()
    (tmp_path / LOG_FILE).unlink()
    os.mkfifo(tmp_path / LOG_FILE)
    with pytest.raises(InputError, match="is not a regular file"):
        train(tmp_path)


# --- logs ---------------------------------------------------------------------------------------------------------

DAMAGED = {
    "a byte that is not UTF-8": b'{"step": 3, "lo\xffs": 1.0}',
    "a cut line": b'{"step": 3, "lo',
    "a list": b"[1, 2]",
    "a number": b"17",
    "null": b"null",
    "text": b'"step"',
    "no step": b'{"loss": 1.0}',
    "a step of text": b'{"step": "3", "loss": 1.0}',
    "a step of a list": b'{"step": [3]}',
    "a negative step": b'{"step": -3}',
    "a fraction": b'{"step": 3.5}',
    "a step that is infinite": b'{"step": Infinity}',
    "a step that is not a number": b'{"step": NaN}',
    "a true step": b'{"step": true}',
    "a huge step": b'{"step": 1' + 60 * b"0" + b"}",
    "a huge number": b'{"step": 3, "loss": 1' + 400 * b"0" + b"}",
    "a number of 5,000 digits": b'{"step": 3, "loss": ' + 5000 * b"9" + b"}",
    "a value of text": b'{"step": 3, "loss": "low"}',
    "a nested value": b'{"step": 3, "loss": {"a": 1}}',
    "deep nesting": 100_000 * b"[",
    "zeros": 100 * b"\0",
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_line_of_the_log_is_left_out_with_a_warning_and_the_run_goes_on(tmp_path, caplog, line):
    whole = train(tmp_path)
    go_back_to(tmp_path, 4)
    lines = (tmp_path / LOG_FILE).read_bytes().splitlines()
    (tmp_path / LOG_FILE).write_bytes(b"\n".join([lines[0], line, *lines[1:]]) + b"\n")
    assert [each["step"] for each in read_log(tmp_path)] == [2, 4, 6]
    assert "1 damaged lines are left out" in caplog.text
    assert torch.equal(train(tmp_path), whole)
    assert [json.loads(each)["step"] for each in (tmp_path / LOG_FILE).read_text().splitlines()] == [2, 4, 6]


def test_numbers_that_are_not_finite_are_left_out_and_the_rest_of_the_line_stays(tmp_path):
    (tmp_path / LOG_FILE).write_text('{"step": 1, "loss": NaN, "lr": 0.5}\n{"step": 2, "loss": 1e999}\n')
    assert read_log(tmp_path) == [{"step": 1, "lr": 0.5}, {"step": 2}]
