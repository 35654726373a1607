"""Published tokenizer files: what has no counterpart is refused with a reason, the others come back unchanged."""

import errno

import pytest
import torch
from safetensors.torch import save_file

from alight import VAVAE
from alight.interop import torch_file
from alight.interop.reference import (
    export_latents_statistics,
    export_tokenizer,
    infer_tokenizer_config,
    load_latents_statistics,
    load_tokenizer,
    published_state_dict,
    published_tokenizer_state_dict,
    tokenizer_from_published,
)
from alight.models import LightningDiT
from alight.runtime.errors import InputError
from alight.runtime.seeding import seeded_initialisation
from helpers.models import exportable_tokenizer

TINY = {"block_out_channels": (32, 64, 64), "sample_size": 64}


def make_tokenizer(**options):
    return exportable_tokenizer(**TINY | options)


@pytest.fixture(scope="module")
def published():
    return {name: value.clone() for name, value in published_tokenizer_state_dict(make_tokenizer()).items()}


@pytest.fixture
def images():
    return torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    ("down", "up"),
    [((), ()), ((2,), (2,)), ((2,), ()), ((1,), (1,)), ((0, 2), (1,))],
    ids=["none", "lowest", "encoder alone", "middle", "several"],
)
@torch.no_grad()
def test_round_trip_through_the_published_layout(down, up, images, tmp_path):
    config = {name: value for name, value in make_tokenizer().config.items() if not name.startswith("_")}
    config["down_block_types"] = tuple(f"{'Attn' * (level in down)}DownEncoderBlock2D" for level in range(3))
    config["up_block_types"] = tuple(f"{'Attn' * (level in up)}UpDecoderBlock2D" for level in (2, 1, 0))
    with seeded_initialisation(0):
        vae = VAVAE(**config).eval()
    export_tokenizer(vae, tmp_path / "vae.pt")
    loaded = load_tokenizer(tmp_path / "vae.pt")
    assert loaded.state_dict().keys() == vae.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in vae.state_dict().items())
    assert torch.equal(loaded.encode_raw_latents(images), vae.encode_raw_latents(images))
    for name in ("down_block_types", "up_block_types", "block_out_channels", "layers_per_block", "latent_channels"):
        assert loaded.config[name] == vae.config[name]
    again = published_tokenizer_state_dict(loaded)
    file = torch.load(tmp_path / "vae.pt", weights_only=True)["state_dict"]
    assert list(file) == list(again)
    assert all(file[name].numpy().tobytes() == value.contiguous().numpy().tobytes() for name, value in again.items())
    assert [path.name for path in tmp_path.iterdir()] == ["vae.pt"]


def test_published_names(published):
    """A few by hand: levels of the decoder count from the image, matrices of attention are convolutions."""
    ours = make_tokenizer().state_dict()
    for theirs, name in {
        "decoder.up.0.block.1.conv2.bias": "decoder.up_blocks.2.resnets.1.conv2.bias",
        "decoder.up.2.upsample.conv.weight": "decoder.up_blocks.0.upsamplers.0.conv.weight",
        "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
        "encoder.mid.block_2.norm1.weight": "encoder.mid_block.resnets.1.norm1.weight",
        "decoder.norm_out.weight": "decoder.conv_norm_out.weight",
        "decoder.up.2.attn.1.norm.bias": "decoder.up_blocks.0.attentions.1.group_norm.bias",
    }.items():
        assert torch.equal(published[theirs], ours[name])
    for part in "qkv":
        matrix = ours[f"encoder.mid_block.attentions.0.to_{part}.weight"]
        assert torch.equal(published[f"encoder.mid.attn_1.{part}.weight"], matrix[:, :, None, None])


def test_the_defaults_are_the_published_network():
    assert infer_tokenizer_config(published_tokenizer_state_dict(make_tokenizer(sample_size=256)))["sample_size"] == 64
    config = make_tokenizer(block_out_channels=(32,) * 5, sample_size=1).config
    inferred = infer_tokenizer_config(published_tokenizer_state_dict(make_tokenizer(block_out_channels=(32,) * 5)))
    assert inferred.pop("sample_size") == 256  # where the lowest of five levels has 16 cells
    assert {name: config[name] for name in inferred} == inferred


@torch.no_grad()
def test_a_checkpoint_without_variance_has_a_log_variance_of_one(published, images):
    means = dict(published)
    means["quant_conv.weight"], means["quant_conv.bias"] = published["quant_conv.weight"][:4], torch.arange(4.0)
    vae = tokenizer_from_published(means)
    posterior = vae.posterior(images)
    assert torch.equal(posterior.logvar, torch.ones_like(posterior.mean))
    moments = torch.nn.functional.conv2d(vae.encoder(images), means["quant_conv.weight"], torch.arange(4.0))
    torch.testing.assert_close(posterior.mean, moments)
    again = published_tokenizer_state_dict(vae)
    assert list(again) == list(means)
    assert all(torch.equal(again[name], value) for name, value in means.items())


