"""Any tokenizer by one call: what it is told by, what identifies it, and refusals."""

import json

import pytest
import torch
from diffusers import AutoencoderKL

from alight.artifacts import read_artifact, write_manifest
from alight.config import ConvertConfig
from alight.interop.reference import export_latents_statistics, export_tokenizer
from alight.interop.tokenizer_sources import open_tokenizer
from alight.outputs import writing_folder
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.runtime.seeding import seeded_initialisation
from alight.stages import convert
from helpers.models import exportable_tokenizer
from helpers.written import WEIGHTS

MEAN, STD = torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4)


@pytest.fixture(scope="module")
def vae():
    return exportable_tokenizer()


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_an_artifact_keeps_its_identity(vae, images, tmp_path):
    with writing_folder(tmp_path / "tokenizer") as staging:
        vae.save_pretrained(staging)
        write_manifest(staging, "tokenizer", {"seed": 7}, "h" * 64, facts={"foundation": "dinov2"})
    opened = open_tokenizer(tmp_path / "tokenizer")
    assert opened.artifact == read_artifact(tmp_path / "tokenizer", "tokenizer")
    assert torch.equal(opened.vae.encode_raw_latents(images), vae.encode_raw_latents(images))


@pytest.mark.parametrize("subfolder", ["", "vae"])
def test_plain_folders_of_diffusers(subfolder, images, tmp_path):
    with seeded_initialisation(5):
        plain = AutoencoderKL(block_out_channels=(32,), latent_channels=4).eval()
    plain.save_pretrained(tmp_path / subfolder)
    opened = open_tokenizer(str(tmp_path))
    assert torch.equal(opened.vae.encode_raw_latents(images), plain.encode(images).latent_dist.mode())
    assert opened.artifact.kind == "tokenizer"
    assert opened.artifact.hash == file_hash(tmp_path / subfolder / WEIGHTS)
    assert opened.artifact.config["scaling_factor"] == 0.18215
    assert opened.artifact.facts["source"] == str(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_a_published_file_is_what_its_conversion_is(suffix, vae, images, tmp_path):
    path = tmp_path / f"vavae{suffix}"
    export_tokenizer(vae, path)
    opened = open_tokenizer(path)
    assert torch.equal(opened.vae.encode_raw_latents(images), vae.encode_raw_latents(images))
    assert not opened.vae.has_latents_statistics
    converted = convert.run(ConvertConfig(kind="tokenizer", source=path, output=tmp_path / "converted"))
    assert opened.artifact.hash == converted.hash


def test_statistics_beside_a_published_file_are_picked_up(vae, tmp_path):
    export_tokenizer(vae, tmp_path / "vavae.pt")
    export_latents_statistics(MEAN, STD, tmp_path / "latents_stats.pt")
    mean, std = open_tokenizer(tmp_path / "vavae.pt").vae.latents_statistics
    torch.testing.assert_close(mean.float(), MEAN)
    torch.testing.assert_close(std.float(), STD)
    export_latents_statistics(MEAN[:3], STD[:3], tmp_path / "latents_stats.pt")
    with pytest.raises(InputError, match="do not fit latents of 4 channels"):
        open_tokenizer(tmp_path / "vavae.pt")


def test_a_hub_id_is_taken_from_the_cache(vae, images, tmp_path, monkeypatch):
    """The folder layout of the hub's cache, as a download leaves it; without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--tokenizer"
    vae.save_pretrained(repository / "snapshots" / "c0ffee")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    opened = open_tokenizer("somebody/tokenizer")
    assert torch.equal(opened.vae.encode_raw_latents(images), vae.encode_raw_latents(images))
    assert opened.artifact.facts["source"] == "somebody/tokenizer"
    with pytest.raises(InputError, match="'somebody/else' is not a folder.*cannot be downloaded"):
        open_tokenizer("somebody/else")


def test_what_is_no_tokenizer(vae, tmp_path):
    with pytest.raises(InputError, match="There is no tokenizer folder"):
        open_tokenizer(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not a finished tokenizer"):
        open_tokenizer(tmp_path)
    (tmp_path / "notes.pt").write_text("no weights")
    with pytest.raises(InputError, match="not a complete torch file"):
        open_tokenizer(tmp_path / "notes.pt")
    with writing_folder(tmp_path / "other") as staging:
        vae.save_pretrained(staging)
        write_manifest(staging, "transformer", {}, "h" * 64)
    with pytest.raises(InputError, match="holds a transformer, not a tokenizer"):
        open_tokenizer(tmp_path / "other")
    vae.save_pretrained(tmp_path / "unet")
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    with pytest.raises(InputError, match="holds a UNet2DModel"):
        open_tokenizer(tmp_path / "unet")
