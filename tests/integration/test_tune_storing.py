"""A search goes on after an interruption, and stores its result where it can be written and trusted."""

import json
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from alight import LightningDiTPipeline
from alight.artifacts import PIPELINE_INDEX, read_artifact
from alight.config import TuneConfig
from alight.runtime.errors import InputError
from alight.tune import search, trial
from alight.tune.measure import Measure
from alight.tune.record import PROGRESS, TrialRecord
from alight.tune.storing import SETTINGS_FILE, reason_against_storing


@pytest.fixture
def pipeline(finished_quickstart, tmp_path):
    return shutil.copytree(finished_quickstart[0] / "pipeline", tmp_path / "pipeline")


def config(pipeline, output, **changed):
    values = {
        "output": output,
        "pipeline": pipeline,
        "device": "cpu",
        "images": {"source": "digits", "size": 32},
        "draw": {"samples_per_class": 7, "sampling": {"num_inference_steps": 1}},
        "guidance_scales": [1.0, 2.0],
        "guidance_intervals": [[0.0, 1.0]],
        "timestep_shifts": [1.0],
        "solvers": ["euler"],
        "steps": [1],
    }
    return TuneConfig.model_validate(values | changed)


def test_a_pipeline_that_cannot_be_written_costs_nothing_of_the_search(pipeline, tmp_path, caplog):
    (pipeline / f".{PIPELINE_INDEX}.writing").mkdir()  # in the way of the new index, for every user
    before = (pipeline / PIPELINE_INDEX).read_bytes()
    report = search.run(config(pipeline, tmp_path / "report"))
    assert (pipeline / PIPELINE_INDEX).read_bytes() == before
    settings = json.loads((report.path / SETTINGS_FILE).read_text())
    assert LightningDiTPipeline.from_pretrained(pipeline)(["3"], seeds=[0], **settings).images
    assert "not stored in the pipeline" in caplog.text
    assert f"stored in {SETTINGS_FILE}" in json.loads((report.path / "report.json").read_text())["summary"]
    assert not (report.path / PROGRESS).exists()


def test_the_user_learns_before_the_search_that_it_cannot_be_stored(pipeline, tmp_path, caplog, monkeypatch):
    class StoppedError(Exception):
        pass

    def stop(_):
        raise StoppedError

    monkeypatch.setattr(trial.SettingsSearch, "run", stop)
    monkeypatch.setattr("alight.tune.storing.reason_against_storing", lambda _: "read-only file system")
    with pytest.raises(StoppedError):
        search.run(config(pipeline, tmp_path / "report"))
    assert f"(read-only file system), so the best settings will not be stored there, but in {tmp_path}" in caplog.text


def test_folders_that_cannot_be_written_are_known(tmp_path):
    assert reason_against_storing(tmp_path) is None
    assert not list(tmp_path.iterdir())
    assert reason_against_storing(Path("/proc"))
    assert reason_against_storing(tmp_path / "absent")
    if os.geteuid() != 0:
        tmp_path.chmod(0o555)
        assert "permission denied" in reason_against_storing(tmp_path)


def test_a_pipeline_opens_after_settings_were_stored(pipeline, tmp_path):
    search.run(config(pipeline, tmp_path / "report"))
    read_artifact(pipeline, "pipeline")  # its hashes follow
    assert LightningDiTPipeline.from_pretrained(pipeline).recommended_sampling["solver"] == "euler"
    assert not (tmp_path / "report" / SETTINGS_FILE).exists()


def test_a_damaged_record_of_trials_is_named(pipeline, tmp_path, monkeypatch):
    class StoppedError(Exception):
        pass

    write = TrialRecord.write

    def stop(*arguments):
        write(*arguments)
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(TrialRecord, "write", stop)
        with pytest.raises(StoppedError):
            search.run(config(pipeline, tmp_path / "report"))
    path = tmp_path / "report" / PROGRESS
    whole = json.loads(path.read_text())
    entry = whole["trials"][0]
    broken = [
        *("", "{", "null", "[]", "3", json.dumps(whole)[:-9], json.dumps(whole).replace(": ", ": NaN", 1)),
        *(json.dumps(whole | {key: 3}) for key in ("measurement", "comparable", "trials", "new")),
        *(json.dumps(whole | {"trials": [entry | {key: [1]}]}) for key in entry),
        *(json.dumps(whole | {"trials": [entry | {"nfe": value}]}) for value in (-1, "3", None)),
        *(json.dumps(whole | {"trials": [entry | {"settings": value}]}) for value in ({"solver": "x"}, {"a": 1})),
        *(json.dumps(whole | {"trials": value}) for value in ([None], {"a": 1}, [[]])),
    ]
    for text in broken:
        path.write_text(text)
        with pytest.raises(InputError, match=rf"{PROGRESS}.*to begin the search again"):
            search.run(config(pipeline, tmp_path / "report"))
        assert path.read_text() == text
    path.write_text(json.dumps(whole | {"trials": [entry | {"distance": None}]}))  # images that were not finite
    best = search.run(config(pipeline, tmp_path / "report"))
    assert json.loads((best.path / "report.json").read_text())["best_distance"] > 0