def test_what_has_no_counterpart_is_refused(published):
    for changes, message in (
        ({"post_quant_conv.weight": torch.zeros(4, 3, 1, 1)}, "latents of 3 channels .* made for 4"),
        ({"quant_conv.weight": torch.zeros(8, 6, 1, 1)}, "embed_dim"),
        ({"quant_conv.weight": None}, "no 'quant_conv.weight'"),
        ({"encoder.conv_in.weight": None}, "not a checkpoint of a VA-VAE"),
        ({"encoder.down.0.block.0.conv1.weight": None}, "not a checkpoint of a VA-VAE"),
        ({"encoder.down.1.block.0.conv1.weight": torch.zeros(40, 32, 3, 3)}, "levels of 32, 40, 64 channels"),
        ({"decoder.conv_in.weight": None}, "1 missing"),
        ({"decoder.norm_out.weight": torch.full((32,), torch.nan)}, "1 not finite"),
        ({"decoder.head.weight": torch.zeros(1)}, r"1 unexpected \(decoder.head.weight\)"),
        ({"decoder.conv_in.bias": torch.zeros(3)}, r"\(3,\) instead of \(64,\)"),
    ):
        broken = {name: value for name, value in {**published, **changes}.items() if value is not None}
        with pytest.raises(InputError, match=message):
            tokenizer_from_published(broken, source="the file")
    for options in ({"norm_num_groups": 16}, {"mid_block_attention": False}):
        with pytest.raises(InputError, match="published code could not run it"):
            published_tokenizer_state_dict(make_tokenizer(**options))


def test_other_weights_are_named(published, tmp_path):
    transformer = LightningDiT(sample_size=2, hidden_size=16, num_layers=1, num_heads=2)
    for state, expected in (
        (published_state_dict(transformer), "a published LightningDiT"),
        (transformer.state_dict(), "a transformer of this package"),
        (make_tokenizer().state_dict(), "layout of diffusers"),
        ({"mean": torch.zeros(4), "std": torch.ones(4)}, "statistics of latents"),
        ({"latents": torch.zeros(4), "labels": torch.ones(4)}, "a shard of latents"),
        ({"head.weight": torch.zeros(4)}, "1 tensors such as head.weight"),
    ):
        torch.save(dict(state), tmp_path / "weights.pt")
        with pytest.raises(InputError, match=f"weights.pt is not a checkpoint of a VA-VAE.*{expected}"):
            load_tokenizer(tmp_path / "weights.pt")


def test_bare_wrapped_and_safetensors_files_are_read(published, tmp_path):
    torch.save(published, tmp_path / "bare.pt")
    torch.save({"state_dict": published, "epoch": 3}, tmp_path / "wrapped.ckpt")
    save_file(published, tmp_path / "weights.safetensors")
    for name in ("bare.pt", "wrapped.ckpt", "weights.safetensors"):
        vae = load_tokenizer(tmp_path / name)
        assert torch.equal(vae.decoder.conv_out.bias, published["decoder.conv_out.bias"])
        assert not vae.training


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "vae.pt"
    path.write_bytes(b"before")

    def full(contents, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch_file.torch, "save", full)
    with pytest.raises(InputError, match="disk is full"):
        export_tokenizer(make_tokenizer(), path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="is a folder"):
        export_tokenizer(make_tokenizer(), tmp_path)


def test_statistics(tmp_path):
    path = tmp_path / "latents_stats.pt"
    mean, std = torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4)
    export_latents_statistics(mean, std, path)
    assert torch.load(path, weights_only=True)["std"].shape == (1, 4, 1, 1)
    for source in (path, tmp_path):
        loaded = load_latents_statistics(source)
        assert torch.equal(loaded.mean, mean)
        assert torch.equal(loaded.std, std)
    for contents, message in (
        ({"mean": mean}, "holds no statistics"),
        ([mean, std], "holds no statistics"),
        ({"mean": mean, "std": std[:3]}, "holds no statistics"),
        ({"mean": mean, "std": 0 * std}, "not positive"),
        ({"mean": mean / 0, "std": std}, "not finite"),
    ):
        torch.save(contents, path)
        with pytest.raises(InputError, match=message):
            load_latents_statistics(path)
    path.unlink()
    with pytest.raises(InputError, match="There is no file"):
        load_latents_statistics(tmp_path)
