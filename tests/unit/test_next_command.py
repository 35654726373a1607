"""The proposed next command: recipe and folders of the user, images as they were given, quoted for a shell."""

import json
import shlex
from pathlib import Path

import pytest

from alight import cli
from alight.config import ImagesConfig, StartConfig, TrainFoundationConfig, TrainTokenizerConfig
from alight.config.command_line import command_text, option_words
from alight.config.commands import COMMANDS
from alight.config.recipes import load_config
from alight.next_command import FOLLOWING, next_command

TOKENIZER = "job: tokenizer train\noutput: runs/own/tokenizer\nimages: {source: images, size: 64}\n"
FOUNDATION = "job: foundation train\noutput: runs/own/foundation\nimages: {source: images, size: 64}\n"


def parsed(command: str):
    """The configuration that a proposed command asks for."""
    _, *words = shlex.split(command)
    name, rest = (" ".join(words[:2]), words[2:]) if " ".join(words[:2]) in COMMANDS else (words[0], words[1:])
    return name, cli.parse(name, rest)[0]


@pytest.fixture
def recipes(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("my recipes")
    folder.mkdir()
    (folder / "foundation.yaml").write_text(FOUNDATION)
    (folder / "tokenizer.yaml").write_text(TOKENIZER)
    (folder / "broken.yaml").write_text("job: [\n")
    return folder


def test_every_row_is_about_commands():
    assert set(FOLLOWING) - {"start"} <= set(COMMANDS)


def test_the_recipe_beside_the_one_in_use_is_taken(recipes):
    recipe = str(recipes / "foundation.yaml")
    config = load_config(recipe, {"images.source": "my pictures", "images.held_out_fraction": 0.1})
    command = next_command("foundation train", config, recipe)
    assert command == (
        "alight tokenizer train --config 'my recipes/tokenizer.yaml' --output runs/own/tokenizer"
        " --images.source 'my pictures' --images.held-out-fraction 0.1 --alignment.foundation runs/own/foundation"
    ).replace(" --output runs/own/tokenizer", "")
    name, following = parsed(command)
    assert name == "tokenizer train"
    assert following.images == config.images
    assert following.alignment.foundation == "runs/own/foundation"


def test_of_several_recipes_none_is_taken(recipes):
    (recipes / "another.yaml").write_text(TOKENIZER)
    recipe = str(recipes / "foundation.yaml")
    command = next_command("foundation train", load_config(recipe), recipe)
    assert command is not None
    assert "--config" not in command


def test_outputs_lie_beside_each_other_and_never_in_a_used_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = ImagesConfig(source="pictures", size=64)
    config = TrainFoundationConfig(output=Path("runs/new/foundation"), images=images)
    _, following = parsed(next_command("foundation train", config))
    assert following.output == Path("runs/new/tokenizer")
    Path("runs/new/tokenizer").mkdir(parents=True)
    Path("runs/new/tokenizer/notes.txt").write_text("mine")
    _, following = parsed(next_command("foundation train", config))
    assert following.output == Path("runs/new/tokenizer-2")


@pytest.mark.parametrize(
    ("images", "split"),
    [
        ({"source": "digits"}, "held_out"),
        ({"source": "x"}, "all"),
        ({"source": "x", "held_out_fraction": 0.2}, "held_out"),
    ],
)
def test_a_tokenizer_is_measured_on_centre_crops_of_images_that_it_has_not_seen(tmp_path, monkeypatch, images, split):
    monkeypatch.chdir(tmp_path)
    own = ImagesConfig(size=32, crop="random", horizontal_flip=True, label_column="kind", upscale=True, **images)
    config = TrainTokenizerConfig(images=own, reconstruction={"perceptual_weight": 0, "adversarial_weight": 0})
    _, following = parsed(next_command("tokenizer train", config))
    assert following.split == split
    assert (following.images.crop, following.images.horizontal_flip) == ("center", False)
    assert (following.images.label_column, following.images.upscale, following.images.size) == ("kind", True, 32)


def test_small_images_go_on_without_a_discriminator(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainFoundationConfig(images=ImagesConfig(source="x", size=16))
    _, following = parsed(next_command("foundation train", config))
    assert following.reconstruction.adversarial_weight == 0


def test_a_plan_goes_on_to_a_folder_that_it_can_start_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = StartConfig(source="images", plan_only=True)
    assert next_command("start", config) == "alight start images"
    plan = {"request": config.model_dump(mode="json", exclude={"output", "plan_only"})}
    Path("runs/images-10min").mkdir(parents=True)
    Path("runs/images-10min/start.json").write_text(json.dumps(plan))
    assert next_command("start", config) == "alight start images"  # goes on in it
    other = config.model_copy(update={"unconditional": True})
    other.model_fields_set.add("unconditional")
    assert next_command("start", other) == "alight start images --output runs/images-10min-2 --unconditional True"
    assert "--minutes 60 " in next_command("start", StartConfig(source="images", plan_only=True, minutes=60)) + " "


def test_nothing_is_proposed_where_the_records_are_gone(tmp_path):
    assert next_command("latents inspect", None) is None
    config = load_config("quickstart", {"output": str(tmp_path / "gone")})
    assert next_command("quickstart", config, "quickstart") is None
    config = TrainFoundationConfig(images=ImagesConfig(source="x", size=20))  # no multiple of the factor of 16
    assert next_command("foundation train", config) is None


def test_options_turn_the_defaults_into_the_configuration():
    wanted = TrainTokenizerConfig(
        init_from="a folder",
        images=ImagesConfig(horizontal_flip=True),
        optimizer={"betas": (0.5, 0.99), "max_grad_norm": None, "lr_factors": {"matrices": 2.0}},
        reconstruction={"perceptual_weight": 0},
    )
    text = command_text("tokenizer train", option_words(wanted, TrainTokenizerConfig()))
    assert "'a folder'" in text
    _, again = parsed(text)
    assert again == wanted
