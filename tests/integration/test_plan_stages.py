"""Plans of single stages and whole arrows: the right work is counted, and real networks run."""

import json
import time

import pytest
import torch

from alight.config import (
    DrawConfig,
    EvaluateConfig,
    EvaluateTokenizerConfig,
    ExtractLatentsConfig,
    PlanConfig,
    QuickstartConfig,
    SampleConfig,
    SolverConfig,
    TrainFoundationConfig,
    TrainTokenizerConfig,
    TrainTransformerConfig,
)
from alight.config.recipes import load_config, shipped_recipes
from alight.models.vavae import VAVAE
from alight.plan.estimate import run, seconds_for
from alight.plan.inputs import Inputs
from alight.plan.parts import Part, drawn_images, parts_of
from alight.plan.passes import Passes
from alight.plan.stages import StagesPlan, StageTime, stages_of

IMAGES = {"source": "digits", "size": 32}
VIT = {"hidden_size": 24, "num_layers": 1, "num_heads": 3, "patch_size": 8}
AUTOENCODER = {
    "latent_channels": 4,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "level_attention": False,
    "mid_block_attention": False,
}
TRAINING = {"steps": 3, "global_batch_size": 4, "ema_decay": None}


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A tiny arrow, nothing of which is there yet."""
    monkeypatch.chdir(tmp_path)
    values = {"images": IMAGES, "training": TRAINING, "device": "cpu"}
    return {
        "foundation": TrainFoundationConfig.model_validate(values | {"output": "foundation", "model": VIT}),
        "tokenizer": TrainTokenizerConfig.model_validate(
            values | {"output": "tokenizer", "model": AUTOENCODER, "alignment": {"foundation": "foundation"}}
            | {"reconstruction": {"perceptual_weight": 0, "adversarial_weight": 0}}
        ),
        "latents": ExtractLatentsConfig.model_validate(
            {"output": "latents", "tokenizer": "tokenizer", "images": IMAGES, "device": "cpu"}
        ),
        "transformer": TrainTransformerConfig.model_validate(
            {"output": "transformer", "latents": "latents", "training": TRAINING, "device": "cpu"}
            | {"model": {"preset": None, "hidden_size": 24, "num_layers": 2, "num_heads": 3, "patch_size": 4}}
        ),
        "samples": SampleConfig.model_validate(
            {"output": "samples", "transformer": "transformer", "tokenizer": "tokenizer", "device": "cpu"}
            | {"samples_per_class": 3, "sampling": {"num_inference_steps": 5, "guidance_scale": 2.0}}
        ),
    }  # fmt: skip


def counted(job, jobs):
    """Parts of a stage: name -> times; all of them take time."""
    inputs = Inputs(PlanConfig(), jobs.values())
    parts = list(parts_of(job, inputs, Passes(torch.device("cpu"), 0.01, inputs.note)))
    assert all(part.seconds_each > 0 for part in parts)
    assert len({part.name for part in parts}) == len(parts)
    return {part.name: part.times for part in parts}, inputs.notes


def test_extraction_encodes_every_image_and_its_mirror_image(jobs):
    parts, notes = counted(jobs["latents"], jobs)
    assert parts == {"read images": 1500, "encode": 3000}
    assert not notes  # another job of the arrow makes the tokenizer, so nothing is taken for granted
    parts, _ = counted(jobs["latents"].model_copy(update={"flips": False}), jobs)
    assert parts["encode"] == 1500


def test_sampling_with_a_shift_by_the_size_of_the_latents(jobs):
    """Steps are even before the shift; its end and the guided times after it depend on the latents, 4 x 16 x 16."""
    sampling = {"num_inference_steps": 10, "guidance_scale": 2.0, "guidance_interval": (0.0, 0.9)}
    jobs["samples"] = jobs["samples"].model_copy(update={"sampling": SolverConfig(**sampling, timestep_shift="auto")})
    automatic, _ = counted(jobs["samples"], jobs)
    jobs["samples"] = jobs["samples"].model_copy(update={"sampling": SolverConfig(**sampling, timestep_shift=2.0)})
    assert automatic == counted(jobs["samples"], jobs)[0]
    jobs["samples"] = jobs["samples"].model_copy(update={"sampling": SolverConfig(**sampling)})
    assert automatic != counted(jobs["samples"], jobs)[0]


def test_sampling_evaluates_the_transformer_twice_a_step_where_it_is_guided(jobs):
    parts, _ = counted(jobs["samples"], jobs)
    assert parts == {"evaluate the transformer": 30 * 5 * 2, "decode": 30}


def test_reports_reconstruct_and_compare(jobs):
    values = {"images": IMAGES, "tokenizer": "tokenizer", "device": "cpu"}
    report = EvaluateTokenizerConfig.model_validate(values | {"linear_map_images": 100})
    held_out = 297
    parts, _ = counted(report, jobs)
    assert parts == {
        "read images": held_out,
        "encode": held_out,
        "decode": held_out,
        "features of the foundation model": held_out,
        "encode for the linear map": 100,
        "features for the linear map": 100,
    }
    generated = EvaluateConfig.model_validate(
        values | {"samples": "samples", "tokenizer": None} | {"foundation": "foundation"}
    )
    assert counted(generated, jobs)[0] == {"read images": 1500, "features of the foundation model": 1530}


def test_a_transformer_too_deep_for_the_time_is_measured_in_part(jobs):
    notes = []
    inputs = Inputs(PlanConfig(), jobs.values())
    shape = inputs.transformer(jobs["transformer"].output)
    passes = Passes(torch.device("cpu"), 1e-9, notes.append)
    built = []

    def build(layers):
        built.append(layers)
        return shape.build(layers)

    seconds = passes.sampling_step(build, 400, 1, "fp32")
    assert built == [2, 4]
    assert any("followed to 400" in note for note in notes)
    assert seconds > 0


def test_the_area_of_large_images_is_followed():
    notes = []
    vae = VAVAE.build(**AUTOENCODER | {"block_out_channels": (8, 8)})
    assert Passes(torch.device("cpu"), 1e-9, notes.append).decoding(vae, 256, 1) > 0
    assert any("64 and 128 pixels" in note for note in notes)


def test_the_number_of_images_that_are_drawn():
    assert drawn_images(DrawConfig(samples_per_class=5), 10) == 50
    assert drawn_images(DrawConfig(samples_per_class=5, classes=("1", "2")), 10) == 10
    assert drawn_images(DrawConfig(labels="random", num_samples=7), 10) == 7
    assert drawn_images(DrawConfig(class_counts={"1": 2, "2": 1}), 10) == 3


def test_an_arrow_is_the_sum_of_its_stages(jobs, tmp_path):
    arrow = QuickstartConfig.model_validate(
        {name: job.model_dump(exclude={"output", "seed", "device"}) for name, job in jobs.items()}
        | {"report": {"images": IMAGES}, "device": "cpu"}
    )
    assert list(stages_of(arrow)) == ["foundation", "tokenizer", "latents", "transformer", "samples", "report"]
    recipe = tmp_path / "arrow.json.yaml"
    recipe.write_text(json.dumps({"job": "quickstart", **arrow.model_dump(mode="json")}))
    plan = run(PlanConfig(recipe=str(recipe), seconds=0.1))
    stages = {stage.stage: stage for stage in plan.stages}
    assert [part.times for part in stages["tokenizer"].parts] == [3, 1500]  # steps, and images that are read once
    assert plan.total_seconds == pytest.approx(sum(stage.seconds for stage in plan.stages))
    assert all(stage.seconds > 0 for stage in plan.stages)
    assert not [note for note in plan.notes if "There" in note]
    data = json.loads(json.dumps(plan.as_data()))
    assert data["total_seconds"] == plan.total_seconds
    assert str(plan).count("alight ") >= 6
    assert "in all" in str(plan)


def test_the_seconds_of_a_stage_follow_its_length(jobs):
    """A thousand times the steps take at least twenty times as long, however busy the machine is."""
    job = jobs["transformer"]
    longer = job.model_copy(update={"training": job.training.model_copy(update={"steps": 3_000})})
    short, long = (seconds_for(each, jobs=jobs.values(), seconds=0.2) for each in (job, longer))
    assert long > 20 * short > 0


def test_processes_share_the_time():
    stage = StageTime("a", "sample", (Part("decode", 10, 0.5),), ("note",))
    assert StagesPlan("r", "cpu", 1, (stage, stage)).total_seconds == 10
    plan = StagesPlan("r", "cpu", 2, (stage, stage))
    assert plan.total_seconds == 5
    assert plan.notes[0] == "note"
    assert "shared by 2 processes" in str(plan)


SMALL = [name for name in shipped_recipes() if name.startswith("own_images") and name != "own_images/gpu"]


@pytest.mark.parametrize("name", SMALL)
def test_every_small_recipe_has_an_answer_at_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(name)
    started = time.process_time()
    assert seconds_for(config, seconds=0.1, num_images=796) > 0
    assert time.process_time() - started < 60
