"""Models and pipelines from folders: what a caller asks for is heeded or refused, and damaged files are a sentence."""

import json
import logging
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from alight import VAVAE, LightningDiT, LightningDiTPipeline
from alight.models.weight_files import find_weights, weights_hash
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from helpers.models import normalised, tiny_tokenizer, tiny_transformer

INDEX = "diffusion_pytorch_model.safetensors.index.json"


def tokenizer():
    return normalised(tiny_tokenizer(1))


def transformer():
    return tiny_transformer(sample_size=2, num_layers=2)


MODELS = {"tokenizer": (VAVAE, tokenizer), "transformer": (LightningDiT, transformer)}


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    """The class, a model, and a folder to save it in."""
    cls, build = MODELS[request.param]
    return cls, build(), tmp_path / request.param


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pipeline"
    LightningDiTPipeline(
        tokenizer(), transformer(), FlowMatchEulerDiscreteScheduler(shift=2.0), class_names=[*"abcdefghij"]
    ).save_pretrained(path)
    return path


def same(one, other):
    values = other.state_dict()
    return all(torch.equal(value, values[name]) for name, value in one.state_dict().items())


# --- keywords -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", [torch.bfloat16, torch.float64, "bfloat16", "torch.float64"])
def test_a_type_that_is_asked_for_is_given(name, value, model):
    cls, original, path = model
    original.save_pretrained(path)
    opened = cls.from_pretrained(path, **{name: value})
    wanted = getattr(torch, value.removeprefix("torch.")) if isinstance(value, str) else value
    assert {parameter.dtype for parameter in opened.parameters()} == {wanted}


def test_the_type_of_the_stored_weights_can_be_kept(model):
    cls, original, path = model
    original.to(torch.float16).save_pretrained(path)
    assert cls.from_pretrained(path).dtype == torch.float32
    assert cls.from_pretrained(path, dtype="auto").dtype == torch.float16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtpye": torch.bfloat16}, "no keyword 'dtpye'. Did you mean 'dtype'"),
        ({"varient": "fp16"}, "Did you mean 'variant'"),
        ({"sample_size": 4}, "no keyword 'sample_size'"),
        ({"dtype": torch.int8}, "floating-point type"),
        ({"dtype": "bf17"}, "floating-point type"),
        ({"dtype": 16}, "floating-point type"),
        ({"dtype": torch.bfloat16, "torch_dtype": torch.float16}, "two types"),
        ({"device_map": "cuda"}, r"does not support 'device_map'.*\.to\(device\)"),
        ({"use_safetensors": False}, "a pickle can execute code"),
        ({"variant": "../fp16"}, "must be a name"),
        ({"variant": "fp16"}, "no diffusion_pytorch_model.safetensors of the variant 'fp16'"),
    ],
)
def test_keywords_that_nothing_would_heed_are_refused(options, message, model):
    cls, original, path = model
    original.save_pretrained(path)
    with pytest.raises(InputError, match=message):
        cls.from_pretrained(path, **options)


def test_what_the_loading_found_is_told_on_request(model):
    cls, original, path = model
    original.save_pretrained(path)
    opened, found = cls.from_pretrained(path, output_loading_info=True, local_files_only=True, cache_dir=None)
    assert same(original, opened)
    assert not any(found.values())


@pytest.mark.parametrize("origin", [None, 3, "", "a\0b"])
def test_what_is_no_folder_is_a_sentence(origin):
    with pytest.raises(InputError, match="folder"):
        VAVAE.from_pretrained(origin)


# --- how weights are stored ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["10GB", "10KB"])
def test_shards_and_variants_that_diffusers_wrote_are_read_back(size, variant, model):
    cls, original, path = model
    original.save_pretrained(path, max_shard_size=size, variant=variant)
    assert len(find_weights(path)) == (1 if size == "10GB" else len(list(path.glob("*-of-*.safetensors"))))
    assert same(original, cls.from_pretrained(path, variant=variant))
    assert same(original, cls.from_pretrained(path))  # the only ones there are
    assert weights_hash(path) == file_hash(*sorted(path.glob("*.safetensors")))


