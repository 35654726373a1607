"""Published files through the command line: in, used, and back out; and what is no such file refused in a sentence."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from alight import VAVAE, LightningDiTPipeline
from alight.artifacts import read_artifact
from alight.cli import main
from alight.data.latents import LatentDataset
from alight.interop.reference import (
    export_latents_statistics,
    export_tokenizer,
    export_transformer,
    published_state_dict,
    published_tokenizer_state_dict,
)
from alight.runtime.errors import InputError
from helpers.models import exportable_tokenizer, tiny_transformer
from helpers.pickles import Harmful
from helpers.written import WEIGHTS

CHANNELS, SIZE, CLASSES = 4, 4, 5
MEAN, STD = torch.linspace(-1, 1, CHANNELS), torch.linspace(0.5, 2, CHANNELS)


def make_transformer(num_classes=CLASSES):
    return tiny_transformer(sample_size=SIZE, in_channels=CHANNELS, num_layers=2, num_classes=num_classes)


def write_shards(folder, flips=True):
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for number, count in enumerate((6, 3)):
        latents = MEAN.view(-1, 1, 1) + STD.view(-1, 1, 1) * torch.randn(
            count, CHANNELS, SIZE, SIZE, generator=generator
        )
        shard = {"latents": latents, "labels": torch.arange(count) % CLASSES}
        shard |= {"latents_flip": latents.flip(-1).contiguous()} if flips else {}
        save_file(shard, folder / f"latents_rank00_shard{number:03d}.safetensors")
    export_latents_statistics(MEAN, STD, folder / "latents_stats.pt")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Published files of tiny models: `model.pt`, `vae.pt`, and `shards` with their statistics."""
    folder = tmp_path_factory.mktemp("published")
    export_transformer(make_transformer(), folder / "model.pt")
    vae = exportable_tokenizer()
    export_tokenizer(vae, folder / "vae.pt")
    write_shards(folder / "shards")
    return folder


@pytest.fixture
def convert(capsys):
    """Run `alight convert ...`; returns the exit code and what was printed."""

    def run(kind, source, output, *options):
        arguments = ["convert", "--quiet", "--kind", kind, "--source", source, "--output", output, *options]
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return left.value.code, captured.out + captured.err

    return run


@pytest.fixture
def converted(convert, files, tmp_path):
    """The artifacts made of the published files."""
    statistics = ("--statistics", files / "shards" / "latents_stats.pt")
    tokenizer = ("--tokenizer", tmp_path / "tokenizer")
    for kind, source, options in (
        ("tokenizer", files / "vae.pt", statistics),
        ("transformer", files / "model.pt", (*statistics, *tokenizer)),
        ("latents", files / "shards", tokenizer),
    ):
        code, text = convert(kind, source, tmp_path / kind, *options)
        assert (code, text) == (0, f"Converted: {tmp_path / kind}\n")
    return tmp_path


def test_in_a_process_of_its_own(alight, files, tmp_path):
    output = tmp_path / "tokenizer"
    result = alight("convert", "--kind", "tokenizer", "--source", files / "vae.pt", "--output", output)
    assert (result.returncode, result.stdout) == (0, f"Converted: {output}\n"), result.stderr
    assert read_artifact(output, "tokenizer").facts["converted_from"] == "vae.pt"


def test_a_tokenizer_of_diffusers(convert, tmp_path):
    """A stock tokenizer becomes an artifact, as the stages want it, with the scale that its folder records."""
    vae = exportable_tokenizer()
    vae.register_to_config(scaling_factor=0.25)
    vae.save_pretrained(tmp_path / "stock" / "vae")  # as in the folder of a whole pipeline
    for source in (tmp_path / "stock", tmp_path / "stock" / "vae"):
        output = tmp_path / f"from-{source.name}"
        assert convert("tokenizer", source, output) == (0, f"Converted: {output}\n")
        assert read_artifact(output, "tokenizer").facts["converted_from"] == str(source)
        converted = VAVAE.from_pretrained(output)
        assert converted.latents_statistics[1].tolist() == [4.0] * CHANNELS
        for name, value in vae.state_dict().items():
            assert torch.equal(converted.state_dict()[name], value)
    assert "needs no conversion" in convert("tokenizer", tmp_path / "from-vae", tmp_path / "again")[1]
    (tmp_path / "empty").mkdir()
    code, text = convert("tokenizer", tmp_path / "empty", tmp_path / "none")
    assert code == 2
    assert str(tmp_path / "empty") in text
    assert not (tmp_path / "none").exists()


