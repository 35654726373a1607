"""Configuration: strict keys, helpful complaints, numbers that are numbers."""

import json
import random
import time
from pathlib import Path

import pytest

from alight.artifacts import differences
from alight.config import LATER_KEYS, OptimizerConfig, Section, ServeConfig, TrainingConfig, TrainTokenizerConfig
from alight.config.commands import COMMANDS
from alight.config.recipes import changes, find_recipe, load_config, recipes_folder, shipped_recipes, validate
from alight.runtime.errors import InputError

FRAGMENTS = [  # of YAML, that make trouble
    *(b"!!int abc", b"!!timestamp 2024-99-99", b"!!python/name:os.system", b"!!binary ===", b"!!float ''"),
    *(b"[" * 400, b"{a: " * 400, b"&a [*a]", b"*nobody", b"<<: 3", b"<<: [*a, *b]", b"? [1]\n: 2\n", b"{a: 1}: 2"),
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\t", b'"\\ud800"', b'"\\0"', b"\x1b[31m", b"---\n", b"...\n", b"%YAML 9\n"),
    *(b"9" * 5000, b"0x" + b"f" * 5000, b"2024-13-45", b".nan", b"1e999", b"~", b"null", b"'", b'"', b"|", b"\r"),
]


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
        ("guide: x\nsampling: {guidance_scale: 2}\n", "is missing or empty. Its keys suggest 'job: sample'."),
        ("job: [sample]\n", "found ['sample']"),
        ("job: {sample: 1}\n", "found a section with keys"),
        ("job: 2024-13-45\n", "found '2024-13-45'"),
        ("job: tokenizer train\noptimizer: 3\n", "'optimizer' is 3; it must be a section"),
        ("job: tokenizer train\nstages: [{steps: 1, restrat: true}]\n", "Did you mean 'stages.0.restart'?"),
        ("job: tokenizer train\ntraining: {micro_batch_size: 3}\n", "training: global_batch_size 256"),
        ("job: tokenizer train\ntraining: {ema_decay: None}\n", "nothing is written null"),
        ("job: tokenizer train\ntraining: {ema_decay: false}\n", "training.ema_decay: false is neither"),
        ("job: sample\nsampling: {num_inference_steps: 2.5}", "'sampling.num_inference_steps' is 2.5"),
        ("job: sample\nsampling: {guidance_scale: 1e30}", "'sampling.guidance_scale' is 1e+30"),
        ("job: sample\nsampling: {guidance_scale: .inf}", "'sampling.guidance_scale' is inf"),
        ("job: sample\nsampling: {guidance_scale: .nan}", "'sampling.guidance_scale' is nan"),
        ("job: tune\nguidance_scales: [1, 1e30]", "'guidance_scales.1' is 1e+30"),
        ("job: tokenizer train\nmodel: {block_out_channels: []}", "'model.block_out_channels' is []"),
        ("job: tokenizer train\noptimizer: {betas: [0.9, 1]}", "'optimizer.betas.1' is 1"),
        ("job: report\nfolders: []", "'folders' is []"),
        ("job: sample\nseed: 99999999999999999999\n", "'seed' is 99999999999999999999"),
        ("job: sample\nseed: 0xffffffffffffffffffff\n", "'seed' is"),
        ("job: sample\noutput: ''\n", "output: the text is empty"),
        ("job: sample\nsampling: {guidance_interval: [0.8, 0.2]}", "guidance_interval"),
        ("job: tokenizer train\nseed: 1\nseed: 2\n", "'seed' is repeated"),
        ("job: [\n", "not valid YAML"),
        ("- 1\n", "holds no keys"),
    ],
)
def test_mistakes_name_key_and_mend(tmp_path, text, expected):
    with pytest.raises(InputError, match="(?s).*") as caught:
        load_config(write(tmp_path, text))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_merge_keys_and_anchors_fill_sections(tmp_path):
    text = """
    job: quickstart
    foundation: {training: &t {steps: 2, global_batch_size: 8}}
    transformer: {training: {<<: *t, ema_decay: 0.9}}
    samples: {classes: [01, no, 3]}
    """
    config = load_config(write(tmp_path, text))
    training = config.transformer.training
    assert (training.steps, training.global_batch_size, training.ema_decay) == (2, 8, 0.9)
    assert config.foundation.training.ema_decay is None  # as the foundation's own default
    assert config.samples.classes == ("01", "no", "3")


