"""The tokenizer's contract: normalised latents in and out, a diffusers folder on disk, and strict loading."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, configuration_utils
from safetensors.torch import load_file, save_file

from alight import VAVAE
from alight.interop.reference import export_tokenizer
from alight.models.latent_space import on_sphere
from alight.models.principal_components import start_from_principal_components
from alight.runtime.errors import InputError
from alight.runtime.seeding import seeded_initialisation
from helpers.models import tiny_tokenizer
from helpers.written import WEIGHTS


@pytest.fixture
def vae():
    model = tiny_tokenizer(block_out_channels=(16, 32), level_attention=True, mid_block_attention=True)
    model.set_latents_statistics(torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4))
    return model


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
    model = tiny_tokenizer(block_out_channels=(8,))
    with pytest.raises(InputError, match="no latents_mean"):
        model.decode_latents(torch.zeros(1, 4, 4, 4))


def test_unusable_folders(vae, tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        VAVAE.from_pretrained(tmp_path)
    vae.save_pretrained(tmp_path)
    weights = tmp_path / WEIGHTS
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
    path = tmp_path / WEIGHTS
    tensors = load_file(path)
    tensors["decoder.conv_out.bias"][0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"1 not finite \(decoder\.conv_out\.bias\)"):
        VAVAE.from_pretrained(tmp_path)


# --- folders of other makers

SD = {"block_out_channels": (16, 32), "norm_num_groups": 8, "latent_channels": 4, "sample_size": 32}
LEVELS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
FLUX = SD | {
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


@pytest.fixture(params=[SD | {"scaling_factor": 0.18215}, FLUX], ids=["Stable Diffusion", "Flux"])
def foreign(request):
    with seeded_initialisation(5):
        return AutoencoderKL(**request.param, **LEVELS).eval()


@torch.no_grad()
def test_folders_of_diffusers_scale_as_its_pipelines_do(foreign, images, tmp_path):
    foreign.save_pretrained(tmp_path)
    ours = VAVAE.from_pretrained(tmp_path)
    shift, scale = foreign.config.shift_factor or 0.0, foreign.config.scaling_factor
    theirs = (foreign.encode(images).latent_dist.mode() - shift) * scale
    torch.testing.assert_close(ours.encode_latents(images), theirs, rtol=1e-5, atol=1e-6)
    decoded = foreign.decode(theirs / scale + shift).sample
    torch.testing.assert_close(ours.decode_latents(theirs), decoded, rtol=1e-5, atol=1e-5)
    noise = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(3))
    posterior = foreign.encode(images).latent_dist
    sampled = (posterior.mean + posterior.std * noise - shift) * scale
    torch.testing.assert_close(
        ours.encode_latents(images, torch.Generator().manual_seed(3)), sampled, rtol=1e-5, atol=1e-6
    )


def test_statistics_take_the_place_of_a_scaling_factor(foreign, tmp_path):
    foreign.save_pretrained(tmp_path)
    ours = VAVAE.from_pretrained(tmp_path)
    mean, std = torch.linspace(-1, 1, 4).double(), torch.linspace(0.5, 2, 4).double()
    ours.set_latents_statistics(mean, std)
    ours.save_pretrained(tmp_path / "ours")
    again = VAVAE.from_pretrained(tmp_path / "ours")
    assert torch.equal(torch.stack(again.latents_statistics), torch.stack([mean, std]))
    assert (again.config.scaling_factor, again.config.shift_factor) == (1.0, None)  # pipelines would apply both
    with pytest.raises(InputError, match="latents of 4 channels"):
        ours.set_latents_statistics(mean[:3], std[:3])


@torch.no_grad()
def test_attention_under_its_old_names(foreign, images, tmp_path):
    """As in the files of the original Stable Diffusion; strictly, so that no weight is left random."""
    foreign.save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, value in load_file(path).items():
        for new_part, old_part in old.items():
            name = name.replace(f".{new_part}.", f".{old_part}.")
        tensors[name] = value
    assert sum(".query." in name for name in tensors) == 4  # weight and bias, encoder and decoder
    save_file(tensors, path)
    raw = VAVAE.from_pretrained(tmp_path).encode_raw_latents(images)
    assert torch.equal(raw, foreign.encode(images).latent_dist.mode())
    save_file({name: value for name, value in tensors.items() if ".query." not in name}, path)
    with pytest.raises(InputError, match=r"4 missing .*to_q"):
        VAVAE.from_pretrained(tmp_path)


def test_folders_that_hold_something_else(foreign, tmp_path):
    foreign.save_pretrained(tmp_path)
    weights = tmp_path / WEIGHTS
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"model\.bin is a pickle.*as safetensors"):
        VAVAE.from_pretrained(tmp_path)
    weights.with_suffix(".bin").rename(weights)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(InputError, match="holds a UNet2DConditionModel, not a VAVAE"):
        VAVAE.from_pretrained(tmp_path)


def test_a_hub_id_that_cannot_be_fetched(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="as a hub id it cannot be downloaded"):
        VAVAE.from_pretrained("nobody-at-all/no-such-tokenizer")


# --- statistics that do not fit


def latents_of(vae, images, mean, std):
    """Raw latents whose normalised version has about this mean and std."""
    generator = torch.Generator().manual_seed(images)
    recorded_mean, recorded_std = (value.float().view(1, -1, 1, 1) for value in vae.latents_statistics)
    shared = torch.randn(images, 4, 1, 1, generator=generator)  # images differ in their means, as real ones do
    normalised = (0.6 * shared + 0.8 * torch.randn(images, 4, 8, 8, generator=generator)) * std + mean
    return normalised * recorded_std + recorded_mean


@pytest.mark.parametrize("count", [1, 2, 8, 64])
def test_statistics_that_fit_are_accepted_for_any_batch(vae, count):
    vae.check_latents_statistics(latents_of(vae, count, mean=0.0, std=1.0))
    vae.check_latents_statistics(latents_of(vae, count, mean=0.3, std=1.5))


@pytest.mark.parametrize("count", [4, 64])
@pytest.mark.parametrize(("mean", "std"), [(2.5, 1.0), (0.0, 8.0), (0.0, 0.1)])
def test_statistics_that_do_not_fit_are_refused(vae, count, mean, std):
    with pytest.raises(InputError, match="--statistics data"):
        vae.check_latents_statistics(latents_of(vae, count, mean, std))


def test_a_forgotten_scaling_factor_is_noticed(foreign):
    model = VAVAE(**dict(foreign.config))
    model.register_to_config(scaling_factor=0.18215, shift_factor=None)
    unit = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    model.check_latents_statistics(unit / 0.18215)
    with pytest.raises(InputError, match="left out or applied twice"):
        model.check_latents_statistics(unit)


# --- latents on the sphere ------------------------------------------------------------------------------------------


@pytest.fixture
def round_vae():
    return tiny_tokenizer(block_out_channels=(16, 32), latent_space="sphere")


@torch.no_grad()
def test_latents_on_the_sphere_have_rms_one_and_are_points(round_vae, images):
    raw = round_vae.encode_raw_latents(images)
    torch.testing.assert_close(raw.square().mean(1).sqrt(), torch.ones(2, 8, 12), rtol=0, atol=2e-7)
    assert torch.equal(round_vae.encode_raw_latents(images, torch.Generator().manual_seed(3)), raw)
    posterior = round_vae.posterior(images)
    assert not posterior.std.any()
    assert (posterior.logvar == -30).all()
    plain = round_vae.encode(images).latent_dist.mean  # what diffusers alone gives
    torch.testing.assert_close(raw, plain / plain.square().mean(1, keepdim=True).sqrt())
    assert (plain.square().mean(1).sqrt() - 1).abs().min() > 1e-3


@torch.no_grad()
def test_latents_on_the_sphere_stay_there_in_narrow_weights_and_in_a_double(round_vae, images):
    for dtype, tolerance in ((torch.bfloat16, 2e-7), (torch.float64, 1e-15)):
        raw = round_vae.to(dtype).encode_raw_latents(images)
        assert (raw.square().mean(1).sqrt() - 1).abs().max() <= tolerance
        assert round_vae.decode_raw_latents(raw).dtype == dtype


def test_an_empty_vector_is_put_nowhere_and_has_a_gradient():
    latents = torch.zeros(1, 4, 1, 2)
    latents[0, :, 0, 1] = 1e-5
    result = on_sphere(latents.requires_grad_())
    assert result[0, :, 0, 0].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(result[0, :, 0, 1], torch.ones(4))
    result.sum().backward()
    assert latents.grad.isfinite().all()


def test_the_sphere_by_finite_differences():
    latents = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(on_sphere, (latents.requires_grad_(),))


@torch.no_grad()
def test_the_folder_records_the_sphere_and_diffusers_still_opens_it(round_vae, images, tmp_path, monkeypatch):
    round_vae.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["latent_space"] == "sphere"
    with monkeypatch.context() as patch:
        patch.setattr(configuration_utils.logger, "warning", lambda message: pytest.fail(message))
        again = VAVAE.from_pretrained(tmp_path)
    assert again.latent_space == "sphere"
    assert torch.equal(again.encode_raw_latents(images), round_vae.encode_raw_latents(images))
    other = AutoencoderKL.from_pretrained(tmp_path)
    mode = other.encode(images).latent_dist.mode()  # the projection is then the user's
    torch.testing.assert_close(on_sphere(mode), round_vae.encode_raw_latents(images), rtol=0, atol=0)
    other.save_pretrained(tmp_path / "by_diffusers")
    assert VAVAE.from_pretrained(tmp_path / "by_diffusers").latent_space == "sphere"


def test_a_folder_without_the_key_is_gaussian_and_an_unknown_space_is_refused(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "latent_space" not in config  # as written by earlier versions
    (tmp_path / "config.json").write_text(json.dumps(config | {"latent_space": "spher"}))
    with pytest.raises(InputError, match="Did you mean 'sphere'"):
        VAVAE.from_pretrained(tmp_path)


def test_the_published_layout_cannot_hold_the_sphere(round_vae, tmp_path):
    with pytest.raises(InputError, match="on the sphere"):
        export_tokenizer(round_vae, tmp_path / "vae.pt")


@torch.no_grad()
def test_an_encoder_of_principal_components_starts_the_same_before_the_sphere(images):
    found = []
    for latent_space in ("gaussian", "sphere"):
        vae = tiny_tokenizer(block_out_channels=(16, 32), latent_space=latent_space)
        start_from_principal_components(vae, images)
        found.append(vae.encoder_output(images))
    assert torch.equal(*found)
