"""The record of a search for sampling settings, from the search to the pipeline, its reports and its model card."""

import json
import shutil

import pytest

from alight import LightningDiTPipeline
from alight.config import EvaluateConfig, ExportConfig, TuneConfig
from alight.pipelines.selection import NOT_RECORDED, selection_text
from alight.sharing import export
from alight.stages import evaluate
from alight.tune import search

IMAGES = {"source": "digits", "size": 32}
DRAW = {"samples_per_class": 7, "sampling": {"num_inference_steps": 1}}


@pytest.fixture(scope="module")
def tuned(finished_quickstart, tmp_path_factory):
    """A pipeline with settings that a search chose, and the report of the search."""
    folder = tmp_path_factory.mktemp("tuned")
    pipeline = shutil.copytree(finished_quickstart[0] / "pipeline", folder / "pipeline")
    lists = {"guidance_scales": [1.0, 2.0], "guidance_intervals": [[0.0, 1.0]], "timestep_shifts": [1.0]}
    values = {"pipeline": pipeline, "output": folder / "report", "device": "cpu", "images": IMAGES, "draw": DRAW}
    search.run(TuneConfig.model_validate(values | lists | {"solvers": ["euler"], "steps": [1, 2], "seed": 3}))
    return folder


def notes_of(report):
    return json.loads((report / "report.json").read_text())["notes"]


def report_on(pipeline, output, sampling):
    draw = {"samples_per_class": 2, "sampling": sampling}
    values = {"pipeline": pipeline, "output": output, "images": IMAGES, "draw": draw, "device": "cpu"}
    evaluate.run(EvaluateConfig.model_validate(values))
    return notes_of(output)


def test_the_search_is_recorded_where_its_result_is(tuned):
    pipeline = LightningDiTPipeline.from_pretrained(tuned / "pipeline")
    record = pipeline.config.selection
    trials = (tuned / "report" / "settings.csv").read_text().splitlines()[1:]
    distances = sorted(float(line.rsplit(",", 3)[1]) for line in trials)
    assert (record["tried"], record["images"], record["seed"]) == (len(trials), 70, 3)
    assert record["varied"] == {"guidance_scale": [1.0, 2.0], "num_inference_steps": [1, 2]}
    assert record["distance"] == pytest.approx(distances[0])
    assert record["ahead"] == pytest.approx(1 - distances[0] / distances[1])
    assert selection_text(record) in notes_of(tuned / "report")


def test_reports_on_the_pipeline_say_how_its_settings_were_chosen(tuned, tmp_path):
    pipeline = LightningDiTPipeline.from_pretrained(tuned / "pipeline")
    said = selection_text(pipeline.config.selection)
    assert said in report_on(tuned / "pipeline", tmp_path / "chosen", pipeline.recommended_sampling)
    assert NOT_RECORDED in report_on(tuned / "pipeline", tmp_path / "others", {"num_inference_steps": 3})


def test_the_model_card_says_it_too_and_the_record_goes_along(tuned, tmp_path):
    export.run(ExportConfig(pipeline=tuned / "pipeline", output=tmp_path / "export", reconstructions=0))
    assert "chosen by a search over" in (tmp_path / "export" / "README.md").read_text()
    exported = LightningDiTPipeline.from_pretrained(tmp_path / "export")
    assert exported.config.selection == LightningDiTPipeline.from_pretrained(tuned / "pipeline").config.selection


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {},
            "over 4 (guidance_scale 1.0, 2.0): those with the lowest FD of 70 images with seed 3. The lowest was 12",
        ),
        ({"within": 0.02}, "the cheapest within 2% of the lowest FD"),
        ({"ahead": None}, "with seed 3. On the images"),
        ({"varied": {}}, "over 4: those with"),
    ],
)
def test_the_words_of_a_record(changes, said):
    record = {"tried": 4, "varied": {"guidance_scale": [1.0, 2.0]}, "measure": "FD", "images": 70, "seed": 3}
    assert said in selection_text(record | {"distance": 1.0, "ahead": 0.12, "within": 0.0} | changes)
