"""Training a decoder for a frozen encoder: the gradient, what it costs, what waits for a device, refusals."""

import pytest
import torch

from alight import RepresentationAutoencoder
from alight.config import ExtractLatentsConfig, PlanConfig, TrainTokenizerConfig
from alight.config.recipes import load_config
from alight.models.foundation import FoundationModel
from alight.plan.inputs import Inputs
from alight.plan.passes import Passes
from alight.plan.workload import TokenizerWorkload
from alight.runtime.errors import InputError
from alight.runtime.seeding import seeded_initialisation
from alight.stages.extract_latents import encode
from alight.studies.quickstart import wire
from alight.training import tokenizer_networks
from alight.training.latent_regularisation import draw_regularisation
from alight.training.tokenizer_flops import tokenizer_flops
from alight.training.tokenizer_step import autoencoder_backward
from helpers.meta_device import META, AcceleratorRules
from helpers.models import tiny_vit

CPU = torch.device("cpu")
FROZEN = {"foundation": "unused", "patch_size": 8, "hidden_size": 16, "num_layers": 2, "num_heads": 2}


def configure(**options):
    values = {
        "images": {"source": "digits", "size": 32},
        "frozen_encoder": FROZEN,
        "alignment": {"weight": 0},
        "reconstruction": {"perceptual_weight": 0, "adversarial_weight": 0},
        "training": {"steps": 2, "global_batch_size": 4, "ema_decay": None},
    }
    return TrainTokenizerConfig.model_validate(values | options)


def networks_of(config, device=CPU):
    with seeded_initialisation(0):
        encoder = FoundationModel(tiny_vit(), (0.5,) * 3, (0.5,) * 3)
        vae = tokenizer_networks.new_tokenizer(config, encoder)
    return tokenizer_networks.build_networks(config, device, vae, None, None)


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def backward(networks, images, config, factor=None, regularisation=None):
    noise = torch.randn(4, 16, 4, 4, generator=torch.Generator().manual_seed(2)).to(images.device)
    losses = config.reconstruction, config.alignment
    return autoencoder_backward(
        networks, images, noise, *losses, adversarial_factor=factor, regularisation=regularisation
    )


def test_settings_that_a_frozen_encoder_makes_no_use_of_are_told():
    assert tokenizer_networks.unused_settings(configure()) == []
    assert tokenizer_networks.unused_settings(configure(reconstruction={"kl_weight": 0, "perceptual_weight": 0})) == []
    both = configure(model={"latent_channels": 8}, reconstruction={"kl_weight": 1e-4, "perceptual_weight": 0})
    assert tokenizer_networks.unused_settings(both) == ["model", "reconstruction.kl_weight"]
    trained = configure(frozen_encoder={}, model={"latent_channels": 8})
    assert tokenizer_networks.unused_settings(trained) == []


def test_the_gradient_is_that_of_the_reconstruction_alone(images):
    config = configure()
    networks = networks_of(config)
    result = backward(networks, images, config)
    found = {name: weight.grad for name, weight in networks.vae.named_parameters()}
    networks.vae.zero_grad()
    decoded = networks.vae.decode_raw_latents(networks.vae.encode_raw_latents(images))
    loss = (decoded - images).abs().sum() / len(images)
    loss.backward()
    assert "kl" not in result.scalars
    torch.testing.assert_close(result.scalars["reconstruction"], loss.detach(), rtol=1e-5, atol=0)
    for name, weight in networks.vae.named_parameters():
        assert (found[name] is None) == name.startswith("encoder."), name
        if weight.grad is not None:
            torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_noise_is_added_to_what_is_decoded(images):
    config = configure(regularisation={"noise": 0.5})
    networks = networks_of(config)
    changed = draw_regularisation(config.regularisation, (4, 16, 4, 4), 8, torch.Generator().manual_seed(3))
    result = backward(networks, images, config, regularisation=changed)
    latents = networks.vae.encode_raw_latents(images) + changed.noise
    torch.testing.assert_close(result.reconstructions, networks.vae.decode_raw_latents(latents).detach())
    assert changed.noise.std() > 0.01


def test_the_discriminator_is_weighed_at_the_last_linear_map(images):
    config = configure(reconstruction={"perceptual_weight": 0, "adversarial_weight": 0.5})
    networks = networks_of(config)
    scalars = backward(networks, images, config, factor=1.0).scalars
    assert 0 < scalars["adversarial_adaptive_weight"] < 1e4
    assert networks.vae.last_decoder_layer.grad.any()


