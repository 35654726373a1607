"""Studies over many runs: frontier and ablation, resumed, with failures, and several runs at once."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from alight.config import AblationStudyConfig
from alight.config.recipes import load_config, validate
from alight.metrics.intervals import speedup
from alight.runtime.errors import InputError
from alight.studies import ablation, frontier
from alight.studies.execution import remaining
from alight.studies.frontier import speedup_figure
from alight.studies.grid import all_runs, shared_jobs
from alight.studies.study import conditions_of
from helpers.serving import wait_until
from helpers.tiny_study import (
    ABLATION,
    FRONTIER,
    SHORT,
    children_of,
    draw_pictures,
    files_of,
    frontier_config,
    lives,
    running,
    without_times,
    write_recipe,
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The images of the study."""
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def recipe(tmp_path, pictures):
    """Write a recipe with these images."""
    return lambda values: write_recipe(tmp_path / "recipe.yaml", values, pictures)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pictures):
    """The folder of a finished frontier."""
    output = tmp_path_factory.mktemp("frontier") / "study"
    images = FRONTIER["images"] | {"source": str(pictures)}
    frontier.run(frontier_config(output=str(output), images=images))
    return output


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
    assert without_times(killed) == without_times(finished)


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
@pytest.mark.parametrize("ending", [pytest.param(signal.SIGKILL, marks=pytest.mark.exhaustive), signal.SIGTERM])
def test_no_worker_outlives_its_study(recipe, tmp_path, ending):
    output = tmp_path / "study"
    endless = {"training": {"steps": 1_000_000, "global_batch_size": 4, "ema_decay": None}}
    path = recipe(FRONTIER | {"transformer": FRONTIER["transformer"] | endless})
    with running("study", "frontier", "--config", path, "--output", output, "--jobs", 2) as process:
        wait_until(lambda: len(list(output.glob("runs/*/transformer/training/log.jsonl"))) == 2, 120)
        children = children_of(process.pid)
        assert sum(map(lives, children)) >= 2
        process.send_signal(ending)
        _, messages = process.communicate(timeout=60)
        wait_until(lambda: not any(map(lives, children)), 60)
    if ending == signal.SIGTERM:  # workers save what they have, though the signal came to their parent alone
        assert process.returncode == 143
        assert "interrupted" in messages
        assert "Traceback" not in messages
        assert "Warning" not in messages
        assert len(list(output.glob("runs/*/transformer/training/step-*.pt"))) == 2


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no list of processes here")
def test_a_worker_that_is_killed_takes_no_other_run_with_it(recipe, tmp_path):
    output = tmp_path / "study"
    slow = {"training": {"steps": 40, "global_batch_size": 4, "ema_decay": None}}
    once = {"transformer": FRONTIER["transformer"] | slow, "latent_channels": [4], "seeds_at_widest": None}
    path = recipe(FRONTIER | once)
    with running("study", "frontier", "--config", path, "--output", output, "--jobs", 2) as process:
        wait_until(lambda: list(output.glob("runs/*/tokenizer/started.json")), 120)
        children = children_of(process.pid)
        workers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
        os.kill(int(workers[0]), signal.SIGKILL)
        _, messages = process.communicate(timeout=280)
    assert process.returncode == 0, messages
    report = json.loads((output / "report" / "report.json").read_text())
    assert len([note for note in report["notes"] if "its process was killed" in note]) == 1
    assert len(report["comparison"]["columns"]) == 1  # of two settings


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


TIMED = ABLATION | {  # also compared after the same time
    "seeds": 1,
    "equal_time": True,
    "alone": ABLATION["alone"] | {"many layers": {"transformer.model.num_layers": 8}},
}


