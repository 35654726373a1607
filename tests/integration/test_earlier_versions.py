"""Runs written by earlier versions: they open, go on, and give the same results."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file

from alight import LightningDiTPipeline
from alight.artifacts import MANIFEST, read_artifact
from helpers.written import WEIGHTS

ARCHIVE = Path(__file__).parents[1] / "data" / "run_0_1.tar.xz"  # a few steps on 24 digits, made by version 0.1
KINDS = ("foundation", "tokenizer", "latents", "transformer", "samples")
SAMPLE = (
    *("sample", "--transformer", "run/transformer", "--tokenizer", "run/tokenizer", "--samples-per-class", "1"),
    *("--sampling.num-inference-steps", "2", "--device", "cpu"),
)
SIZES = {"preset": "None", "hidden-size": 16, "num-layers": 1, "num-heads": 2, "patch-size": 2}
TRAINING = {"steps": 4, "global-batch-size": 4, "ema-decay": 0.9, "checkpoint-every": 2}
TRAIN = (
    *("transformer", "train", "--latents", "run/latents", "--device", "cpu", "--output", "run/transformer"),
    *(word for name, value in SIZES.items() for word in (f"--model.{name}", value)),
    *(word for name, value in TRAINING.items() for word in (f"--training.{name}", value)),
)


@pytest.fixture
def earlier(tmp_path):
    """The folder of a run of version 0.1, and the images it was made from."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_every_artifact_opens(earlier):
    for kind in KINDS:
        assert read_artifact(earlier / "run" / kind, kind).format == 1
    pipeline = LightningDiTPipeline.from_artifacts(earlier / "run" / "transformer", earlier / "run" / "tokenizer")
    assert pipeline.class_names == ("0", "1", "2")


def test_sampling_gives_the_same_images(earlier, alight):
    result = alight(*SAMPLE, "--output", "again", cwd=earlier)
    assert result.returncode == 0, result.stderr
    for path in sorted((earlier / "run" / "samples" / "images").iterdir()):
        with Image.open(path) as old, Image.open(earlier / "again" / "images" / path.name) as new:
            largest = max(high for _, high in ImageChops.difference(old, new).getextrema())
        assert largest <= 1, path  # another processor may round a value that lies on an edge the other way


def test_what_was_finished_stays_finished(earlier, alight):
    before = {path: path.read_bytes() for path in (earlier / "run").rglob("*") if path.is_file()}
    result = alight(*TRAIN, cwd=earlier)
    assert result.returncode == 0, result.stderr
    assert "finished already" in result.stderr
    assert "(finished already, nothing was done)" in result.stdout
    assert {path: path.read_bytes() for path in (earlier / "run").rglob("*") if path.is_file()} == before


def test_an_unfinished_training_goes_on(earlier, alight):
    folder = earlier / "run" / "transformer"
    whole = load_file(folder / WEIGHTS)
    for path in (MANIFEST, "config.json", WEIGHTS, "training/step-00000004.pt", "training/step-00000004.sha256"):
        (folder / path).unlink()
    result = alight(*TRAIN, cwd=earlier)
    assert result.returncode == 0, result.stderr
    assert "from step 2" in result.stderr
    resumed = load_file(folder / WEIGHTS)
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, rtol=1e-4, atol=1e-6)
    assert json.loads((folder / MANIFEST).read_text())["format"] > 1
