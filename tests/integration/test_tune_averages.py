"""`alight tune --averages`: the length of the average of the weights as an axis of the search."""

import json
import shutil

import pytest
import torch

from alight import LightningDiTPipeline
from alight.artifacts import PIPELINE_INDEX
from alight.cli import parse
from alight.config import AverageConfig, TrainTransformerConfig, TuneConfig
from alight.models.weight_files import weights_hash
from alight.runtime.errors import InputError
from alight.stages import average, train_transformer
from alight.tune import search
from alight.tune.averages import AveragedSettings, PipelineAverages
from alight.tune.settings import settings_from
from alight.tune.storing import SETTINGS_FILE
from alight.tune.strategy import planned


@pytest.fixture(scope="module")
def made(finished_quickstart, tmp_path_factory):
    """A run that keeps averages on the latents of the quickstart, and the pipeline with its transformer beside it."""
    quickstart, folder = finished_quickstart[0], tmp_path_factory.mktemp("made")
    model = {"preset": None, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "patch_size": 1}
    training = {"steps": 24, "global_batch_size": 16, "power_averages": [0.05, 0.1], "snapshot_every": 2}
    values = {"latents": quickstart / "latents", "output": folder / "transformer", "device": "cpu", "model": model}
    values |= {"training": training | {"ema_decay": 0.5}, "sample_images": 0, "optimizer": {"lr": 1e-2}}
    train_transformer.run(TrainTransformerConfig.model_validate(values))
    pipeline = LightningDiTPipeline.from_artifacts(folder / "transformer", quickstart / "tokenizer")
    pipeline.save_pretrained(folder / "pipeline")
    return folder


@pytest.fixture
def pipeline(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run" / "pipeline"


def config(pipeline, output, **changed):
    values = {
        **{"output": output, "pipeline": pipeline, "device": "cpu", "images": {"source": "digits", "size": 32}},
        **{"draw": {"samples_per_class": 7, "sampling": {"num_inference_steps": 1}}, "guidance_scales": [1.0]},
        **{"guidance_intervals": [[0.0, 1.0]], "timestep_shifts": [1.0], "solvers": ["euler"], "steps": [1]},
    }
    return TuneConfig.model_validate(values | changed)


def columns(report):
    lines = [line.split(",") for line in (report.path / "settings.csv").read_text().splitlines()]
    return {name: [line[index] for line in lines[1:]] for index, name in enumerate(lines[0])}


def test_every_average_is_tried_and_gives_the_images_of_its_transformer(pipeline, finished_quickstart, tmp_path):
    report = search.run(config(pipeline, tmp_path / "report", averages=[None, 0.05, 0.08, 0.1]))
    found = columns(report)
    assert sorted(found["average"]) == ["0.05", "0.08", "0.1", "own weights"]
    assert len(set(found["distance"])) == 4
    data = json.loads((report.path / "report.json").read_text())
    assert any("tried, by their widths: own weights, 0.05, 0.08, 0.1" in note for note in data["notes"])
    # the same figure as of a pipeline with the transformer that 'alight average' writes
    chosen = average.run(AverageConfig(run=pipeline.parent / "transformer", width=0.08, output=tmp_path / "chosen"))
    tokenizer = finished_quickstart[0] / "tokenizer"
    LightningDiTPipeline.from_artifacts(chosen.path, tokenizer).save_pretrained(tmp_path / "other")
    alone = columns(search.run(config(tmp_path / "other", tmp_path / "alone", store=False)))
    assert alone["distance"] == [found["distance"][found["average"].index("0.08")]]
    assert "average" not in alone


def test_the_best_settings_of_an_average_stay_out_of_the_pipeline(pipeline, tmp_path):
    before = (pipeline / PIPELINE_INDEX).read_bytes()
    report = search.run(config(pipeline, tmp_path / "report", averages=[0.1]))
    assert (pipeline / PIPELINE_INDEX).read_bytes() == before
    summary = json.loads((report.path / "report.json").read_text())["summary"]
    assert "whose weights are others" in summary
    settings = json.loads((report.path / SETTINGS_FILE).read_text())
    assert "average" not in settings
    assert LightningDiTPipeline.from_pretrained(pipeline)(["3"], seeds=[0], **settings).images


def test_the_own_weights_come_back(pipeline, tmp_path):
    opened = LightningDiTPipeline.from_pretrained(pipeline)
    before = {name: value.clone() for name, value in opened.transformer.state_dict().items()}
    averages = PipelineAverages(config(pipeline, tmp_path, averages=[0.1]), opened)
    assert all(torch.equal(value, before[name]) for name, value in opened.transformer.state_dict().items())
    averages.use(0.1)
    assert not all(torch.equal(value, before[name]) for name, value in opened.transformer.state_dict().items())
    averages.use(None)
    assert all(torch.equal(value, before[name]) for name, value in opened.transformer.state_dict().items())


def test_averages_come_first_and_are_kept_with_their_trials():
    plan = planned(TuneConfig(averages=(None, 0.05, 0.1), steps=(10,), solvers=("euler",)), {})
    assert [each.average for each in plan[:3]] == [None, 0.05, 0.1]
    assert len(set(plan)) == len(plan)
    assert settings_from(plan[1].model_dump(mode="json")) == plan[1]
    assert str(plan[1]).endswith("average 0.05")
    assert not any(isinstance(each, AveragedSettings) for each in planned(TuneConfig(), {}))
    parsed, _ = parse("tune", ["--averages", "None", "0.05", "0.1"])
    assert parsed.averages == (None, 0.05, 0.1)


def test_averages_that_cannot_be_tried_are_refused_before_any_trial(pipeline, finished_quickstart, tmp_path):
    with pytest.raises(InputError, match=r"cannot give an average of width 0\.01 .* Widths within reach: "):
        search.run(config(pipeline, tmp_path / "report", averages=[0.05, 0.01]))
    quickstart = finished_quickstart[0]
    with pytest.raises(InputError, match="holds no snapshots of averages"):
        search.run(config(quickstart / "pipeline", tmp_path / "report", averages=[0.05]))
    run = pipeline.parent / "transformer"
    assert weights_hash(run) != weights_hash(quickstart / "transformer")
    with pytest.raises(InputError, match="is not the finished one in"):
        search.run(config(quickstart / "pipeline", tmp_path / "report", averages=[0.05], averages_of=run))
    with pytest.raises(InputError, match="There is no transformer folder"):
        search.run(config(pipeline, tmp_path / "report", averages=[0.05], averages_of=tmp_path / "nowhere"))
    for changed in ({"averages": [0.5]}, {"averages_of": run}):
        with pytest.raises(ValueError, match="averages"):
            config(pipeline, tmp_path / "report", **changed)
    assert not (tmp_path / "report").exists()