def test_an_ablation_cumulates_and_trains_a_model_only_where_it_differs(tmp_path):
    values = {key: value for key, value in ABLATION.items() if key != "job"}
    config = validate(AblationStudyConfig, values | {"output": str(tmp_path)}, "test")
    runs = [run for run in all_runs(config, ablation.settings(config)) if run.seed == 0]
    assert [run.setting for run in runs] == ["unchanged", *ABLATION["alone"], *ABLATION["cumulated"]]
    last = runs[-1].jobs["transformer"].flow
    assert (last.time_sampling, last.cosine_weight) == ("uniform", 0)
    assert len({run.jobs["tokenizer"].output for run in runs}) == 2
    assert len({run.jobs["transformer"].output for run in runs}) == 5
    on = next(run for run in runs if run.setting == "trained on")
    assert on.jobs["transformer"].init_from == str(runs[0].jobs["transformer"].output)
    solver = next(run for run in runs if run.setting == "another solver")
    assert solver.jobs["transformer"].output == runs[0].jobs["transformer"].output
    assert solver.jobs["report/2"].output != runs[0].jobs["report/2"].output


def test_every_use_of_a_foundation_model_is_of_the_studys_own(tmp_path):
    changes = {
        "aligned": {"tokenizer.alignment.cosine_margin": 0.3},
        "frozen": {"tokenizer.alignment.weight": 0, "tokenizer.frozen_encoder.foundation": "own"},
        "repa": {"latents.features.foundation": "own", "transformer.representation": {"weight": 0.5, "block": 1}},
    }
    values = {key: value for key, value in ABLATION.items() if key not in ("job", "cumulated")}
    config = validate(AblationStudyConfig, values | {"output": str(tmp_path), "alone": changes}, "test")
    _, aligned, frozen, repa = all_runs(config, ablation.settings(config))[:4]
    own = str(tmp_path / "foundation")
    assert aligned.jobs["tokenizer"].alignment.foundation == own
    assert aligned.jobs["tokenizer"].frozen_encoder.foundation is aligned.jobs["latents"].features.foundation is None
    assert frozen.jobs["tokenizer"].frozen_encoder.foundation == repa.jobs["latents"].features.foundation == own


@pytest.fixture(scope="module")
def ablated(tmp_path_factory, pictures):
    """The folder of a finished ablation, compared after the same time, too: one of its changes costs much of it."""
    path = write_recipe(tmp_path_factory.mktemp("ablation") / "recipe.yaml", TIMED, pictures)
    ablation.run(ablation_config(path))
    return path.parent / "study"


def ablation_config(path):
    """The configuration of an ablation beside its recipe."""
    return load_config(path).model_copy(update={"output": path.parent / "study"})


def test_an_ablation_is_carried_out(ablated):
    report = json.loads((ablated / "report" / "report.json").read_text())
    assert report["comparison"]["columns"] == ["unchanged", *TIMED["alone"], *TIMED["cumulated"]]
    labels = [figure["label"] for figure in report["figures"]]
    assert "Label accuracy: and no direction loss - uniform times" in labels
    assert len(list(ablated.glob("runs/*/tokenizer/alight.json"))) == 2
    assert len(list(ablated.glob("runs/*/transformer/alight.json"))) == 6  # of eight settings
    origin = json.loads((ablated / "runs/trained-on-seed0/transformer/alight.json").read_text())["inputs"]["init_from"]
    assert origin == json.loads((ablated / "runs/unchanged-seed0/transformer/alight.json").read_text())["hash"]
    assert not list(ablated.glob("runs/*/transformer/training/step-*.pt"))
    assert not list(ablated.glob("runs/*/transformer/training/averages/*"))


def test_what_costs_more_per_step_is_also_compared_after_the_same_time(ablated):
    costs = {name: each["cost"] for name, each in json.loads((ablated / "costs.json").read_text()).items()}
    assert [costs[name] for name in ("unchanged", "no alignment", "another solver")] == [1, 1, 1]
    assert costs["many layers"] > 1.5  # it takes about four times as long
    step = int(4 / costs["many layers"])
    report = json.loads((ablated / "report" / "report.json").read_text())
    (table,) = report["further_comparisons"]
    assert table["title"] == "At the same time of training"
    shown = {label: dict(zip(table["columns"], row, strict=True)) for label, row in table["rows"].items()}
    cost, steps = shown["Cost of a training step"], shown["Steps in that time"]
    assert {name: figure["value"] for name, figure in cost.items()} == costs
    assert (steps["unchanged"]["value"], steps["many layers"]["value"]) == (4, max(step, 1))
    assert shown["Model evaluations per sample"]["another solver"]["value"] == 2
    own = next(ablated.glob("runs/many-layers-seed0"))
    early = json.loads((own / "report" / f"{max(step, 1):07d}" / "report.json").read_text())
    accuracy = shown["Label accuracy"]["many layers"]
    assert accuracy["value"] == early["generated_label_accuracy"]
    assert accuracy["conditions"]["measured_after_steps"] == max(step, 1)
    plain = json.loads((ablated / "runs" / "unchanged-seed0" / "report" / "0000004" / "report.json").read_text())
    (difference,) = [
        figure["value"]
        for figure in report["figures"]
        if figure["label"] == "Label accuracy after the same time: many layers - unchanged"
    ]
    assert difference == pytest.approx(early["generated_label_accuracy"] - plain["generated_label_accuracy"])
    assert "seconds per training step" in report["stages"][0]["summary"]