def rows(report):
    """The table of trials without the time that they took."""
    return [line.rpartition(",")[0] for line in (report.path / "settings.csv").read_text().splitlines()]


def figures(report):
    return json.loads((report.path / "report.json").read_text())["figures"]


def test_an_interrupted_search_ends_like_an_undisturbed_one(pipeline, tmp_path, monkeypatch, caplog):
    lists = {"steps": [1, 2], "guidance_intervals": [[0.0, 1.0], [0.4, 1.0]], "store": False}
    whole = search.run(config(pipeline, tmp_path / "whole", **lists))
    made = []

    class Images(trial.LiveImages):
        def read(self, *arguments):
            made.append(self._draw.sampling)
            if len(made) in (2, 4):  # in the middle of a trial
                raise KeyboardInterrupt
            return super().read(*arguments)

    monkeypatch.setattr(trial, "LiveImages", Images)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search.run(config(pipeline, tmp_path / "parts", **lists))
    parts = search.run(config(pipeline, tmp_path / "parts", **lists))
    assert "finished trials are kept" in caplog.text
    assert len(made) == len(rows(whole)) - 1 + 2  # every trial once, and the interrupted ones again
    assert rows(parts) == rows(whole)
    assert figures(parts) == figures(whole)


def test_finished_trials_serve_a_search_of_other_lists(pipeline, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    output, made = tmp_path / "report", []
    with monkeypatch.context() as patch:
        patch.setattr("alight.tune.search.write", stop)  # after the last trial
        with pytest.raises(KeyboardInterrupt):
            search.run(config(pipeline, output, steps=[1, 2]))

    class Images(trial.LiveImages):
        def read(self, *arguments):
            made.append(self._draw.sampling)
            return super().read(*arguments)

    monkeypatch.setattr(trial, "LiveImages", Images)
    with pytest.raises(InputError, match="cannot be compared .* they differ in seed"):
        search.run(config(pipeline, output, seed=1))
    with pytest.raises(InputError, match="they differ in images"):
        search.run(config(pipeline, output, images={"source": "digits", "size": 32, "crop": "pad"}))
    report = search.run(config(pipeline, output, steps=[1], batch_size=10))
    assert not made
    assert {row.split(",")[1] for row in rows(report)[1:]} == {"1"}  # the other trials are not of this search


def test_only_steps_that_were_asked_for_are_tried_and_recommended(pipeline, tmp_path):
    values = {"draw": {"samples_per_class": 7}, "steps": [3], "solvers": ["heun"], "timestep_shifts": [0.5]}
    report = search.run(config(pipeline, tmp_path / "report", **values))
    header, *trials = (row.split(",") for row in rows(report))
    tried = {name: {row[column] for row in trials} for column, name in enumerate(header)}
    assert (tried["solver"], tried["num_inference_steps"], tried["timestep_shift"]) == ({"heun"}, {"3"}, {"0.5"})
    recommended = LightningDiTPipeline.from_pretrained(pipeline).recommended_sampling
    assert recommended["num_inference_steps"] == 3
    assert recommended["timestep_shift"] == 0.5


@pytest.mark.parametrize(
    ("draw", "reason"),
    [
        ({"samples_per_class": 2}, "20 images are too few .* 64 features; give --draw.samples-per-class 7"),
        ({"labels": "random", "num_samples": 64}, "give --draw.num-samples 65"),
        ({"samples_per_class": 70, "classes": ["3"]}, "1 of 10 classes"),
    ],
)
def test_settings_whose_figures_cannot_be_compared_are_not_stored(pipeline, tmp_path, draw, reason, caplog):
    before = (pipeline / PIPELINE_INDEX).read_bytes()
    values = {"draw": draw | {"sampling": {"num_inference_steps": 1}}, "guidance_scales": [1.0]}
    report = search.run(config(pipeline, tmp_path / "report", **values))
    assert (pipeline / PIPELINE_INDEX).read_bytes() == before
    assert not (report.path / SETTINGS_FILE).exists()
    content = json.loads((report.path / "report.json").read_text())
    assert re.search(f"They are not stored, because .*{reason}", content["summary"])
    assert content["figures"][0]["conditions"]["comparable"].startswith("no: ")
    assert re.search(f"will not be stored .*{reason}", caplog.text)


def test_settings_without_finite_images_are_not_stored(pipeline, tmp_path, monkeypatch):
    distance = Measure.distance
    monkeypatch.setattr(Measure, "distance", lambda *given: replace(distance(*given), value=math.nan))
    before = (pipeline / PIPELINE_INDEX).read_bytes()
    report = search.run(config(pipeline, tmp_path / "report"))
    assert (pipeline / PIPELINE_INDEX).read_bytes() == before
    assert (
        "no settings gave images that are finite" in json.loads((report.path / "report.json").read_text())["summary"]
    )