def test_of_several_variants_one_must_be_named(model):
    cls, original, path = model
    for variant in ("fp16", "ema"):
        original.save_pretrained(path, variant=variant)
    with pytest.raises(InputError, match="variants ema, fp16"):
        cls.from_pretrained(path)
    assert same(original, cls.from_pretrained(path, variant="ema"))


def test_weights_that_were_saved_in_two_ways(model):
    cls, original, path = model
    original.save_pretrained(path, max_shard_size="10KB")
    original.save_pretrained(path)  # removes the shards, and leaves their index
    assert same(original, cls.from_pretrained(path))
    original.save_pretrained(path, max_shard_size="10KB")
    with pytest.raises(InputError, match="holds both"):
        cls.from_pretrained(path)


def damaged_shards(path, kind):
    index = json.loads((path / INDEX).read_text())
    name = next(iter(index["weight_map"]))
    shard = path / index["weight_map"][name]
    match kind:
        case "missing":
            shard.unlink()
        case "outside":
            shutil.copy(shard, path.parent / "outside.safetensors")
            index["weight_map"][name] = "../outside.safetensors"
        case "wrong type":
            index["weight_map"] = list(index["weight_map"])
        case "null":
            index = None
        case "number":
            index["weight_map"][name] = 3
        case "cut":
            shard.write_bytes(shard.read_bytes()[:-4])
        case "twice":
            save_file(load_file(shard), path / "more.safetensors")
            index["weight_map"]["more"] = "more.safetensors"
    (path / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("kind", ["missing", "outside", "wrong type", "null", "number", "cut", "twice"])
def test_damaged_shards_are_a_sentence(kind, model):
    cls, original, path = model
    original.save_pretrained(path, max_shard_size="10KB")
    damaged_shards(path, kind)
    with pytest.raises(InputError):
        cls.from_pretrained(path)


def test_pickled_weights_stay_refused(model):
    cls, original, path = model
    original.save_pretrained(path, safe_serialization=False)
    with pytest.raises(InputError, match="is a pickle, which can execute code"):
        cls.from_pretrained(path)


# --- configurations -----------------------------------------------------------------------------------------------

WRONG_MODELS = {
    ("tokenizer", "latents_mean"): ["0", [0.0], [0.0, 0.0, 0.0, "1"], 3, [1e999] * 4, [None] * 4],
    ("tokenizer", "latents_std"): [[0.0] * 4, [-1.0] * 4, {"a": 1}, True],
    ("tokenizer", "scaling_factor"): ["1", 0, -1.0],
    ("tokenizer", "block_out_channels"): ["16", [], [2**40, 16], [16.5, 16]],
    ("tokenizer", "layers_per_block"): [10**9, "1", None],
    ("tokenizer", "latent_channels"): [2**40, "4", 0],
    ("transformer", "sample_size"): [10**6, "2", [2, 2, 2], [2], 2.5, -2],
    ("transformer", "hidden_size"): [2**40, "16", None],
    ("transformer", "num_layers"): [10**9, 2.0, [2]],
    ("transformer", "num_classes"): [2**60, {}],
    ("transformer", "class_dropout_prob"): ["0.1", [0.1]],
    ("transformer", "norm"): [["rms_norm"], 3],
}


@pytest.mark.parametrize(("kind", "field"), WRONG_MODELS)
def test_a_configuration_of_the_wrong_shape_is_a_sentence(kind, field, tmp_path):
    cls, build = MODELS[kind]
    build().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for value in WRONG_MODELS[kind, field]:
        (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
        with pytest.raises(InputError):
            cls.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "null", "[]", "3", '{"a": NaN}', "[" * 100_000, '"\\ud800"', "{", "\xff"])
@pytest.mark.parametrize("name", ["config.json", "model_index.json", "scheduler/scheduler_config.json"])
def test_files_that_are_no_json_objects_are_a_sentence(name, text, folder):
    path = folder / "transformer" / name if name == "config.json" else folder / name
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=path.name):
        LightningDiTPipeline.from_pretrained(folder)


# --- pipelines ----------------------------------------------------------------------------------------------------