def test_thousands_of_unknown_keys_are_told_in_seconds_and_in_brief(tmp_path):
    recipe = write(tmp_path, "job: sample\n" + "".join(f"key{number}: 1\n" for number in range(20_000)))
    started = time.process_time()
    with pytest.raises(InputError, match="And 19,992 more") as caught:
        load_config(recipe)
    assert time.process_time() - started < 20
    assert len(str(caught.value)) < 2_000
    with pytest.raises(InputError, match="more than 50,000 keys"):
        load_config(write(tmp_path, "".join(f"key{number}: 1\n" for number in range(70_000))))


def test_a_long_unknown_key_is_shortened(tmp_path):
    with pytest.raises(InputError, match="unknown key 'xxx") as caught:
        load_config(write(tmp_path, f"job: sample\n? {'x' * 50_000}\n: 1\n"))
    assert len(str(caught.value)) < 1_000


def test_a_value_cannot_be_overridden_as_a_section(tmp_path):
    recipe = write(tmp_path, "job: sample\nsampling: 3\n")
    with pytest.raises(InputError, match="'sampling' is a value, not a section"):
        load_config(recipe, {"sampling.solver": "heun"})


def test_an_override_of_one_section_leaves_others_of_the_same_anchor(tmp_path):
    text = "job: quickstart\nfoundation: {training: &t {steps: 2}}\ntransformer: {training: *t}\n"
    config = load_config(write(tmp_path, text), {"transformer.training.steps": 5})
    assert (config.foundation.training.steps, config.transformer.training.steps) == (2, 5)


# --- paths --------------------------------------------------------------------------------------------------------


def test_the_home_folder_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "job: tokenizer evaluate\noutput: ~/a\ncompare: [~/b, c~/~]\nfoundation: ~/d\nimages: {source: ~/e}\n"
    config = load_config(write(tmp_path, text))
    assert config.output == tmp_path / "a"
    assert config.compare == (tmp_path / "b", Path("c~/~"))
    assert (config.foundation, config.images.source) == (f"{tmp_path}/d", f"{tmp_path}/e")
    assert validate(COMMANDS["sample"].config, {"output": "~"}, "x").output == tmp_path
    assert load_config("~/recipe.yaml") == config


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a\0b", "NUL"),
        ("a\ud800", "not valid UTF-8"),
        ("", "empty"),
        ("x" * 300, "300 bytes"),
        ("é" * 150, "300 bytes"),
        ("ab/" * 2_000, "a path has"),
        ("~nobody-of-this-name/x", "home folder that does not exist"),
    ],
    ids=["nul", "surrogate", "empty", "long name", "long name in bytes", "long path", "unknown home"],
)
def test_a_path_that_no_file_can_have_is_refused(path, message):
    for name, kind in ((name, command.config) for name, command in COMMANDS.items()):
        if "output" in kind.model_fields:
            with pytest.raises(InputError, match=rf"output: .*{message}") as caught:
                validate(kind, {"output": path}, name)
            assert len(str(caught.value)) < 300
    with pytest.raises(InputError, match=message):
        validate(COMMANDS["report"].config, {"folders": [path]}, "report")


@pytest.mark.parametrize("source", ["9" * 300, "ab/" * 2_000])
def test_a_source_that_no_file_can_have_is_refused(source):
    with pytest.raises(InputError, match=r"images\.source: .* at most"):
        validate(COMMANDS["tune"].config, {"images": {"source": source}}, "x")