def test_converted_files_generate(converted):
    """The pipeline of the artifacts does what the published weights do, step by step."""
    pipeline = LightningDiTPipeline.from_artifacts(converted / "transformer", converted / "tokenizer")
    noise = torch.randn(2, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    result = pipeline([1, 3], num_inference_steps=2, latents=noise, output_type="latent").images
    model, labels, expected = make_transformer(), torch.tensor([1, 3]), noise
    with torch.no_grad():
        for t in (0.0, 0.5):
            expected = expected + 0.5 * model(expected, torch.full((2,), t), labels)
    torch.testing.assert_close(result, expected)
    images = pipeline([1, 3], num_inference_steps=1, latents=noise, output_type="pt").images
    assert images.shape == (2, 3, 2 * SIZE, 2 * SIZE)
    assert pipeline.tokenizer.config.latents_std == STD.double().tolist()
    artifact = read_artifact(converted / "transformer", "transformer")
    assert artifact.facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert artifact.facts["class_names"] == ["0", "1", "2", "3", "4"]
    assert "steps" not in artifact.facts


def test_a_transformer_is_not_joined_with_another_tokenizer(converted, convert, files, tmp_path):
    other = exportable_tokenizer(1)
    export_tokenizer(other, tmp_path / "other.pt")
    assert convert("tokenizer", tmp_path / "other.pt", tmp_path / "other")[0] == 0
    with pytest.raises(InputError, match="another tokenizer"):
        LightningDiTPipeline.from_artifacts(converted / "transformer", tmp_path / "other")
    statistics = ("--statistics", files / "shards")
    assert convert("transformer", files / "model.pt", tmp_path / "free", *statistics)[0] == 0  # no tokenizer on record
    assert LightningDiTPipeline.from_artifacts(tmp_path / "free", tmp_path / "other")


def test_a_tokenizer_with_statistics_is_enough(converted, convert, files, tmp_path):
    code, _ = convert("transformer", files / "model.pt", tmp_path / "more", "--tokenizer", converted / "tokenizer")
    assert code == 0
    assert read_artifact(tmp_path / "more", "transformer").facts["latents_std"] == STD.tolist()


def test_a_model_of_1000_classes_knows_imagenet(convert, files, tmp_path):
    export_transformer(make_transformer(1000), tmp_path / "model.pt")
    convert("transformer", tmp_path / "model.pt", tmp_path / "artifact", "--statistics", files / "shards")
    names = read_artifact(tmp_path / "artifact", "transformer").facts["class_names"]
    assert len(names) == 1000
    assert names[207].startswith("golden retriever")


@pytest.mark.parametrize(
    ("kind", "entry", "original"),
    [("transformer", "ema", "model.pt"), ("tokenizer", "state_dict", "vae.pt")],
)
def test_there_and_back(converted, convert, files, tmp_path, kind, entry, original):
    path = tmp_path / "new" / "back.pt"
    code, text = convert(kind, converted / kind, path, "--to", "published")
    assert (code, text) == (0, f"Converted: {path}\n")
    assert [file.name for file in path.parent.iterdir()] == ["back.pt"]
    before = torch.load(files / original, weights_only=True)[entry]
    after = torch.load(path, weights_only=True)[entry]
    assert list(after) == list(before)
    assert all(after[name].numpy().tobytes() == value.numpy().tobytes() for name, value in before.items())


def test_latents_are_adopted_without_a_copy_and_trained_on(convert, files, tmp_path):
    source = tmp_path / "shards"
    write_shards(source)
    output = tmp_path / "latents"
    assert convert("latents", source, output)[0] == 0
    raw, adopted = LatentDataset(files / "shards"), LatentDataset(output)
    order, flips = np.array([8, 0, 5]), np.array([True, False, True])
    assert torch.equal(raw.gather(order, flips).latents, adopted.gather(order, flips).latents)
    for path in source.glob("*.safetensors"):
        assert path.samefile(output / path.name)
    options = {"steps": 2, "global-batch-size": 4}
    arguments = [part for name, value in options.items() for part in (f"--training.{name}", str(value))]
    sizes = {"preset": "None", "hidden-size": 16, "num-layers": 1, "num-heads": 2, "patch-size": 1}
    arguments += [part for name, value in sizes.items() for part in (f"--model.{name}", str(value))]
    with pytest.raises(SystemExit) as left:
        main(
            ["transformer", "train", "--quiet", "--latents", str(output), "--output", str(tmp_path / "t"), *arguments]
        )
    assert left.value.code == 0
    assert read_artifact(tmp_path / "t", "transformer").facts["class_names"] == ["0", "1", "2", "3", "4"]


def test_latents_there_and_back(converted, convert, files, tmp_path):
    assert convert("latents", converted / "latents", tmp_path / "back", "--to", "published")[0] == 0
    assert {path.name for path in (tmp_path / "back").iterdir()} == {
        path.name for path in (files / "shards").iterdir()
    }
    for path in (tmp_path / "back").iterdir():
        if path.suffix == ".safetensors":
            assert path.read_bytes() == (files / "shards" / path.name).read_bytes()
    statistics = torch.load(tmp_path / "back" / "latents_stats.pt", weights_only=True)
    assert torch.equal(statistics["std"].flatten(), STD)


def test_labels_that_do_not_reach_the_last_class(convert, files, tmp_path):
    assert convert("latents", files / "shards", tmp_path / "wide", "--num-classes", 7)[0] == 0
    assert LatentDataset(tmp_path / "wide").num_classes == 7
    code, text = convert("latents", files / "shards", tmp_path / "narrow", "--num-classes", 3)
    assert (code, "must be at least 5" in text) == (2, True)


def test_running_again_does_nothing_unless_the_file_has_changed(convert, files, tmp_path):
    path = tmp_path / "vae.pt"
    path.write_bytes((files / "vae.pt").read_bytes())
    assert convert("tokenizer", path, tmp_path / "tokenizer")[0] == 0
    created = (tmp_path / "tokenizer" / "alight.json").stat().st_mtime_ns
    assert convert("tokenizer", path, tmp_path / "tokenizer")[0] == 0
    assert (tmp_path / "tokenizer" / "alight.json").stat().st_mtime_ns == created
    state = torch.load(path, weights_only=True)
    state["state_dict"]["decoder.conv_out.bias"] += 1
    torch.save(state, path)
    code, text = convert("tokenizer", path, tmp_path / "tokenizer")
    assert (code, "another version of" in text) == (2, True)


def bad_files(folder, files):
    """Name of a file -> its kind and what the refusal must say."""
    whole = (files / "vae.pt").read_bytes()
    (folder / "text.pt").write_text("weights: none\n")
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])
    weights = torch.load(files / "vae.pt", weights_only=True)["state_dict"]
    save_file(weights, folder / "half.safetensors")
    (folder / "half.safetensors").write_bytes((folder / "half.safetensors").read_bytes()[:-1000])
    torch.save({"state_dict": {"weight": Harmful()}}, folder / "harmful.pt")
    torch.save({"state_dict": weights | {"decoder.conv_out.bias": torch.full((3,), torch.nan)}}, folder / "nan.pt")
    model = published_state_dict(make_transformer())
    torch.save({"ema": model}, folder / "transformer.pt")
    torch.save(model | {"final_layer.linear.bias": torch.full((CHANNELS,), torch.nan)}, folder / "nan_model.pt")
    return {
        "text.pt": ("tokenizer", "is not a complete torch file"),
        "half.pt": ("tokenizer", "is not a complete torch file"),
        "half.safetensors": ("tokenizer", "is not a complete safetensors file"),
        "harmful.pt": ("tokenizer", "would execute '"),
        "nan.pt": ("tokenizer", "1 not finite (decoder.conv_out.bias)"),
        "nan_model.pt": ("transformer", "1 not finite (output_layer.proj.bias)"),
        "transformer.pt": ("tokenizer", "It looks like a published LightningDiT"),
        "absent.pt": ("tokenizer", "There is no file"),
        ".": ("tokenizer", "is a folder"),
    }


