"""Studies over many runs: frontier and ablation, resumed, with failures, and several runs at once."""

import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from alight.config import AblationStudyConfig, FrontierStudyConfig
from alight.config.recipes import validate
from alight.metrics.intervals import speedup
from alight.runtime.errors import InputError
from alight.studies import ablation, frontier
from alight.studies.execution import remaining
from alight.studies.frontier import speedup_figure
from alight.studies.grid import all_runs, shared_jobs
from helpers import warm
from helpers.serving import wait_until

VIT = {"hidden_size": 24, "num_layers": 1, "num_heads": 2, "patch_size": 8}
SHORT = {  # runs that take a second
    "images": {"size": 32, "held_out_fraction": 0.3},
    "foundation": {"model": VIT, "training": {"steps": 2, "global_batch_size": 8, "ema_decay": None}},
    "observer": {
        "task": "masked_autoencoder",
        "model": VIT,
        "training": {"steps": 2, "global_batch_size": 8, "ema_decay": None},
    },
    "tokenizer": {
        "model": {
            "block_out_channels": [8, 8, 8, 8],
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "level_attention": False,
            "mid_block_attention": False,
        },
        "reconstruction": {"perceptual_weight": 0, "adversarial_weight": 0},
        "training": {"steps": 3, "global_batch_size": 4, "ema_decay": None},
        "preview_images": 0,
    },
    "latents": {"flips": False},
    "transformer": {
        "model": {"preset": None, "hidden_size": 24, "num_layers": 1, "num_heads": 2, "patch_size": 1},
        "training": {"steps": 4, "global_batch_size": 4, "ema_decay": 0.5},
        "sample_images": 0,
    },
    "samples": {"samples_per_class": 4, "sampling": {"num_inference_steps": 2}, "trajectory_images": 0},
    "report": {"density_runs": 0, "neighbours": 0},
    "measurements": 2,
}
FRONTIER = SHORT | {"job": "study frontier", "latent_channels": [4, 8], "seeds": 1, "seeds_at_widest": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Bright and dark images, thirty of each."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for label, level in (("bright", 200), ("dark", 40)):
        (folder / label).mkdir()
        for number in range(30):
            pixels = (level + rng.normal(0, 10, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:02d}.png")
    return folder


@pytest.fixture
def recipe(tmp_path, pictures):
    def write(values):
        path = tmp_path / "recipe.yaml"
        images = values["images"] | {"source": str(pictures)}
        path.write_text(yaml.safe_dump(values | {"images": images}, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pictures):
    """The folder of a finished frontier."""
    output = tmp_path_factory.mktemp("frontier") / "study"
    images = FRONTIER["images"] | {"source": str(pictures)}
    frontier.run(frontier_config(output=str(output), images=images))
    return output


def frontier_config(**changes):
    values = {key: value for key, value in FRONTIER.items() if key != "job"}
    return validate(FrontierStudyConfig, values | changes, "test")


def without_times(folder):
    report = json.loads((folder / "report" / "report.json").read_text())
    return {key: value for key, value in report.items() if key not in ("stages", "seconds_total")}


def files_of(folder):
    """The number of files below a folder, some of which may go meanwhile."""
    return sum(len(files) for _, _, files in os.walk(folder))


def children_of(process):
    """The numbers of a process's children, of whichever thread."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [child for each in lists for child in each.read_text().split()]


@contextmanager
def running(*arguments):
    """A command in a process of its own, which does not outlive the block."""
    process = warm.AlightProcess([str(argument) for argument in arguments])
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)


def lives(process):
    """True if a process of this number runs; one that has ended may wait for its parent as a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_frontier_has_both_kinds_of_every_width_and_more_seeds_at_the_widest():
    config = frontier_config(output="runs/x")
    runs = all_runs(config, frontier.settings(config))
    assert [run.name for run in runs] == [
        *("plain d4, seed 0", "aligned d4, seed 0", "plain d8, seed 0", "aligned d8, seed 0"),
        *("plain d8, seed 1", "aligned d8, seed 1"),
    ]
    plain, aligned = runs[2].jobs, runs[3].jobs
    assert plain["tokenizer"].alignment.foundation is None
    assert aligned["tokenizer"].alignment.foundation == "runs/x/foundation"
    for stage in ("tokenizer", "transformer"):  # paired in all else
        same = {"output", "alignment", "latents"}
        assert plain[stage].model_dump(exclude=same) == aligned[stage].model_dump(exclude=same)
    outputs = [job.output for run in runs for job in run.jobs.values()]
    assert len(outputs) == len(set(outputs))
    assert shared_jobs(config)["observer"].seed != shared_jobs(config)["foundation"].seed


def test_a_frontier_is_reported(finished):
    report = json.loads((finished / "report" / "report.json").read_text())
    assert report["comparison"]["columns"] == ["plain d4", "aligned d4", "plain d8", "aligned d8"]
    for key in ("Reconstruction PSNR", "Label accuracy", "Frechet distance, observer", "Density, observer"):
        assert key in report["comparison"]["rows"], key
    gain = next(figure for figure in report["figures"] if figure["name"] == "generated_label_accuracy_gain_d8")
    assert gain["conditions"]["seeds"] == 2
    low, high = gain["interval"]
    assert low <= gain["value"] <= high
    assert not list(finished.glob("runs/*/transformer/training/step-*.pt"))
    assert 'class="bar"' in (finished / "report" / "report.html").read_text()


def test_a_finished_study_is_kept_and_one_of_other_options_refused(alight, refused, recipe, finished):
    path, before = recipe(FRONTIER), (finished / "report" / "report.html").stat().st_mtime_ns
    again = alight("study", "frontier", "--config", path, "--output", finished)
    assert again.returncode == 0, again.stderr
    assert "finished already" in again.stderr + again.stdout
    message = refused("study", "frontier", "--config", path, "--output", finished, "--seed", "7")
    assert "seed: 0 -> 7" in message
    assert (finished / "report" / "report.html").stat().st_mtime_ns == before


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_a_study_that_is_killed_ends_with_the_same_report(alight, recipe, tmp_path, finished, kills):
    killed, files = tmp_path / "killed", files_of(finished)
    arguments = ["study", "frontier", "--config", str(recipe(FRONTIER)), "--output", str(killed)]
    for share in sorted(np.random.default_rng(kills).uniform(0, 0.95, kills)):
        with running(*arguments) as process:  # killed at the end of the block
            wait_until(lambda share=share: process.poll() is not None or files_of(killed) > share * files, 120)  # noqa: B023
            assert process.poll() is None, "it ended before it was killed"
    result = alight(*arguments)
    assert result.returncode == 0, result.stderr
    first, second = (
        json.loads(json.dumps(without_times(folder)).replace(str(folder), "FOLDER")) for folder in (finished, killed)
    )
    assert first == second


def test_a_run_that_fails_is_named_and_the_others_go_on(alight, recipe, tmp_path):
    output, narrow = tmp_path / "study", {"latent_channels": [4], "seeds_at_widest": None}
    config = frontier_config(output=str(output), **narrow)
    broken = all_runs(config, frontier.settings(config))[0]
    broken.jobs["latents"].output.parent.mkdir(parents=True)
    arguments = ("study", "frontier", "--config", recipe(FRONTIER | narrow), "--output", output)
    (broken.folder / "transformer").mkdir()
    (broken.folder / "transformer" / "started.json").write_text('{"kind": "transformer"}')
    (broken.folder / "transformer" / "training").write_text("a file in the way of the checkpoints")
    result = alight(*arguments)
    assert result.returncode == 0, result.stderr
    assert "plain d4, seed 0 failed and is left out" in result.stderr
    report = json.loads((output / "report" / "report.json").read_text())
    assert report["comparison"]["columns"] == ["aligned d4"]
    assert any(note.startswith("plain d4, seed 0 failed") for note in report["notes"])
    (broken.folder / "transformer" / "training").unlink()  # repaired
    result = alight(*arguments)
    assert result.returncode == 0, result.stderr
    report = json.loads((output / "report" / "report.json").read_text())
    assert "plain d4" in report["comparison"]["columns"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no list of processes here")
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_study(recipe, tmp_path, ending):
    output = tmp_path / "study"
    endless = {"training": {"steps": 1_000_000, "global_batch_size": 4, "ema_decay": None}}
    path = recipe(FRONTIER | {"transformer": FRONTIER["transformer"] | endless})
    with running("study", "frontier", "--config", path, "--output", output, "--jobs", 2) as process:
        wait_until(lambda: len(list(output.glob("runs/*/transformer"))) == 2, 120)
        children = children_of(process.pid)
        assert sum(map(lives, children)) >= 2
        process.send_signal(ending)
        process.communicate(timeout=60)
        wait_until(lambda: not any(map(lives, children)), 60)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no list of processes here")
def test_a_worker_that_is_killed_takes_no_other_run_with_it(recipe, tmp_path):
    output = tmp_path / "study"
    slow = {"training": {"steps": 200, "global_batch_size": 4, "ema_decay": None}}
    path = recipe(FRONTIER | {"transformer": FRONTIER["transformer"] | slow})
    with running("study", "frontier", "--config", path, "--output", output, "--jobs", 2) as process:
        wait_until(lambda: list(output.glob("runs/*/tokenizer/started.json")), 120)
        children = children_of(process.pid)
        workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        os.kill(int(workers[0]), signal.SIGKILL)
        _, messages = process.communicate(timeout=280)
    assert process.returncode == 0, messages
    report = json.loads((output / "report" / "report.json").read_text())
    assert len([note for note in report["notes"] if "its process was killed" in note]) == 1
    assert len(report["stages"]) >= 3  # of four settings


def test_checkpoints_that_a_killed_study_left_are_removed(alight, recipe, finished):
    left = next(finished.glob("runs/*/transformer")) / "training" / "step-00000002.pt"
    left.write_bytes(b"as large as a checkpoint")
    result = alight("study", "frontier", "--config", recipe(FRONTIER), "--output", finished)
    assert result.returncode == 0, result.stderr
    assert not left.exists()


def test_a_factor_that_is_a_lower_bound_has_no_interval():
    curves = {seed: {10: 0.5, 20: 0.8} for seed in (0, 1)}
    found = speedup(curves, {0: {10: 0.2, 20: 0.8}, 1: {10: 0.2, 20: 0.4}}, 10, higher_is_better=True)
    bound = speedup_figure("factor", "Steps", found, {})
    assert (bound.label, bound.interval, bound.conditions["plain runs that never reach it"]) == (
        "Steps, at least",
        None,
        1,
    )
    found = speedup(curves, {0: {10: 0.2, 20: 0.8}, 1: {10: 0.2, 20: 0.7}}, 10, higher_is_better=True)
    assert speedup_figure("factor", "Steps", found, {}).interval == (found.factor.low, found.factor.high)


@pytest.mark.parametrize(
    ("seconds", "runs", "jobs", "passed", "words"),
    [
        ([60], 4, 1, 60, "about 3 min 00 s left."),
        ([60], 4, 2, 60, "about 1 min 00 s left."),  # the other worker is about to end its run, too
        ([60, 60], 4, 2, 60, "about 1 min 00 s left."),
        ([60, 80, 70], 5, 2, 140, "about 1 min 10 s left."),
        ([60, 60], 2, 2, 60, "none left."),
    ],
)
def test_the_rest_of_a_study_is_estimated_from_whole_runs(seconds, runs, jobs, passed, words):
    assert remaining(seconds, runs, jobs, passed) == words


def test_several_runs_at_once_give_the_same_figures(alight, recipe, tmp_path, finished):
    output = tmp_path / "study"
    result = alight("study", "frontier", "--config", recipe(FRONTIER), "--output", output, "--jobs", "2")
    assert result.returncode == 0, result.stderr
    rows = [without_times(folder)["comparison"]["rows"] for folder in (finished, output)]
    for label, figures in rows[0].items():
        for first, second in zip(figures, rows[1][label], strict=True):
            assert first["value"] == pytest.approx(second["value"], rel=0.05), label


ABLATION = SHORT | {
    "job": "study ablation",
    "seeds": 2,
    "alone": {
        "no alignment": {"tokenizer.alignment.foundation": None},
        "another solver": {"samples.sampling.solver": "ucgm"},
    },
    "cumulated": {
        "uniform times": {"transformer.flow.time_sampling": "uniform"},
        "and no direction loss": {"transformer.flow.cosine_weight": 0},
    },
}


def test_an_ablation_cumulates_and_trains_a_model_only_where_it_differs(tmp_path):
    values = {key: value for key, value in ABLATION.items() if key != "job"}
    config = validate(AblationStudyConfig, values | {"output": str(tmp_path)}, "test")
    runs = [run for run in all_runs(config, ablation.settings(config)) if run.seed == 0]
    assert [run.setting for run in runs] == ["unchanged", *ABLATION["alone"], *ABLATION["cumulated"]]
    last = runs[-1].jobs["transformer"].flow
    assert (last.time_sampling, last.cosine_weight) == ("uniform", 0)
    assert len({run.jobs["tokenizer"].output for run in runs}) == 2
    assert len({run.jobs["transformer"].output for run in runs}) == 4
    solver = next(run for run in runs if run.setting == "another solver")
    assert solver.jobs["transformer"].output == runs[0].jobs["transformer"].output
    assert solver.jobs["report/2"].output != runs[0].jobs["report/2"].output


def test_an_ablation_is_carried_out(alight, recipe, tmp_path):
    output = tmp_path / "study"
    result = alight("study", "ablation", "--config", recipe(ABLATION), "--output", output, "--jobs", "2")
    assert result.returncode == 0, result.stderr
    report = json.loads((output / "report" / "report.json").read_text())
    assert len(report["comparison"]["columns"]) == 5
    labels = [figure["label"] for figure in report["figures"]]
    assert "Label accuracy: and no direction loss - uniform times" in labels
    assert len(list(output.glob("runs/*/tokenizer/alight.json"))) == 4  # two seeds of two tokenizers
    assert len(list(output.glob("runs/*/transformer/alight.json"))) == 8  # of four transformers
    assert not list(output.glob("runs/*/transformer/training/step-*.pt"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent_channels": [8, 8]}, "names a width twice"),
        ({"latent_channels": [0, 8]}, "latent_channels"),
        ({"latent_channels": []}, "latent_channels"),
        ({"seeds": 0}, "seeds"),
        ({"measurements": 3}, "is not a multiple of measurements 3"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(refused, recipe, tmp_path, changes, words):
    assert words in refused("study", "frontier", "--config", recipe(FRONTIER | changes), cwd=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_change_is_refused_by_name():
    values = {key: value for key, value in ABLATION.items() if key != "job"}
    config = validate(AblationStudyConfig, values | {"alone": {"odd": {"tokenizer.alignmant.weight": 0}}}, "test")
    with pytest.raises(InputError, match="alignmant"):
        all_runs(config, ablation.settings(config))