def test_an_ablation_that_goes_on_compares_after_the_same_steps(ablated):
    before, costs = without_times(ablated), (ablated / "costs.json").read_bytes()
    shutil.rmtree(ablated / "report")
    shutil.rmtree(ablated / "runs" / "many-layers-seed0")
    ablation.run(ablation_config(ablated.parent / "recipe.yaml"))
    assert (ablated / "costs.json").read_bytes() == costs
    assert without_times(ablated) == before


def test_a_damaged_record_of_costs_is_refused(tmp_path, pictures):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "costs.json").write_text('{"unchanged": {"of": "x", "cost": -1}}')
    with pytest.raises(InputError, match="the study measures again"):
        ablation.run(ablation_config(write_recipe(tmp_path / "recipe.yaml", TIMED, pictures)))


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


def test_the_unchanged_transformer_cannot_start_from_itself():
    changes = {"transformer": SHORT["transformer"] | {"init_from": "unchanged"}}
    config = frontier_config(**changes)
    with pytest.raises(InputError, match="for the changes of an ablation"):
        all_runs(config, frontier.settings(config))


def test_conditions_are_those_of_the_setting():
    values = {key: value for key, value in ABLATION.items() if key != "job"}
    changes = {"samples.sampling.guidance_scale": 1.5, "tokenizer.training.steps": 7, "samples.average": 0.1}
    config = validate(AblationStudyConfig, values | {"alone": {"other": changes}}, "test")
    runs = {run.setting: run for run in all_runs(config, ablation.settings(config))}
    plain, other = (conditions_of(runs[setting], config) for setting in (ablation.BASELINE, "other"))
    assert "no guidance" in plain["sampling"]
    assert "guidance 1.5" in other["sampling"]
    assert (plain.get("average"), other["average"]) == (None, 0.1)
    assert (plain["tokenizer"], other["tokenizer"]) == ("3 steps of 4", "7 steps of 4")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transformer.training.power_averages": None, "transformer.training.snapshot_every": None}, "has kept"),
        ({"transformer.training.snapshot_every": 3}, "2 steps between these and 3 between snapshots"),
    ],
)
def test_averages_that_training_does_not_keep_are_refused(changes, words):
    values = {key: value for key, value in ABLATION.items() if key != "job"}
    alone = {"another average": {"samples.average": 0.2} | changes}
    config = validate(AblationStudyConfig, values | {"alone": alone}, "test")
    with pytest.raises(InputError, match=words):
        all_runs(config, ablation.settings(config))


def test_an_average_is_not_measured_where_it_has_no_snapshot():
    values = {key: value for key, value in ABLATION.items() if key != "job"}
    alone = {"costly": {"samples.average": 0.2, "transformer.training.snapshot_every": 2}}
    config = validate(AblationStudyConfig, values | {"alone": alone}, "test")
    with pytest.raises(InputError, match="an average at step 3, which has no snapshot"):
        all_runs(config, ablation.settings(config), {"costly": 3})


@pytest.mark.parametrize("changes", [{"transformer.training.steps": 8}, {"measurements": 1}])
def test_settings_that_are_measured_after_other_steps_are_refused(changes):
    values = {key: value for key, value in ABLATION.items() if key != "job"}
    config = validate(AblationStudyConfig, values | {"alone": {"longer": changes}}, "test")
    with pytest.raises(InputError, match="'longer' changes the steps"):
        all_runs(config, ablation.settings(config))
