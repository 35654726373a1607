"""A search keeps its result wherever it can be written, and never reads a damaged record of its trials."""

import json
import os
import shutil
from pathlib import Path

import pytest

from alight import LightningDiTPipeline
from alight.artifacts import PIPELINE_INDEX, read_artifact
from alight.config import TuneConfig
from alight.runtime.errors import InputError
from alight.tune import search, trial
from alight.tune.storing import SETTINGS_FILE, reason_against_storing
from alight.tune.trial import PROGRESS


@pytest.fixture
def pipeline(finished_quickstart, tmp_path):
    return shutil.copytree(finished_quickstart[0] / "pipeline", tmp_path / "pipeline")


def config(pipeline, output, **changed):
    values = {
        "output": output,
        "pipeline": pipeline,
        "device": "cpu",
        "images": {"source": "digits", "size": 32},
        "draw": {"samples_per_class": 1, "sampling": {"num_inference_steps": 1}},
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

    save = trial.SettingsSearch._save

    def stop(judge):
        save(judge)
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(trial.SettingsSearch, "_save", stop)
        with pytest.raises(StoppedError):
            search.run(config(pipeline, tmp_path / "report"))
    path = tmp_path / "report" / PROGRESS
    whole = json.loads(path.read_text())
    entry = whole["trials"][0]
    broken = [
        *("", "{", "null", "[]", "3", json.dumps(whole)[:-9], json.dumps(whole).replace(": ", ": NaN", 1)),
        *(json.dumps(whole | {key: 3}) for key in ("config", "weights", "comparable", "trials", "new")),
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