def test_bad_sources_are_refused_in_one_paragraph(convert, files, tmp_path):
    (tmp_path / "in").mkdir()
    for name, (kind, expected) in bad_files(tmp_path / "in", files).items():
        statistics = ("--statistics", files / "shards")
        code, text = convert(kind, tmp_path / "in" / name, tmp_path / "out", *statistics)
        assert code == 2, name
        assert expected in text, name
        assert text.startswith("alight: ")
        assert text.count("\n") == 1, text
        assert not (tmp_path / "out").exists(), name


def test_what_does_not_belong_together_is_refused(convert, files, tmp_path):
    other = tmp_path / "other_stats.pt"
    export_latents_statistics(torch.zeros(3), torch.ones(3), other)
    (tmp_path / "empty").mkdir()
    (tmp_path / "strange").mkdir()
    save_file({"weight": torch.zeros(1)}, tmp_path / "strange" / "model.safetensors")
    write_shards(tmp_path / "plain", flips=False)
    write_shards(tmp_path / "mixed")
    export_latents_statistics(torch.zeros(3), torch.ones(3), tmp_path / "mixed" / "latents_stats.pt")
    model, shards, out = files / "model.pt", files / "shards", tmp_path / "out"
    published = ("--to", "published")
    assert convert("latents", tmp_path / "plain", tmp_path / "unflipped")[0] == 0
    for arguments, expected in (
        (("transformer", model, out), "--statistics"),
        (("transformer", model, out, "--statistics", other), "3 channels, but the latents have 4"),
        (("tokenizer", files / "vae.pt", out, "--statistics", other), "3 channels, but the latents have 4"),
        (("latents", shards, out, "--statistics", other), "3 channels, but the latents have 4"),
        (("transformer", files / "vae.pt", out, "--statistics", shards), "It looks like a published VA-VAE"),
        (
            ("transformer", model, out, "--statistics", shards, "--tokenizer", tmp_path / "no"),
            "There is no tokenizer folder",
        ),
        (("latents", tmp_path / "mixed", out), "has 3 channels, but the latents beside it have 4"),
        (("tokenizer", files / "vae.pt", out, "--weights", "ema"), "weights has no meaning for a tokenizer"),
        (("transformer", model, out, "--num-heads", 2, *published), "num_heads has no meaning"),
        (("latents", tmp_path / "empty", out), "holds no latents"),
        (("latents", tmp_path / "strange", out), "is not a shard of latents"),
        (("tokenizer", model, out, *published), "There is no tokenizer folder"),
        (("latents", tmp_path / "unflipped", out, *published), "--flips"),
    ):
        code, text = convert(*arguments)
        assert (code, text.count("\n")) == (2, 1), text
        assert expected in text, text
        assert not out.exists()
    with pytest.raises(SystemExit) as left:
        main(["convert", "--quiet"])
    assert left.value.code == 2


def test_the_folder_opens_in_diffusers_and_says_where_it_came_from(converted, files):
    folder = converted / "tokenizer"
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "AutoencoderKL"
    weights = load_file(folder / WEIGHTS)
    published = torch.load(files / "vae.pt", weights_only=True)["state_dict"]
    assert torch.equal(weights["decoder.conv_in.weight"], published["decoder.conv_in.weight"])
    vae = VAVAE.from_pretrained(folder)
    assert all(torch.equal(value, published[name]) for name, value in published_tokenizer_state_dict(vae).items())
    assert len(read_artifact(folder, "tokenizer").facts["converted_from_sha256"]) == 64
