"""Studies whose runs are divided among the processes that torchrun started: the same report, whatever happens."""

import json
import os
import signal
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from alight.config.recipes import load_config
from alight.runtime.hardware import available_cores
from alight.studies import frontier
from alight.studies.grid import all_runs
from alight.studies.workers import Workers
from helpers import warm
from helpers.jobs import finish, paragraphs
from helpers.serving import wait_until
from helpers.tiny_study import (
    FRONTIER,
    children_of,
    draw_pictures,
    files_of,
    frontier_config,
    lives,
    without_times,
    write_recipe,
)

NARROW = {"latent_channels": [4], "seeds": 2, "seeds_at_widest": None}
TWO = {"LOCAL_WORLD_SIZE": "2"}  # each with half of the cores


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The path of the recipe."""
    folder = tmp_path_factory.mktemp("recipe")
    return write_recipe(folder / "recipe.yaml", FRONTIER | NARROW, draw_pictures(folder))


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """The folder of the study, finished in this process with as many threads as a worker has."""
    output, threads = tmp_path_factory.mktemp("finished") / "study", torch.get_num_threads()
    torch.set_num_threads(max(available_cores() // 2, 1))
    frontier.run(load_config(recipe).model_copy(update={"output": output}))
    torch.set_num_threads(threads)
    return output


def start(recipe, output, *words):
    """Begin the study in two processes."""
    words = ["study", "frontier", "--config", recipe, "--output", output, *words]
    return warm.start_together([str(word) for word in words], 2, **TWO)


def end(job):
    """The messages of a job that succeeds; the first process alone says where the report is."""
    outputs = [process.communicate(timeout=240) for process in job]
    assert [process.returncode for process in job] == [0, 0], outputs
    assert outputs[0][0].startswith("Report: ")
    assert not outputs[1][0]
    return [messages for _, messages in outputs]


def workers_of(job):
    """The numbers of the worker processes."""
    children = [child for process in job for child in children_of(process.pid)]
    return [child for child in children if lives(child)]


@pytest.mark.exhaustive
def test_ended_and_begun_again_the_report_is_that_of_one_process(recipe, finished, tmp_path):
    output = tmp_path / "study"
    job = start(recipe, output)
    wait_until(lambda: len(list(output.glob("runs/*/tokenizer"))) == 2 or job[0].poll() is not None, 120)
    workers = workers_of(job)
    assert len(workers) >= 2, "the study ended before it was interrupted"
    job[1].send_signal(signal.SIGTERM)
    codes, messages = finish(job)
    assert codes == [143, 143], messages

    job, before = start(recipe, output), files_of(output)
    wait_until(lambda: files_of(output) > before + 20 or job[0].poll() is not None, 120)
    workers += workers_of(job)
    assert len(workers) >= 4, "the study ended before it was interrupted"
    job[1].send_signal(signal.SIGKILL)
    codes, messages = finish(job)
    assert codes == [1, -signal.SIGKILL]
    (line,) = paragraphs(messages)
    assert f"rank 1 (process {job[1].pid})" in line
    assert "killed" in line

    wait_until(lambda: not any(map(lives, workers)), 20)
    assert not (output / "report" / "alight.json").exists()
    assert "study:" not in end(start(recipe, output))[1]
    assert without_times(output) == without_times(finished)
    assert not list(output.glob("runs/*/transformer/training/step-*.pt"))


def test_a_run_that_fails_in_one_of_the_processes_is_named(recipe, tmp_path):
    output, one_each = tmp_path / "study", ("--seeds", 1)
    config = frontier_config(output=str(output), **NARROW | {"seeds": 1})
    run = all_runs(config, frontier.settings(config))[-1]
    (run.folder / "transformer").mkdir(parents=True)
    (run.folder / "transformer" / "started.json").write_text('{"kind": "transformer"}')
    (run.folder / "transformer" / "training").write_text("a file in the way of the checkpoints")
    messages, _ = end(start(recipe, output, *one_each))
    assert messages.count(f"{run.name} failed and is left out") == 1
    assert "2 of 2 runs done" in messages
    report = json.loads((output / "report" / "report.json").read_text())
    assert report["comparison"]["columns"] == ["plain d4"]
    assert len([note for note in report["notes"] if note.startswith(f"{run.name} failed")]) == 1
    (run.folder / "transformer" / "training").unlink()  # repaired
    end(start(recipe, output, *one_each))
    report = json.loads((output / "report" / "report.json").read_text())
    assert report["comparison"]["columns"] == ["plain d4", "aligned d4"]
    assert not [note for note in report["notes"] if "failed" in note]
    before = (output / "report" / "report.html").stat().st_mtime_ns
    assert "Nothing was done" in end(start(recipe, output, *one_each))[0]
    assert (output / "report" / "report.html").stat().st_mtime_ns == before


@pytest.mark.exhaustive
def test_a_model_for_all_runs_that_cannot_be_trained_ends_the_study(recipe, tmp_path):
    (tmp_path / "study" / "observer").mkdir(parents=True)
    (tmp_path / "study" / "observer" / "started.json").write_text('{"kind": "foundation"}')
    (tmp_path / "study" / "observer" / "training").write_text("a file in the way of the checkpoints")
    job = start(recipe, tmp_path / "study")
    wait_until(lambda: job[0].poll() is not None, 240)
    codes, messages = finish(job)
    assert codes == [2, 2], messages
    (line,) = paragraphs(messages)
    assert "observer" in line


def test_workers_of_one_process_and_torchrun_are_one_too_many(recipe, tmp_path):
    codes, messages = finish(start(recipe, tmp_path / "study", "--jobs", 2))
    assert codes == [2, 2], messages
    (line,) = paragraphs(messages)
    assert "Leave out --jobs, or torchrun" in line
    assert os.listdir(tmp_path) == []


def test_a_worker_that_is_gone_is_sent_no_signal(monkeypatch):
    with Workers(["cpu"], 1) as workers:
        with pytest.raises(BrokenProcessPool):
            workers.call(os._exit, 1)
        sent = []
        monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
        workers.terminate()
    assert not sent
