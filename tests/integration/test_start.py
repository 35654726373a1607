"""From a folder of images to a report in a given time, by one command."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from alight.artifacts import read_artifact
from alight.config import ImagesConfig, PlanConfig, QuickstartConfig, StartConfig
from alight.config.recipes import load_config
from alight.data.loading import open_images
from alight.data.survey import survey
from alight.plan.inputs import Inputs
from alight.plan.measure import Cost
from alight.plan.subject import Machine, Subject
from alight.runtime import hardware
from alight.runtime.errors import InputError
from alight.studies import budget, proposal, quickstart, start
from helpers import warm

SHORT = {  # a whole arrow whose steps take milliseconds
    "job": "quickstart",
    "images": {"size": 32},
    "foundation": {
        "model": {"hidden_size": 24, "num_layers": 1, "num_heads": 2, "patch_size": 8},
        "training": {"steps": 2, "global_batch_size": 8, "ema_decay": None},
    },
    "tokenizer": {
        "model": {
            "latent_channels": 4,
            "block_out_channels": [8, 8, 8],
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "level_attention": False,
            "mid_block_attention": False,
        },
        "training": {"steps": 4, "global_batch_size": 4, "ema_decay": None},
    },
    "transformer": {
        "model": {"preset": None, "hidden_size": 24, "num_layers": 1, "num_heads": 2, "patch_size": 1},
        "training": {"steps": 4, "global_batch_size": 4},
    },
    "samples": {"samples_per_class": 2, "sampling": {"num_inference_steps": 2}},
}


@pytest.fixture
def short_recipe(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(SHORT))
    return path


def colours(folder, count, name="", size=(40, 40)):
    """Images of random colours, each with a square of another colour."""
    rng = np.random.default_rng(len(name))
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (*size, 3)).copy()
        pixels[8:24, 8:24] = rng.integers(0, 256, 3, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder


def test_the_plan_names_images_stages_and_times(alight, tmp_path, short_recipe):
    folder = colours(colours(tmp_path / "images", 20, "cats"), 4, "dogs")
    (folder / "cats" / "notes.txt").write_text("not an image")
    arguments = ("start", folder, "--recipe", short_recipe, "--minutes", 5, "--plan-only")
    result = alight(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for words in (
        *("24 images in 2 classes", "4 to 20 images", "fewer than 10 images (dogs)", "1 .txt"),
        *("32 pixels", "classifier", "f4d4", "runs/images-5min"),
    ):
        assert words in result.stdout, words
    assert not (tmp_path / "runs").exists()


def test_small_images_without_classes_train_a_masked_autoencoder(alight, tmp_path, short_recipe):
    folder = colours(tmp_path / "images", 20, size=(20, 60))
    result = alight("start", folder, "--recipe", short_recipe, "--minutes", 5, "--plan-only", cwd=tmp_path)
    assert "masked autoencoder" in result.stdout
    assert "20 are smaller than 32 pixels and are enlarged" in result.stdout
    assert "pad crop" in result.stdout  # a centre crop would lose two thirds


def test_interrupted_and_started_again_it_follows_the_same_plan(alight, refused, tmp_path, short_recipe):
    folder, output = colours(colours(tmp_path / "images", 20, "cats"), 12, "dogs"), tmp_path / "run"
    arguments = ["start", folder, "--recipe", short_recipe, "--minutes", 0.8, "--output", output]
    process = warm.AlightProcess([str(argument) for argument in arguments])
    log, deadline = output / "tokenizer" / "training" / "log.jsonl", time.monotonic() + 240
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    planned = (output / "recipe.yaml").read_text()
    result = alight(*arguments)
    assert result.returncode == 0, result.stderr
    assert "as planned before" in result.stderr
    assert (output / "recipe.yaml").read_text() == planned
    assert result.stdout.strip() == f"Report: {output}/report/report.html"
    steps = yaml.safe_load(planned)["tokenizer"]["training"]["steps"]
    assert steps > SHORT["tokenizer"]["training"]["steps"]  # scaled up to the time
    assert read_artifact(output / "tokenizer", "tokenizer").facts["steps"] == steps
    report = json.loads((output / "report" / "report.json").read_text())
    assert report["reconstruction_psnr"] > 5

    message = refused("start", folder, "--recipe", short_recipe, "--minutes", 2, "--output", output)
    assert "minutes: 0.8 -> 2.0" in message
    by_hand = alight("quickstart", "--config", output / "recipe.yaml")  # the recipe is complete
    assert by_hand.returncode == 0, by_hand.stderr
    assert "finished already" in by_hand.stderr


def test_a_tokenizer_that_exists_takes_the_place_of_training_one(alight, tmp_path, short_recipe, finished_quickstart):
    """The check decides: one of a few steps is not good enough for itself, and one is trained."""
    folder, output = colours(tmp_path / "images", 20), tmp_path / "run"
    stock = finished_quickstart[0] / "tokenizer"
    arguments = ("start", folder, "--recipe", short_recipe, "--minutes", 0.8, "--output", output)
    result = alight(*arguments, "--stock-tokenizer", stock)
    assert result.returncode == 0, result.stderr
    assert "too little, so one is trained" in result.stderr
    assert (output / "stock-tokenizer-32px" / "report.html").is_file()
    assert (output / "foundation").is_dir()


def test_an_arrow_with_an_existing_tokenizer(alight, tmp_path, short_recipe, finished_quickstart):
    stock = tmp_path / "stock"  # a foreign folder of diffusers
    shutil.copytree(finished_quickstart[0] / "pipeline" / "tokenizer", stock)
    (stock / "alight.json").unlink(missing_ok=True)
    output = tmp_path / "run"
    arguments = ("quickstart", "--config", short_recipe, "--images.source", "digits", "--stock-tokenizer", stock)
    result = alight(*arguments, "--latents.statistics", "data", "--output", output)
    assert result.returncode == 0, result.stderr
    assert not (output / "foundation").exists()
    assert read_artifact(output / "tokenizer", "tokenizer").facts["converted_from"]


@pytest.mark.parametrize(
    ("count", "words"),
    [(1, "holds 1 image."), (3, "holds 3 images"), (0, "holds no images")],
    ids=["one", "few", "no"],
)
def test_too_few_images_are_refused(refused, tmp_path, count, words):
    folder = tmp_path / "images"
    folder.mkdir()
    assert words in refused("start", colours(folder, count), cwd=tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("colour", [(0, 0, 0), (200, 30, 90)], ids=["black", "identical"])
def test_equal_images_are_refused(refused, tmp_path, colour):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        Image.new("RGB", (50, 50), colour).save(folder / f"{number}.png")
    message = refused("start", folder, cwd=tmp_path)
    assert "holds 40 images, of which only 1 differ" in message


def test_a_time_too_short_names_one_that_would_do(refused, tmp_path):
    message = refused("start", colours(tmp_path / "images", 20), "--minutes", 0.1, cwd=tmp_path)
    assert "0.1 minutes are too short" in message
    assert "--minutes " in message


@pytest.mark.parametrize(
    ("size", "words"), [(36, "needs a multiple of the patch size"), (33, "is not a multiple of 4"), (4, "at least 32")]
)
def test_a_size_that_does_not_fit_the_networks_is_refused(refused, tmp_path, short_recipe, size, words):
    folder = colours(tmp_path / "images", 20)  # without classes: a masked autoencoder
    assert words in refused("start", folder, "--recipe", short_recipe, "--size", size, cwd=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_an_output_inside_the_images_is_refused_at_once(refused, tmp_path):
    folder = colours(tmp_path / "images", 20)
    before = sorted(folder.iterdir())
    assert "lies inside ., which it is made from" in refused("start", ".", cwd=folder)
    assert sorted(folder.iterdir()) == before


def test_stages_with_images_of_their_own_are_refused(refused, tmp_path, short_recipe):
    recipe = SHORT | {"tokenizer": SHORT["tokenizer"] | {"images": {"crop": "random"}}}
    short_recipe.write_text(yaml.safe_dump(recipe))
    message = refused("start", colours(tmp_path / "images", 20), "--recipe", short_recipe, cwd=tmp_path)
    assert "has a section tokenizer.images" in message


def test_a_run_without_its_plan_is_left_alone(refused, tmp_path):
    output = tmp_path / "run"
    (output / "foundation").mkdir(parents=True)
    (output / "recipe.yaml").write_text("job: quickstart")
    message = refused("start", colours(tmp_path / "images", 20), "--output", output)
    assert f"alight quickstart --config {output}/recipe.yaml" in message
    assert (output / "recipe.yaml").read_text() == "job: quickstart"
    assert not (output / "start.json").exists()


def test_of_two_processes_the_slower_one_takes_the_plan_of_the_faster(tmp_path):
    config = StartConfig(source="digits", output=tmp_path / "run")
    first = QuickstartConfig(output=config.folder)
    training = first.transformer.training.model_copy(update={"steps": 7})  # timed again, a plan has other steps
    second = first.model_copy(update={"transformer": first.transformer.model_copy(update={"training": training})})
    assert start.store(config, first, ("first",), config.folder) == (first, ("first",))
    recipe, plan = start.store(config, second, ("second",), config.folder)
    assert (recipe.model_dump(mode="json"), plan) == (first.model_dump(mode="json"), ("first",))
    with pytest.raises(InputError, match="seed: 0 -> 1"):
        start.store(config.model_copy(update={"seed": 1}), second, ("second",), config.folder)


def test_an_output_that_cannot_be_written_is_refused_before_the_images_are_read(refused, tmp_path):
    output = tmp_path / "file"
    output.write_text("in the way")
    message = refused("start", colours(tmp_path / "images", 20), "--output", output)
    assert "Cannot write to" in message
    assert "looking at" not in message


@pytest.mark.parametrize("source", ["images/", "./images", "images//"])
def test_a_folder_is_the_same_however_it_is_written(source):
    assert StartConfig(source=source) == StartConfig(source="images")


def test_a_plan_that_was_damaged_says_how_to_go_on(refused, tmp_path):
    folder, output = colours(tmp_path / "images", 20), tmp_path / "run"
    config = StartConfig(source=str(folder), output=output)
    start.store(config, QuickstartConfig(output=output), ("plan",), output)
    stored = output / "start.json"
    stored.write_text(stored.read_text().replace('"plan"', '"other"', 1))
    message = refused("start", folder, "--output", output)
    assert "damaged, or edited by hand" in message
    assert f"alight quickstart --config {output}/recipe.yaml" in message


def test_a_recipe_that_was_deleted_is_written_again(tmp_path):
    config = StartConfig(source="digits", output=tmp_path / "run")
    start.store(config, QuickstartConfig(output=config.folder), ("the plan",), config.folder)
    written = (config.folder / "recipe.yaml").read_text()
    (config.folder / "recipe.yaml").unlink()
    start.resume(config, config.folder)
    assert (config.folder / "recipe.yaml").read_text() == written


def test_training_is_planned_in_the_faster_precision_or_the_wanted_one(monkeypatch):
    monkeypatch.setattr(proposal, "faster_precision", lambda device: "bf16")
    found, recipe = survey(open_images("digits")), QuickstartConfig()
    for wanted, used in ((None, "bf16"), ("fp32", "fp32")):
        filled = proposal.propose(StartConfig(source="digits", precision=wanted), found, recipe, 0.0).recipe
        stages = filled.foundation, filled.tokenizer, filled.transformer
        assert [stage.training.precision for stage in stages] == [used] * 3


def test_classes_and_copies_that_the_split_tears_apart_are_named(tmp_path):
    folder = colours(colours(tmp_path / "images", 30, "many"), 1, "one")
    source = open_images(folder)
    held_out = source.held_out(0.5)
    for number in range(100):  # until the only image of the class is held out
        (folder / source.name(30)).rename(folder / "one" / f"{number}.png")
        source = open_images(folder)
        held_out = source.held_out(0.5)
        if held_out[30]:
            break
    (kept, other) = np.flatnonzero(~held_out)[0], np.flatnonzero(held_out)[0]
    shutil.copy(folder / source.name(int(kept)), folder / source.name(int(other)))
    source = open_images(folder)
    gone, copies = proposal.split_remarks(source, survey(source), 0.5)
    assert gone.startswith("All images of one are among the held-out ones")
    assert copies.startswith("1 held-out image is also, or nearly, among the training images")


def test_images_too_large_for_the_memory_are_refused_with_the_remedy(monkeypatch):
    job = QuickstartConfig().foundation
    huge = Cost(1, 1.0, 1.0, 2.0**40)
    monkeypatch.setattr(budget, "training_subject", lambda *arguments: Subject({}, 1, 1, 1, []))
    monkeypatch.setattr(budget, "sweep", lambda *arguments, **options: [huge])
    with pytest.raises(InputError, match=r"takes 1.0 TiB of memory, and 1.0 GiB are free. Give a smaller --size"):
        budget.step_seconds(job, PlanConfig(), Machine(torch.device("cpu"), 2**30, 1e9), Inputs(PlanConfig()))


@pytest.mark.parametrize(("share", "count"), [(0.4, 1), (0.97, 0)])
def test_the_plan_mentions_other_busy_programs(monkeypatch, share, count):
    monkeypatch.setattr(start, "leave_busy_cores", lambda: share)
    assert len(start.load_remarks(StartConfig(source="digits", device="cpu"))) == count


@pytest.mark.parametrize(("share", "threads"), [(1.0, 4), (0.9, 4), (0.7, 2), (0.26, 1), (0.05, 1)])
def test_only_free_cores_are_computed_on(monkeypatch, share, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        monkeypatch.setattr(hardware, "share_of_cores", lambda: share)
        assert hardware.leave_busy_cores() == share
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_time_that_the_plan_took_is_part_of_the_time():
    stages = ("foundation", "tokenizer", "transformer")
    costs = budget.Costs(dict.fromkeys(stages, 0.001), dict.fromkeys(quickstart.STAGES, 1.0))
    steps = [budget.fit(QuickstartConfig(), costs, 10, spent).transformer.training.steps for spent in (0.0, 5.0)]
    assert 0.45 < steps[1] / steps[0] < 0.5


def test_the_recipe_of_a_run_names_its_own_images_alone(tmp_path):
    images = ImagesConfig(source="images", size=64)
    recipe = load_config("own_images/quick").model_copy(update={"images": images, "output": tmp_path})
    start.write_recipe(tmp_path, recipe, ("the plan",))
    text = (tmp_path / "recipe.yaml").read_text()
    assert "digits" not in text
    again = load_config(tmp_path / "recipe.yaml")
    assert again.model_dump(mode="json") == recipe.model_dump(mode="json")


def test_start_needs_images_that_exist(refused, tmp_path):
    assert "alight start FOLDER" in refused("start")
    assert "There are no images at" in refused("start", tmp_path / "nowhere")
