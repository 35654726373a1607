"""A frozen encoder with a trained decoder: latents, statistics, folders of diffusers in both directions, refusals."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderRAE
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from alight import RepresentationAutoencoder
from alight.interop.tokenizer_sources import open_tokenizer
from alight.models.foundation import FoundationModel
from alight.models.foundation_catalogue import IMAGENET_MEAN, IMAGENET_STD
from alight.models.tokenizer_folders import open_tokenizer_folder
from alight.runtime.device import narrow_weights
from alight.runtime.errors import InputError
from alight.runtime.seeding import seeded_initialisation
from helpers.models import VIT, tiny_vit
from helpers.written import WEIGHTS

HALF = ((0.5,) * 3, (0.5,) * 3)
DECODER = {"hidden_size": 24, "num_layers": 1, "num_heads": 2}
PUBLISHED = {
    "encoder_hidden_size": 64,
    "encoder_num_hidden_layers": 1,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "patch_size": 4,
}
TYPES = {
    "dinov2": {"encoder_patch_size": 14, "encoder_input_size": 56},
    "mae": {"encoder_patch_size": 16, "encoder_input_size": 64},
}
EARLIER_NAMES = {  # of transformers 4, as the published files have them
    "dinov2": (("attention.q_proj", "attention.attention.query"), ("attention.o_proj", "attention.output.dense")),
    "mae": (
        ("encoder.layers.", "encoder.encoder.layer."),
        ("attention.k_proj", "attention.attention.key"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ),
}


def foundation(seed=0, **options):
    return FoundationModel(tiny_vit(seed, **options), *HALF)


def dinov2(**options):
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1}
    with seeded_initialisation(3):
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(patch_size=14, image_size=518, **sizes | options))
        nn.init.normal_(model.layernorm.weight, 1.0, 0.2)
        nn.init.normal_(model.layernorm.bias, 0.0, 0.2)
    return FoundationModel(model)


def autoencoder(encoder=None, size=32, patch=8, **options):
    with seeded_initialisation(1):
        return RepresentationAutoencoder.build(encoder or foundation(), size, patch, **DECODER | options).eval()


def published(kind, statistics=True):
    """A folder's model as diffusers writes it: random weights, and statistics of every position by itself."""
    with seeded_initialisation(2):
        shape = (64, 4, 4)
        found = {"latents_mean": torch.randn(shape), "latents_std": torch.rand(shape) + 0.5} if statistics else {}
        return AutoencoderRAE(encoder_type=kind, **PUBLISHED | TYPES[kind] | found).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def small():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- latents ------------------------------------------------------------------------------------------------------


def test_latents_are_the_features_and_nothing_about_them_is_random(images):
    encoder, model = foundation(), autoencoder()
    features = encoder(images, (4, 4))
    assert torch.equal(model.encode_raw_latents(images), features)
    assert torch.equal(model.encode_raw_latents(images, torch.Generator().manual_seed(5)), features)
    posterior = model.posterior(images)
    assert torch.equal(posterior.mode(), features)
    noise = torch.randn(features.shape)
    assert torch.equal(posterior.mean + (0.5 * posterior.logvar).exp() * noise, features)
    assert not posterior.std.any()
    assert model.decode_raw_latents(features).shape == images.shape
    assert (model.downsampling_factor, model.config.latent_channels, model.config.sample_size) == (8, 16, 32)


def test_a_folder_holds_its_encoder_and_gives_the_same_latents_and_images(images, tmp_path):
    model = autoencoder()
    raw = model.encode_raw_latents(images)
    model.set_latents_statistics(raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
    model.save_pretrained(tmp_path)
    opened = open_tokenizer(tmp_path)
    assert isinstance(opened.vae, RepresentationAutoencoder)
    latents = opened.vae.encode_latents(images)
    assert torch.equal(latents, model.encode_latents(images))
    assert torch.equal(opened.vae.decode_latents(latents), model.decode_latents(latents))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(16), rtol=0, atol=1e-5)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(16), rtol=1e-5, atol=0)
    opened.vae.check_latents_statistics(raw)
    assert opened.artifact.facts["image_size"] == 32


