"""The three properties of latents in the report on a tokenizer: there when asked for, and as they are meant."""

import csv
import json

import numpy as np
import pytest
import torch

from alight import VAVAE
from alight.artifacts import write_manifest
from alight.config import EvaluateTokenizerConfig, ImagesConfig
from alight.data.loading import open_dataset
from alight.models.foundation import FoundationModel
from alight.outputs import writing_folder
from alight.runtime.pixels import unit_range
from alight.stages.evaluate_tokenizer import run
from helpers.models import normalised, tiny_tokenizer, tiny_vit
from helpers.written import WEIGHTS, file_hash

IMAGES = ImagesConfig(source="digits", size=16)
NAMES = {"gram_agreement", "decoder_drift", "neighbour_accuracy"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("geometry")
    tiny_vit(image_size=16, patch_size=4).save_pretrained(folder / "foundation")
    with writing_folder(folder / "tokenizer") as staging:
        normalised(tiny_tokenizer(0, block_out_channels=(16, 16, 16)), std=0.5).save_pretrained(staging)
        write_manifest(staging, "tokenizer", {}, file_hash(staging / WEIGHTS))
    return folder


def report(root, output, **options):
    config = EvaluateTokenizerConfig(
        output=output,
        tokenizer=root / "tokenizer",
        images=IMAGES,
        posterior="mode",
        foundation=str(root / "foundation"),
        linear_map_images=40,
        **options,
    )
    run(config)
    return json.loads((output / "report.json").read_text())


def test_without_being_asked_for_they_are_not_there(root, tmp_path):
    assert not NAMES & report(root, tmp_path / "report").keys()


@torch.no_grad()
def test_the_properties_are_those_of_the_latents(root, tmp_path):
    found = report(root, tmp_path / "report", geometry=True)
    assert NAMES <= found.keys()
    dataset, vae = open_dataset(IMAGES, "held_out", augment=False), VAVAE.from_pretrained(root / "tokenizer")
    images = unit_range(torch.stack([sample.image for sample in dataset]))
    latents = vae.encode_latents(images)

    pooled, labels = latents.mean((2, 3)).double().numpy(), dataset.source.labels
    distances = np.square(pooled[:, None] - pooled).sum(2) + np.diag(np.full(len(pooled), np.inf))
    assert found["neighbour_accuracy"] == pytest.approx((labels[distances.argmin(1)] == labels).mean(), abs=0.01)

    features = FoundationModel.from_pretrained(str(root / "foundation"))(images[:1], grid=(4, 4))
    pairs = [(i, j) for i in range(16) for j in range(i)]
    columns = [
        [torch.cosine_similarity(values[:, i], values[:, j], dim=0).item() for i, j in pairs]
        for values in (latents[0].flatten(1), features[0].flatten(1))
    ]
    with (tmp_path / "report" / "images.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert float(first["gram_agreement"]) == pytest.approx(np.corrcoef(columns)[0, 1], abs=1e-4)

    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    size = latents.square().mean((1, 2, 3), keepdim=True).sqrt()
    before, after = vae.decode_latents(latents), vae.decode_latents(latents + 0.5 * size * noise)
    spread = (before - images.mean(0)).square().sum()
    expected = ((after - before).square().sum() / spread).sqrt().item()
    assert found["decoder_drift"] == pytest.approx(expected, rel=0.05)  # of other noise