def test_the_cost_of_a_step_can_be_counted():
    config = configure()
    networks = networks_of(config)
    flops = tokenizer_flops(config, networks, False, False, False)
    decoder = sum(weight.numel() for layer in networks.vae.decoder.decoder_layers for weight in layer.parameters())
    encoder = sum(weight.numel() for block in networks.vae.blocks[:1] for weight in block.parameters())
    tokens = 17  # with that of the class
    assert 2 * tokens * (3 * decoder + encoder) * 0.8 < flops < 2 * tokens * (3 * decoder + encoder) * 2.5


def test_nothing_waits_for_a_device_in_training_and_extraction(images):
    config = configure(reconstruction={"perceptual_weight": 0, "adversarial_weight": 0.5})
    with AcceleratorRules() as rules:
        networks = networks_of(config, META)
        scalars = backward(networks, images.to(META), config, factor=1.0).scalars
        assert all(value.device == META for value in scalars.values())
        with torch.no_grad():
            extraction = ExtractLatentsConfig(posterior="sample", precision="fp32")
            encoded = encode(networks.vae, images.to(META), range(4), extraction)
        assert all(value.device == META for value in encoded.values())
        assert not rules.waits


def test_samples_of_a_posterior_without_width_are_the_latents(images):
    vae = networks_of(configure()).vae
    with torch.no_grad():
        encoded = encode(vae, images, range(4), ExtractLatentsConfig(posterior="sample", flips=True, precision="fp32"))
        torch.testing.assert_close(encoded["latents"], vae.encode_raw_latents(images), rtol=0, atol=1e-6)
        mirrored = vae.encode_raw_latents(images.flip(-1))
        torch.testing.assert_close(encoded["latents_flip"], mirrored, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alignment": {"weight": 0.1}}, "leaves nothing to align"),
        ({"stages": [{"steps": 2, "alignment_weight": 0.5}]}, "leaves nothing to align"),
        ({"regularisation": {"equivariance_probability": 0.5}}, "no loss can change"),
        ({"init_from": "somewhere"}, "leave frozen_encoder.foundation out"),
        ({"images": {"source": "digits", "size": 36}}, "not a multiple of frozen_encoder.patch_size 8"),
        ({"training": {"activation_checkpointing": True}}, "no activation_checkpointing"),
        ({"frozen_encoder": FROZEN | {"num_heads": 3}}, "not a multiple of num_heads 3"),
    ],
)
def test_settings_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        configure(**options)


def test_the_autoencoder_of_the_section_model_plays_no_part():
    """So that a row of an ablation need name nothing but the encoder."""
    config = configure(model={"block_out_channels": [8] * 7})
    assert isinstance(networks_of(config).vae, RepresentationAutoencoder)


def test_a_model_without_a_folder_says_so():
    with pytest.raises(InputError, match="nowhere"):
        tokenizer_networks.new_tokenizer(configure(frozen_encoder=FROZEN | {"foundation": "./nowhere"}))


def test_a_quickstart_takes_its_own_foundation_model(tmp_path):
    config = load_config("digits/frozen_encoder").model_copy(update={"output": tmp_path})
    tokenizer = wire(config)["tokenizer"]
    assert tokenizer.frozen_encoder.foundation == str(tmp_path / "foundation")
    assert not tokenizer.alignment.enabled


def test_a_plan_measures_the_real_networks():
    plan = load_config("digits/frozen_encoder")
    jobs = tuple(wire(plan).values())
    inputs = Inputs(PlanConfig(), jobs)
    vae = inputs.tokenizer(plan.output / "tokenizer")
    assert isinstance(vae, RepresentationAutoencoder)
    assert (vae.config.latent_channels, vae.downsampling_factor, vae.config.sample_size) == (64, 8, 16)
    tokenizer = next(job for job in jobs if isinstance(job, TrainTokenizerConfig))
    workload = TokenizerWorkload(tokenizer, CPU, 16, inputs)
    encoder = sum(weight.numel() for weight in vae.encoder.parameters())
    assert workload.frozen_parameters == encoder
    passes = Passes(CPU, 0.05, lambda note: pytest.fail(note))
    assert passes.encoding(vae, 16, 4) > 0
    assert passes.decoding(vae, 16, 4) > 0
