"""Folders of diffusers' `AutoencoderKL` in the layouts that others publish, with random weights, as tokenizers."""

import pytest
import torch
from diffusers import AutoencoderKL

from alight import VAVAE
from alight.config import ConvertConfig
from alight.interop.tokenizer_sources import open_tokenizer
from alight.runtime.seeding import seeded_initialisation
from alight.stages import convert

WIDTH = 32


def levels(count, attention):
    """Blocks of so many levels, narrow, with attention at the lowest as in VA-VAE, or in the middle alone as in SD."""
    kind = "Attn" if attention else ""
    return {
        "block_out_channels": (WIDTH,) * count,
        "down_block_types": ("DownEncoderBlock2D",) * (count - 1) + (f"{kind}DownEncoderBlock2D",),
        "up_block_types": (f"{kind}UpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (count - 1),
        "layers_per_block": 1,
    }


LAYOUTS = {
    # an end-to-end tuned VA-VAE: statistics per channel
    "f16d32": levels(5, attention=True)
    | {"latent_channels": 32, "scaling_factor": 1.0, "force_upcast": False}
    | {"latents_mean": torch.linspace(-2, 2, 32).tolist(), "latents_std": torch.linspace(0.5, 3, 32).tolist()},
    # Stable Diffusion's, and whatever was tuned from it: one factor for all channels
    "f8d4": levels(4, attention=False) | {"latent_channels": 4, "scaling_factor": 0.18215},
    # one that records both; the statistics say more
    "both": levels(4, attention=False)
    | {"latent_channels": 4, "scaling_factor": 0.18215}
    | {"latents_mean": [1.0, 0.0, -1.0, 2.0], "latents_std": [4.0, 5.0, 6.0, 7.0]},
    # Flux's and SD 3.5's: a factor and a shift, no 1x1 convolutions around the latents
    "f8d16": levels(4, attention=False)
    | {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    | {"use_quant_conv": False, "use_post_quant_conv": False},
}


def expected_statistics(config):
    channels = config["latent_channels"]
    if "latents_mean" in config:
        return torch.tensor(config["latents_mean"]), torch.tensor(config["latents_std"])
    mean, std = config.get("shift_factor", 0.0), 1 / config["scaling_factor"]
    return torch.full((channels,), mean), torch.full((channels,), std)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_they_open_and_are_normalised_as_recorded(layout, tmp_path):
    config = LAYOUTS[layout]
    with seeded_initialisation(0):
        plain = AutoencoderKL(**config).eval()
    plain.save_pretrained(tmp_path / "published")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    vae = open_tokenizer(tmp_path / "published").vae
    assert isinstance(vae, VAVAE)
    mean, std = (value[:, None, None] for value in expected_statistics(config))
    with torch.no_grad():
        raw = plain.encode(images).latent_dist.mode()
        latents = vae.encode_latents(images)
        torch.testing.assert_close(latents, (raw - mean) / std, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(vae.decode_latents(latents), plain.decode(raw).sample, rtol=1e-4, atol=2e-4)
    artifact = convert.run(
        ConvertConfig(kind="tokenizer", source=tmp_path / "published", output=tmp_path / "artifact")
    )
    kept = VAVAE.from_pretrained(artifact.path)
    assert torch.equal(kept.encode_latents(images), latents)
