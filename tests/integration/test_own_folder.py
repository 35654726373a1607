"""A user's own folder of images goes the same way, and mistakes on that way are explained."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from helpers import warm
from helpers.written import WEIGHTS

SMALL = {
    "foundation": ["--images.size", 32, "--training.steps", 3, "--training.global-batch-size", 8],
    "tokenizer": ["--images.size", 32, "--training.steps", 3, "--training.global-batch-size", 4],
    "transformer": ["--training.steps", 4, "--training.global-batch-size", 8],
}


@pytest.fixture(scope="module")
def trained(alight, image_folder, tmp_path_factory):
    """Foundation, tokenizer, latents, transformer and samples of the folder."""
    root = tmp_path_factory.mktemp("own")
    images = ["--images.source", image_folder]
    steps = [
        ["foundation", "train", "--config", "own_images/foundation", *SMALL["foundation"], *images],
        ["tokenizer", "train", "--config", "own_images/tokenizer", *SMALL["tokenizer"], *images]
        + ["--alignment.foundation", root / "foundation"],
        ["latents", "extract", "--config", "own_images/latents", "--images.size", 32, *images]
        + ["--tokenizer", root / "tokenizer"],
        ["transformer", "train", "--config", "own_images/transformer", *SMALL["transformer"]]
        + ["--latents", root / "latents"],
        ["sample", "--config", "own_images/samples", "--samples-per-class", 2, "--sampling.num-inference-steps", 2]
        + ["--transformer", root / "transformer", "--tokenizer", root / "tokenizer", "--npz", "True"],
        ["evaluate", "--config", "own_images/report", "--images.size", 32, *images, "--split", "all"]
        + ["--transformer", root / "transformer", "--tokenizer", root / "tokenizer", "--samples", root / "samples"],
        ["tokenizer", "evaluate", "--config", "own_images/tokenizer_report", "--images.size", 32, *images]
        + ["--split", "all", "--tokenizer", root / "tokenizer"],
    ]
    names = ["foundation", "tokenizer", "latents", "transformer", "samples", "report", "tokenizer_report"]
    for name, step in zip(names, steps, strict=True):
        result = alight(*step, "--output", root / name)
        assert result.returncode == 0, f"{name}: {result.stderr}"
    return root


def test_the_whole_way(trained):
    settings = json.loads((trained / "samples" / "samples.json").read_text())
    assert settings["class_names"] == ["cats", "dogs"]
    images = sorted((trained / "samples" / "images").glob("*.png"))
    assert [Image.open(path).size for path in images] == [(32, 32)] * 4
    stored = np.load(trained / "samples" / "samples.npz")["arr_0"]
    assert (stored.shape, stored.dtype) == ((4, 32, 32, 3), np.uint8)
    report = json.loads((trained / "report" / "report.json").read_text())
    assert "reconstruction_psnr" in report
    assert "generated_label_accuracy" in report
    assert "reconstruction_psnr" in json.loads((trained / "tokenizer_report" / "report.json").read_text())


def test_latents_can_be_inspected(trained, alight):
    result = alight("latents", "inspect", "--latents", trained / "latents")
    assert result.returncode == 0
    assert "cats" in result.stdout


def train_tokenizer(*options, output):
    return ["tokenizer", "train", "--config", "own_images/tokenizer", *SMALL["tokenizer"], *options] + [
        "--alignment.weight",
        0,
        "--output",
        output,
    ]


def test_a_tokenizer_with_discriminator_in_bf16(alight, image_folder, tmp_path):
    options = ["--images.source", image_folder, "--reconstruction.adversarial-weight", 0.5]
    options += ["--reconstruction.adversarial-start-step", 1, "--training.precision", "bf16"]
    options += ["--training.micro-batch-size", 2, "--training.ema-decay", 0.9, "--training.log-every", 1]
    result = alight(*train_tokenizer(*options, output=tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "training" / "log.jsonl").read_text().splitlines()]
    assert "discriminator" not in lines[0]  # it starts after step 1
    assert lines[2]["discriminator"] > 0
    assert lines[2]["adversarial_adaptive_weight"] > 0


def test_unusable_folders(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no image")
    for source in ("nowhere", "empty", "text"):
        message = refused(*train_tokenizer("--images.source", tmp_path / source, output=tmp_path / "run"))
        assert str(tmp_path / source) in message
        assert not (tmp_path / "run").exists()


def test_damaged_images_are_named_skipped_and_counted(alight, refused, image_folder, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    (folder / "cats" / "broken.png").write_bytes(b"not an image")
    whole = (folder / "dogs" / "05.jpeg").read_bytes()
    (folder / "dogs" / "cut.jpeg").write_bytes(whole[: len(whole) // 2])
    result = alight(*train_tokenizer("--images.source", folder, output=tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    assert "cats/broken.png" in result.stderr
    assert "dogs/cut.jpeg" in result.stderr
    assert "2" in result.stderr

    for path in folder.rglob("*.*"):
        path.write_bytes(b"nothing")
    message = refused(*train_tokenizer("--images.source", folder, output=tmp_path / "other"))
    assert "decode" in message
    assert not (tmp_path / "other").exists()


def test_images_smaller_than_the_crop_are_refused_on_request(refused, image_folder, tmp_path):
    options = ["--images.source", image_folder, "--images.size", 48, "--images.upscale", "False"]
    message = refused(*train_tokenizer(*options, output=tmp_path / "run"))
    assert "smaller than 48 pixels" in message
    assert "upscale" in message


def test_small_and_transparent_images_are_noted_once_and_a_finished_run_stays(alight, refused, image_folder, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    Image.new("RGBA", (80, 60), (200, 0, 0, 90)).save(folder / "cats" / "glass.png")
    given = ["--images.source", folder, "--images.crop", "pad"]
    first = alight(*train_tokenizer(*given, "--images.upscale", "False", output=tmp_path / "run"))
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("has transparent pixels") == 1
    weights = (tmp_path / "run" / WEIGHTS).read_bytes()
    again = alight(*train_tokenizer(*given, output=tmp_path / "run"))
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == weights
    assert "images.background" in refused(
        *train_tokenizer(*given, "--images.background", "black", output=tmp_path / "run")
    )
    enlarged = alight(*train_tokenizer("--images.source", folder, "--images.size", 64, output=tmp_path / "large"))
    assert enlarged.returncode == 0, enlarged.stderr
    assert enlarged.stderr.count("smaller than 64 pixels") == 1


def test_unknown_class(refused, trained, tmp_path):
    folders = ["--transformer", trained / "transformer", "--tokenizer", trained / "tokenizer"]
    message = refused("sample", *folders, "--classes", "cat", "--output", tmp_path / "samples")
    assert "There is no class 'cat'" in message
    assert "cats" in message
    assert not (tmp_path / "samples").exists()


def test_tokenizer_without_weights_or_with_others(refused, trained, image_folder, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(trained / "tokenizer", tokenizer)
    extract = ["latents", "extract", "--config", "own_images/latents", "--images.size", 32]
    extract += ["--images.source", image_folder, "--tokenizer", tokenizer, "--output", tmp_path / "latents"]
    intact = (tokenizer / "config.json").read_text()
    (tokenizer / "config.json").write_text(json.dumps(json.loads(intact) | {"latent_channels": 2}))
    assert "config.json is not what was written" in refused(*extract)
    (tokenizer / "config.json").write_text(intact)
    (tokenizer / WEIGHTS).unlink()
    assert "diffusion_pytorch_model.safetensors is missing" in refused(*extract)
    assert not (tmp_path / "latents").exists()


def test_latents_of_another_tokenizer(refused, alight, trained, image_folder, tmp_path):
    result = alight(*train_tokenizer("--images.source", image_folder, "--seed", 5, output=tmp_path / "other"))
    assert result.returncode == 0, result.stderr
    folders = ["--transformer", trained / "transformer", "--tokenizer", tmp_path / "other"]
    assert "another tokenizer" in refused("sample", *folders, "--output", tmp_path / "samples")


def test_output_below_a_file(refused, image_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    output = tmp_path / "file" / "run"
    message = refused(*train_tokenizer("--images.source", image_folder, output=output))
    assert "Cannot write to" in message


def test_a_full_disk_leaves_nothing_half_written(image_folder, tmp_path):
    """A limit on the size of files stands in for the full disk: the same refusal by the same system call."""
    process = warm.AlightProcess(
        [str(word) for word in train_tokenizer("--images.source", image_folder, output=tmp_path / "run")],
        largest_file=100_000,
    )
    _, message = process.communicate()
    assert process.returncode == 2
    assert "Traceback" not in message
    assert "Cannot write to" in message
    assert not (tmp_path / "run" / "alight.json").exists()
    assert not list(tmp_path.rglob("*.writing"))
    assert not list(tmp_path.rglob(".partial"))


def test_misspelt_options_and_commands(alight, refused, tmp_path):
    result = alight("tokenizer", "train", "--optimizer.leer", "1")
    assert result.returncode == 2
    assert "--optimizer.lr" in result.stderr
    assert "Did you mean 'tokenizer train'" in refused("tokenizer", "trian")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("job: sample\n")
    assert "is for 'alight sample'" in refused("evaluate", "--config", recipe)