def test_texts_that_cannot_be_stored_are_refused():
    for text in ("a\0b", "\ud800"):
        with pytest.raises(InputError, match=r"classes: the text"):
            validate(COMMANDS["sample"].config, {"classes": ["7", text]}, "x")
        with pytest.raises(InputError, match=r"images\.source: the text"):
            validate(COMMANDS["tune"].config, {"images": {"source": text}}, "x")
        with pytest.raises(InputError, match=r"class_counts: the text"):
            validate(COMMANDS["sample"].config, {"class_counts": {text: 1}}, "x")


def test_overrides_win_over_the_recipe(tmp_path):
    recipe = write(tmp_path, "job: transformer train\noptimizer: {lr: 1e-3}\n")
    config = load_config(recipe, {"optimizer.lr": 5e-4, "flow.cosine_weight": 0})
    assert (config.optimizer.lr, config.flow.cosine_weight) == (5e-4, 0)


def test_preset_and_sizes_contradict():
    with pytest.raises(InputError, match="already sets hidden_size"):
        validate(
            COMMANDS["transformer train"].config, {"model": {"preset": "LightningDiT-B/1", "hidden_size": 64}}, "x"
        )


def test_accumulation_follows_from_the_batch_sizes():
    training = TrainingConfig(global_batch_size=64, micro_batch_size=16)
    assert (training.micro_batches(), training.micro_batches(2), training.micro_batches(4)) == (4, 2, 1)
    assert TrainingConfig(global_batch_size=64).micro_batches(4) == 1
    for processes in (3, 8):
        with pytest.raises(InputError, match="divided evenly"):
            training.micro_batches(processes)
    with pytest.raises(ValueError, match="not a multiple"):
        TrainingConfig(global_batch_size=10, micro_batch_size=4)


def test_perceptual_term_needs_its_files():
    with pytest.raises(InputError, match="vgg16_weights"):
        validate(TrainTokenizerConfig, {"reconstruction": {"perceptual_weight": 1}}, "x")


def test_configurations_are_immutable():
    with pytest.raises(ValueError, match="frozen"):
        OptimizerConfig().lr = 1.0  # type: ignore[misc]


def test_resolved_configuration_round_trips():
    for kind in (command.config for command in COMMANDS.values()):
        resolved = kind().model_dump(mode="json")
        assert kind.model_validate(resolved).model_dump(mode="json") == resolved