def test_the_calls_of_diffusers_give_the_normalised_latents_too(images):
    model = autoencoder()
    raw = model.encode_raw_latents(images)
    model.set_latents_statistics(raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
    latents = model.encode(0.5 * images + 0.5).latent
    torch.testing.assert_close(latents, model.encode_latents(images), rtol=1e-4, atol=1e-4)
    decoded = 2 * model.decode(latents).sample - 1
    torch.testing.assert_close(decoded, model.decode_latents(latents), rtol=1e-4, atol=1e-5)


def test_a_random_pooler_is_no_part_of_the_tokenizer(images, tmp_path):
    hashes = set()
    for seed in (0, 1):
        encoder = foundation().backbone.state_dict()
        with seeded_initialisation(seed + 10):
            pooled = ViTModel(ViTConfig(**VIT))
        pooled.load_state_dict(encoder, strict=False)
        autoencoder(FoundationModel(pooled, *HALF)).save_pretrained(tmp_path / str(seed))
        hashes.add(open_tokenizer(tmp_path / str(seed)).artifact.hash)
    assert len(hashes) == 1


def test_other_families_are_described_and_built_again(images, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with seeded_initialisation(4):
        clip = FoundationModel(CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, **sizes)))
    model = autoencoder(clip)
    model.save_pretrained(tmp_path)
    assert torch.equal(open_tokenizer_folder(tmp_path).encode_raw_latents(images), clip(images, (4, 4)))


def test_only_the_decoder_can_learn_and_the_encoder_never_drops(images):
    model = autoencoder(foundation(hidden_dropout_prob=0.5)).train()
    one, two = model.encode_raw_latents(images), model.encode_raw_latents(images)
    assert torch.equal(one, two)
    assert not one.requires_grad
    model.decode_raw_latents(one).square().mean().backward()
    assert model.last_decoder_layer.grad.any()
    assert all(weight.grad is None for part in model.encoding_parts for weight in part.parameters())
    assert model.decoder.training


def test_narrow_weights_change_little(images):
    model = autoencoder()
    wide = model.encode_raw_latents(images)
    narrow_weights(model, "bf16")
    narrow = model.encode_raw_latents(images)
    assert (narrow - wide).norm() / wide.norm() < 0.05
    assert model.decode_raw_latents(narrow).isfinite().all()