def changed(folder, name, **fields):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"tokenizer": ["diffusers", "AutoencoderKL"]},
            r"takes alight\.VAVAE or alight\.RepresentationAutoencoder alone",
        ),
        ({"transformer": ["diffusers", "UNet2DModel"]}, r"takes alight\.LightningDiT alone"),
        ({"scheduler": ["diffusers", "DDIMScheduler"]}, "FlowMatchEulerDiscreteScheduler alone"),
        ({"transformer": ["os", "system"]}, r"takes alight\.LightningDiT alone"),
        ({"transformer": [None, None]}, r"takes alight\.LightningDiT alone"),
        ({"transformer": "LightningDiT"}, "transformer"),
        ({"transformer": None}, "transformer"),
        ({"_class_name": "StableDiffusionPipeline"}, "describes a 'StableDiffusionPipeline'"),
        ({"_class_name": {}}, "not a LightningDiTPipeline"),
        ({"class_names": "abc"}, "class_names"),
        ({"class_names": [1, 2]}, "class_names"),
        ({"path": "curved"}, "'curved'"),
        ({"path": ["linear"]}, "path"),
        ({"prediction": "energy"}, "'energy'"),
        ({"recommended_sampling": [1]}, "recommended_sampling"),
        ({"recommended_sampling": {"steps": 3}}, "recommends the settings steps"),
        ({"selection": {"tried": 0}}, "selection"),
    ],
)
def test_an_index_of_another_pipeline_is_a_sentence(fields, message, folder):
    changed(folder, "model_index.json", **fields)
    with pytest.raises(InputError, match=message):
        LightningDiTPipeline.from_pretrained(folder)


@pytest.mark.parametrize("shift", ["2", 0, -1.0, None, [1], 1e999])
def test_a_scheduler_of_the_wrong_shape_is_a_sentence(shift, folder):
    changed(folder, "scheduler/scheduler_config.json", shift=shift)
    with pytest.raises(InputError, match="scheduler_config"):
        LightningDiTPipeline.from_pretrained(folder)


def test_a_scheduler_builds_no_endless_table(folder):
    changed(folder, "scheduler/scheduler_config.json", num_train_timesteps=10**12)
    with pytest.raises(InputError, match="num_train_timesteps"):
        LightningDiTPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_pipeline_is_given_in_the_type_that_is_asked_for(name, folder):
    pipeline = LightningDiTPipeline.from_pretrained(folder, **{name: torch.bfloat16})
    assert pipeline.transformer.dtype == pipeline.tokenizer.dtype == torch.bfloat16
    assert LightningDiTPipeline.from_pretrained(folder, dtype="float64").transformer.dtype == torch.float64
    some = LightningDiTPipeline.from_pretrained(folder, torch_dtype={"transformer": torch.bfloat16})
    assert (some.transformer.dtype, some.tokenizer.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtpye": torch.bfloat16}, "Did you mean 'dtype'"),
        ({"tokeniser": None}, "Did you mean 'tokenizer'"),
        ({"dtype": "bf17"}, "floating-point type"),
    ],
)
def test_keywords_of_a_pipeline_are_not_passed_over(options, message, folder):
    with pytest.raises(InputError, match=message):
        LightningDiTPipeline.from_pretrained(folder, **options)


@pytest.mark.parametrize("options", [{"max_shard_size": "10KB"}, {"variant": "fp16"}])
def test_a_pipeline_with_shards_or_a_variant_is_read_back(options, folder, tmp_path):
    original = LightningDiTPipeline.from_pretrained(folder)
    original.save_pretrained(tmp_path / "other", **options)
    again = LightningDiTPipeline.from_pretrained(tmp_path / "other", variant=options.get("variant"))
    assert same(original.transformer, again.transformer)
    assert same(original.tokenizer, again.tokenizer)


def test_components_of_the_callers_replace_those_of_the_folder(folder):
    (folder / "transformer" / "config.json").unlink()
    model = transformer()
    assert LightningDiTPipeline.from_pretrained(folder, transformer=model).transformer is model


def test_opening_a_pipeline_says_nothing(folder, caplog, capfd):
    logging.getLogger("diffusers").propagate = True
    LightningDiTPipeline.from_pretrained(folder)
    assert "type annotation" not in caplog.text + capfd.readouterr().err


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="There is no folder"):
        LightningDiTPipeline.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"model_index\.json"):
        LightningDiTPipeline.from_pretrained(tmp_path / "empty")


def test_the_tokenizer_still_opens_in_diffusers(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    assert same(tokenizer(), AutoencoderKL.from_pretrained(tmp_path))