@pytest.mark.parametrize("path", sorted(recipes_folder().rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_says_what_it_promises(path):
    load_config(path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for promise in ("command", "hardware", "time", "expect"):
        assert any(line[1:].split()[:1] == [promise] for line in header), f"{path.name}: no '{promise}' in its header"


@pytest.mark.parametrize("name", shipped_recipes())
def test_changes_of_the_defaults_are_the_whole_recipe(name, tmp_path):
    recipe = load_config(name)
    values = changes(recipe, type(recipe)())
    again = validate(type(recipe), json.loads(json.dumps(values)), name)
    assert again.model_dump(mode="json") == recipe.model_dump(mode="json")


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'quickstart'"):
        find_recipe("quickstrat")


@pytest.mark.parametrize("path", sorted(recipes_folder().rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_damaged_recipe_is_explained_or_still_a_recipe(path, tmp_path):
    """Cut off, with bits flipped, or with words of YAML inserted: never anything but a configuration or a sentence."""
    rng, data, damaged = random.Random(path.stem), path.read_bytes(), tmp_path / "recipe.yaml"
    complaints = []
    for _ in range(80):
        content = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
        for _ in range(rng.randrange(1, 4)):
            if content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        for _ in range(rng.randrange(3)):
            place = rng.randrange(len(content) + 1)
            content[place : place + rng.choice((0, 0, 1, 9))] = rng.choice(FRAGMENTS)
        damaged.write_bytes(content)
        try:
            assert isinstance(load_config(damaged), Section)
        except InputError as error:
            complaints.append(str(error))
    assert complaints
    assert all(str(damaged) in complaint for complaint in complaints)


def test_a_discriminator_on_small_images_is_refused_before_any_work():
    with pytest.raises(InputError, match="at least 32 pixels"):
        validate(TrainTokenizerConfig, {"images": {"source": "digits", "size": 16}}, "test")


def test_a_complaint_never_repeats_a_password():
    with pytest.raises(InputError) as caught:
        validate(ServeConfig, {"password": ["correct horse"], "port": "x"}, "test")
    assert "correct horse" not in str(caught.value)
    assert "correct horse" not in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("section", "values", "complaint"),
    [
        ("alignment", {"gram_weight": -1}, "greater than or equal to 0"),
        ("alignment", {"pooled_weight": -0.1}, "greater than or equal to 0"),
        ("alignment", {"patch_weight": -0.1}, "greater than or equal to 0"),
        ("alignment", {"latent_noise": -0.1}, "greater than or equal to 0"),
        ("alignment", {"layers": []}, "at least 1 item"),
        ("alignment", {"layers": [0]}, "greater than or equal to 1"),
        ("alignment", {"layers": [2, 2]}, "names a layer twice"),
        ("alignment", {"projector": "blok"}, "'linear' or 'block'"),
        ("alignment", {"projector": "block", "projection": "to_latent"}, "set projection to to_features"),
        ("alignment", {"projector": "block", "projection": "components"}, "set projection to to_features"),
        ("alignment", {"projector_width": 40}, "not a multiple of 32"),
        ("regularisation", {"continuity_weight": -1}, "greater than or equal to 0"),
        ("regularisation", {"continuity_angles": []}, "at least 1 item"),
        ("regularisation", {"continuity_angles": [180]}, "less than 180"),
        ("regularisation", {"continuity_angles": [0, 10]}, "greater than 0"),
        ("regularisation", {"continuity_angles": [85, 42.5]}, "do not increase"),
        ("model", {"latent_space": "sphere", "latent_channels": 1}, "two channels or more"),
    ],
)
def test_settings_of_newer_latents_are_checked(section, values, complaint):
    with pytest.raises(InputError, match=complaint):
        validate(TrainTokenizerConfig, {section: values}, "test")


def test_continuity_needs_two_channels_and_a_decoder_alone_keeps_its_latents():
    given = {"model": {"latent_channels": 1}, "regularisation": {"continuity_weight": 1}}
    with pytest.raises(InputError, match="two channels or more"):
        validate(TrainTokenizerConfig, given, "test")
    alone = {"init_from": "t", "train": "decoder", "alignment": {"foundation": None}}
    demands = {"noise": 0.5, "continuity_weight": 1}  # of the decoder
    assert validate(TrainTokenizerConfig, alone | {"regularisation": demands}, "test").regularisation.noise == 0.5
    with pytest.raises(InputError, match="nothing can align them or make them equivariant"):
        validate(TrainTokenizerConfig, alone | {"regularisation": {"equivariance_probability": 1}}, "test")


def test_configurations_of_earlier_versions_lack_only_keys_that_are_off():
    later = TrainTokenizerConfig().model_dump(mode="json")
    earlier = json.loads(json.dumps(later))
    for section in ("model", "regularisation", "alignment"):
        for key, value in LATER_KEYS.items():
            name = key.removeprefix(f"{section}.")
            if name != key and name in later[section]:
                assert earlier[section].pop(name) == value
    assert "latent_space" not in earlier["model"]
    assert "gram_weight" not in earlier["alignment"]
    assert differences(earlier, later) == differences(later, earlier) == []
    for key, value in {"model.latent_space": "sphere", "alignment.gram_weight": 1.0, "alignment.layers": [1]}.items():
        section, name = key.split(".")
        changed = later | {section: later[section] | {name: value}}
        assert len(differences(earlier, changed)) == 1