# --- folders of diffusers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["today", "earlier"])
@pytest.mark.parametrize("kind", TYPES)
def test_a_published_folder_gives_what_diffusers_gives(kind, names, small, tmp_path):
    plain = published(kind)
    plain.save_pretrained(tmp_path)
    if names == "earlier":
        weights = load_file(tmp_path / WEIGHTS)
        for new, old in EARLIER_NAMES[kind]:
            assert any(new in name for name in weights)
            parts = {name: name.replace(new, old) if name.startswith("encoder.") else name for name in weights}
            weights = {parts[name]: value for name, value in weights.items()}
        save_file(weights | {"decoder.decoder_pos_embed": torch.zeros(1, 17, 16)}, tmp_path / WEIGHTS)
    vae = open_tokenizer(tmp_path).vae
    with torch.no_grad():
        expected = plain.encode(0.5 * small + 0.5).latent
        pixels = plain.decode(expected).sample
    torch.testing.assert_close(vae.encode_raw_latents(small), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(vae.encode_latents(small), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(vae.decode_latents(expected), 2 * pixels - 1, rtol=0, atol=1e-5)
    assert vae.config.latent_channels == 64


@pytest.mark.parametrize("prefix", ["encoder.", "encoder.vision_model."])  # of transformers 5, and of 4
def test_a_published_siglip_is_built_where_diffusers_cannot(prefix, small, tmp_path):
    config = SiglipVisionConfig(
        hidden_size=64, num_attention_heads=1, num_hidden_layers=1, patch_size=16, image_size=256
    )
    with seeded_initialisation(6):
        model = SiglipVisionModel(config).eval()
        statistics = {"latents_mean": torch.randn(64, 4, 4), "latents_std": torch.rand(64, 4, 4) + 0.5}
    sizes = {"encoder_patch_size": 16, "encoder_input_size": 64}
    values = PUBLISHED | sizes | {"encoder_type": "siglip2", "_class_name": "AutoencoderRAE"}
    weights = {f"_{name}": value for name, value in statistics.items()} | {
        f"{prefix}{name}": value for name, value in model.state_dict().items() if "post_layernorm" not in name
    }
    rest = published("mae").state_dict()
    weights |= {name: value for name, value in rest.items() if name.startswith(("decoder", "encoder_"))}
    save_file(weights, tmp_path / WEIGHTS)
    lists = {name: value.tolist() for name, value in statistics.items()}
    (tmp_path / "config.json").write_text(json.dumps(values | lists))
    vae = open_tokenizer(tmp_path).vae
    pixels = nn.functional.interpolate(0.5 * small + 0.5, (64, 64), mode="bicubic")
    pixels = (pixels - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    with torch.no_grad():  # its last norm is affine, but as initialised
        features = model(pixels, interpolate_pos_encoding=True).last_hidden_state.transpose(1, 2).unflatten(2, (4, 4))
    expected = (features - statistics["latents_mean"]) / (statistics["latents_std"] + 1e-5)
    torch.testing.assert_close(vae.encode_latents(small), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vae.encode(0.5 * small + 0.5).latent, expected, rtol=1e-5, atol=1e-5)
    assert vae.decode(expected).sample.shape == small.shape


def test_statistics_come_on_top_of_those_of_every_position(small, tmp_path):
    published("dinov2").save_pretrained(tmp_path / "published")
    vae = open_tokenizer_folder(tmp_path / "published")
    mean, std = vae.latents_statistics
    assert torch.equal(mean, torch.zeros(64).double())
    assert torch.equal(std, torch.ones(64).double())
    raw = vae.encode_raw_latents(small)
    for _ in range(2):  # setting them again is not setting them twice
        vae.set_latents_statistics(raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
    assert torch.equal(vae.encode_raw_latents(small), raw)
    vae.save_pretrained(tmp_path / "again")
    again = open_tokenizer_folder(tmp_path / "again")
    assert torch.equal(
        again.encode_latents(small), (raw - raw.mean((0, 2, 3), True)) / raw.std((0, 2, 3))[:, None, None]
    )


def test_published_weights_without_statistics_have_none(tmp_path):
    published("dinov2", statistics=False).save_pretrained(tmp_path)
    assert not open_tokenizer_folder(tmp_path).has_latents_statistics


def test_a_tokenizer_with_an_encoder_that_diffusers_knows_opens_there(small, tmp_path):
    encoder = dinov2()
    model = autoencoder(encoder, 16, 4)
    raw = model.encode_raw_latents(small)
    model.set_latents_statistics(raw.mean((0, 2, 3)), raw.std((0, 2, 3)))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["_class_name"] == "AutoencoderRAE"
    assert not {"encoder_config", "latent_channels", "sample_size", "channel_mean"} & set(written)
    plain = AutoencoderRAE.from_pretrained(tmp_path, low_cpu_mem_usage=False).eval()
    with torch.no_grad():
        latents = plain.encode(0.5 * small + 0.5).latent
        pixels = plain.decode(latents).sample
    torch.testing.assert_close(latents, model.encode_latents(small), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(2 * pixels - 1, model.decode_latents(latents), rtol=1e-4, atol=1e-5)
    opened = open_tokenizer_folder(tmp_path)
    assert torch.equal(opened.encode_latents(small), model.encode_latents(small))


def test_the_affine_part_of_the_last_norm_is_left_to_the_statistics(small):
    """As diffusers builds it; the features at the model's own size differ from ours in nothing else."""
    encoder = dinov2()
    model = autoencoder(encoder, 148, 4)  # 37 patches a side, for which positions are the model's own
    images = torch.rand(1, 3, 148, 148, generator=torch.Generator().manual_seed(2)) * 2 - 1
    norm = encoder.backbone.layernorm
    pixels = nn.functional.interpolate(0.5 * images + 0.5, (518, 518), mode="bicubic")
    plain = 2 * pixels - 1  # resized as diffusers does
    expected = (encoder(plain, (37, 37)) - norm.bias[:, None, None]) / norm.weight[:, None, None]
    torch.testing.assert_close(model.encode_raw_latents(images), expected, rtol=0, atol=1e-4)


def test_an_encoder_of_other_details_than_in_diffusers_keeps_its_own(small, tmp_path):
    encoder = dinov2(num_register_tokens=2)
    model = autoencoder(encoder, 16, 4)
    assert model.config.encoder_config["num_register_tokens"] == 2
    assert torch.equal(model.encode_raw_latents(small), encoder(small, (4, 4)))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "RepresentationAutoencoder"


# --- refusals -----------------------------------------------------------------------------------------------------


def test_other_sizes_are_refused(images):
    model = autoencoder()
    with pytest.raises(InputError, match="made for images of 32 x 32 pixels alone"):
        model.encode_raw_latents(images[..., :16, :16])
    with pytest.raises(InputError, match="a grid of 4 x 4 alone"):
        model.decode_raw_latents(torch.zeros(1, 16, 2, 2))
    with pytest.raises(InputError, match="do not fit latents of 16 channels"):
        model.set_latents_statistics(torch.zeros(4), torch.ones(4))


def test_a_grid_of_patches_that_does_not_meet_the_latents_is_refused_in_one_paragraph():
    encoder = foundation()
    encoder.allowed_sizes = (32,)  # as of a model whose positions are for one size
    with pytest.raises(InputError, match=r"gives 4 x 4 features .* have 8 x 8 positions.*patch_size 8") as refusal:
        RepresentationAutoencoder.build(encoder, 32, 4, **DECODER)
    assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match="do not divide into latent positions of 5 pixels"):
        RepresentationAutoencoder.build(foundation(), 32, 5, **DECODER)


def test_a_model_that_cannot_be_stored_is_refused():
    encoder = foundation()
    encoder.backbone.config = SimpleNamespace(**encoder.backbone.config.to_dict())
    with pytest.raises(InputError, match="only models of transformers can be stored"):
        RepresentationAutoencoder.build(encoder, 32, 8, **DECODER)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"latents_mean": [0.0] * 16}, "of another shape"),
        ({"latents_std": [[[2.0]]] * 16}, "another latents_std than the weights"),
        ({"scaling_factor": -1.0}, "a positive factor"),
        ({"reshape_to_2d": False}, "latents on a grid"),
        ({"image_size": 40}, "not its latent grid times patch_size"),
        ({"channel_mean": [0.0]}, "channel_mean that is not 16 finite numbers"),
        ({"encoder_config": {"model_type": "vit"}}, "do not fit|does not describe"),
        ({"encoder_config": {"model_type": "no such family"}}, "does not describe"),
        ({"decoder_num_hidden_layers": 10_000_000}, "more than the limit"),
        ({"encoder_config": {"model_type": "vit", "num_hidden_layers": 10_000_000}}, "more than the limit"),
    ],
)
def test_damaged_configurations_are_refused(changes, found, tmp_path):
    model = autoencoder()
    model.set_latents_statistics(torch.zeros(16), torch.ones(16))
    model.save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(InputError, match=found):
        open_tokenizer_folder(tmp_path)


def test_a_missing_description_of_the_encoder_is_named(tmp_path):
    autoencoder().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["encoder_config"]
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="config.json lacks encoder_config"):
        open_tokenizer_folder(tmp_path)


def test_missing_weights_of_the_encoder_are_refused(tmp_path):
    autoencoder().save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    save_file({name: value for name, value in weights.items() if "cls_token" not in name}, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match="missing"):
        open_tokenizer_folder(tmp_path)


def test_it_is_built_without_memory():
    config = autoencoder().config
    with torch.device("meta"):
        model = RepresentationAutoencoder.from_config(config)
        decoded = model.decode_raw_latents(model.encode_raw_latents(torch.empty(2, 3, 32, 32)))
    assert all(value.is_meta for value in model.state_dict().values())
    assert decoded.is_meta
    assert decoded.shape == (2, 3, 32, 32)
