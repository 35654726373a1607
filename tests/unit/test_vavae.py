"""The tokenizer's contract: normalised latents in and out, a diffusers folder on disk, and strict loading."""

import json

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from alight import VAVAE
from alight.runtime.errors import InputError
from alight.runtime.seeding import seeded_initialisation


@pytest.fixture
def vae():
    with seeded_initialisation(0):
        model = VAVAE.build(latent_channels=4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8)
    model.set_latents_statistics(torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4))
    return model.eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_latents_are_normalised_raw_latents(vae, images):
    raw, latents = vae.encode_raw_latents(images), vae.encode_latents(images)
    assert latents.shape == (2, 4, 8, 12)
    mean, std = torch.linspace(-1, 1, 4).view(1, -1, 1, 1), torch.linspace(0.5, 2, 4).view(1, -1, 1, 1)
    torch.testing.assert_close(latents, (raw - mean) / std)
    torch.testing.assert_close(vae.decode_latents(latents), vae.decode_raw_latents(raw), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_samples_come_from_the_generator(vae, images):
    first, second, other = (vae.encode_latents(images, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@torch.no_grad()
def test_plain_diffusers_opens_the_folder(vae, images, tmp_path):
    vae.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "AutoencoderKL"
    other = AutoencoderKL.from_pretrained(tmp_path)
    assert torch.equal(other.encode(images).latent_dist.mode(), vae.encode_raw_latents(images))
    assert other.config.latents_std == vae.config.latents_std


@torch.no_grad()
def test_round_trip_through_a_folder(vae, images, tmp_path):
    vae.save_pretrained(tmp_path)
    again = VAVAE.from_pretrained(tmp_path)
    assert torch.equal(again.encode_latents(images), vae.encode_latents(images))


def test_paper_size():
    with torch.device("meta"):
        model = VAVAE.build()
    # the published f16d32 network has 69,836,067 parameters
    assert sum(parameter.numel() for parameter in model.parameters()) == 69_836_067
    assert model.downsampling_factor == 16


def test_sizes_that_do_not_fit(vae):
    with pytest.raises(InputError, match="multiples of 2"):
        vae.encode_latents(torch.zeros(1, 3, 15, 16))


def test_missing_statistics():
    model = VAVAE.build(latent_channels=4, block_out_channels=(8,), layers_per_block=1, norm_num_groups=8)
    with pytest.raises(InputError, match="no latents_mean"):
        model.decode_latents(torch.zeros(1, 4, 4, 4))


def test_unusable_folders(vae, tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        VAVAE.from_pretrained(tmp_path)
    vae.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a complete safetensors file"):
        VAVAE.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"no diffusion_pytorch_model\.safetensors"):
        VAVAE.from_pretrained(tmp_path)


def test_weights_that_do_not_fit_the_configuration(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"latent_channels": 8}))
    with pytest.raises(InputError, match=r"of another shape .*encoder\.conv_out"):
        VAVAE.from_pretrained(tmp_path)
    path.write_text(json.dumps(config | {"block_out_channels": [16, 32, 32]}))
    with pytest.raises(InputError, match="do not fit VAVAE|does not describe"):
        VAVAE.from_pretrained(tmp_path)


def test_weights_that_are_not_finite(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_out.bias"][0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"1 not finite \(decoder\.conv_out\.bias\)"):
        VAVAE.from_pretrained(tmp_path)
