"""Configuration: strict keys, helpful complaints, numbers that are numbers."""

import random

import pytest

from alight.config import JOBS, OptimizerConfig, Section, TrainingConfig, TrainTokenizerConfig
from alight.recipes import find_recipe, load_config, recipes_folder, validate
from alight.runtime.errors import InputError


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "'1e-4'"])
def test_scientific_notation_is_a_number(tmp_path, text):
    recipe = write(tmp_path, f"job: tokenizer train\noptimizer: {{lr: {text}}}\n")
    assert load_config(recipe).optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("job: tokenizer train\noptimzer: {lr: 1}", "unknown key 'optimzer'. Did you mean 'optimizer'?"),
        ("job: tokenizer train\noptimizer: {leer: 1}", "Did you mean 'optimizer.lr'?"),
        ("job: tokenizer train\noptimizer: {lr: six}", "'optimizer.lr' is 'six'"),
        ("job: tokenizer train\nimages: {size: 33}", "images.size 33 is not a multiple of 16"),
        ("job: tokenizer trian\n", "Did you mean 'tokenizer train'?"),
        ("optimizer: {lr: 1}\n", "must say which command"),
        ("job: sample\nsampling: {guidance_interval: [0.8, 0.2]}", "guidance_interval"),
        ("job: tokenizer train\nseed: 1\nseed: 2\n", "'seed' stands twice"),
        ("job: [\n", "not valid YAML"),
        ("- 1\n", "holds no keys"),
    ],
)
def test_mistakes_name_key_and_mend(tmp_path, text, expected):
    with pytest.raises(InputError, match="(?s).*") as caught:
        load_config(write(tmp_path, text))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_win_over_the_recipe(tmp_path):
    recipe = write(tmp_path, "job: transformer train\noptimizer: {lr: 1e-3}\n")
    config = load_config(recipe, {"optimizer.lr": 5e-4, "flow.cosine_weight": 0})
    assert (config.optimizer.lr, config.flow.cosine_weight) == (5e-4, 0)


def test_preset_and_sizes_contradict():
    with pytest.raises(InputError, match="already sets hidden_size"):
        validate(JOBS["transformer train"], {"model": {"preset": "LightningDiT-B/1", "hidden_size": 64}}, "x")


def test_accumulation_follows_from_the_batch_sizes():
    training = TrainingConfig(global_batch_size=64, micro_batch_size=16)
    assert (training.pieces(), training.pieces(2), training.pieces(4)) == (4, 2, 1)
    assert TrainingConfig(global_batch_size=64).pieces(4) == 1
    for processes in (3, 8):
        with pytest.raises(InputError, match="divided evenly"):
            training.pieces(processes)
    with pytest.raises(ValueError, match="not a multiple"):
        TrainingConfig(global_batch_size=10, micro_batch_size=4)


def test_perceptual_term_needs_its_files():
    with pytest.raises(InputError, match="vgg16_weights"):
        validate(TrainTokenizerConfig, {"reconstruction": {"perceptual_weight": 1}}, "x")


def test_configurations_are_immutable():
    with pytest.raises(ValueError, match="frozen"):
        OptimizerConfig().lr = 1.0  # type: ignore[misc]


def test_resolved_configuration_round_trips():
    for kind in JOBS.values():
        config = kind()
        assert kind.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("path", sorted(recipes_folder().rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_says_what_it_promises(path):
    load_config(path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for promise in ("command", "hardware", "time", "expect"):
        assert any(line[1:].split()[:1] == [promise] for line in header), f"{path.name}: no '{promise}' in its header"


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'quickstart'"):
        find_recipe("quickstrat")


@pytest.mark.parametrize("path", sorted(recipes_folder().rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_damaged_recipe_is_explained_or_still_a_recipe(path, tmp_path):
    """Cut off, or with a few bits flipped: never anything but a configuration or a sentence."""
    rng, data, damaged = random.Random(path.stem), path.read_bytes(), tmp_path / "recipe.yaml"
    complaints = []
    for _ in range(40):
        content = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
        for _ in range(rng.randrange(1, 4)):
            if content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        damaged.write_bytes(content)
        try:
            assert isinstance(load_config(damaged), Section)
        except InputError as error:
            complaints.append(str(error))
    assert complaints
    assert all(str(damaged) in complaint for complaint in complaints)
