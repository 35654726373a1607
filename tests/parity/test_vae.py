"""The tokenizer and its checkpoints against recordings of the published VA-VAE.

Tolerances are those of the recordings: about ten times the difference between the published model's own float32 and
float64 results.
"""

import hashlib
import json

import pytest
import torch

from alight.interop.reference import (
    infer_tokenizer_config,
    published_tokenizer_state_dict,
    tokenizer_from_published,
)
from alight.losses import kl_loss
from alight.models.vavae import VAVAE, DiagonalGaussianDistribution
from alight.runtime.errors import InputError
from alight.runtime.pixels import to_uint8
from helpers.closeness import assert_close
from helpers.portable_weights import portable_state, portable_tensor

CASES = ["vavae_res64", "vavae_res256", "marvae_res256", "vavae_nonvariational"]
OTHER_FILES = {"gaussian", "full_models"}
MOMENTS, IMAGES = 2e-5, 5e-5  # absolute
SUMS, GRADIENT, GAUSSIAN = 1e-5, 1e-3, 1e-6  # relative; the last two to the largest magnitude


def has_one_width(state):
    """Tell whether the latents are as wide as the encoder's output, as in AutoencoderKL."""
    channels, embedded = state["post_quant_conv.weight"].shape[:2]
    return channels == embedded


@pytest.fixture(scope="module", params=CASES)
def replay(request, read_case):
    """A tokenizer with the recorded weights, its images, and what it made of them."""
    tensors, case = read_case(f"vae/{request.param}")
    state = portable_state(case)
    if not has_one_width(state):
        pytest.skip("no counterpart in AutoencoderKL; another test shows that it is refused")
    rule = case["input_rule"]
    return tokenizer_from_published(state), portable_tensor(rule, rule["seed"]), tensors, case


def test_every_recorded_file_is_replayed(parity_dir):
    assert {path.stem for path in (parity_dir / "vae").iterdir()} == {*CASES, *OTHER_FILES}


def test_latents_of_another_width_than_the_encoders_output_are_refused(read_case):
    states = [portable_state(read_case(f"vae/{name}")[1]) for name in CASES]
    channels, embedded = states[0]["post_quant_conv.weight"].shape[:2]
    made = states[0] | {"post_quant_conv.weight": torch.zeros(channels, embedded + 1, 1, 1)}
    for state in (made, *(state for state in states if not has_one_width(state))):
        with pytest.raises(InputError, match="embed_dim"):
            tokenizer_from_published(state)


@torch.no_grad()
def test_posterior(replay):
    vae, images, tensors, _ = replay
    if "in.x" in tensors:
        assert torch.equal(images, tensors["in.x"])
    posterior = vae.posterior(images)
    sample = posterior.mean + posterior.std * tensors["rand.noise"]
    assert_close(posterior.parameters, tensors["out.moments"], "moments", atol=MOMENTS)
    assert_close(vae.encode_raw_latents(images), tensors["out.mode"], "mode", atol=MOMENTS)
    assert_close(sample, tensors["out.sample"], "sample", atol=IMAGES)
    assert_close(posterior.kl(), tensors["out.kl"], "kl", rel_max=SUMS)
    assert_close(posterior.nll(tensors["out.sample"]), tensors["out.nll_of_sample"], "nll", rel_max=SUMS)


@torch.no_grad()
def test_decoder_and_8_bit_images(replay):
    vae, _, tensors, _ = replay
    decoded = vae.decode_raw_latents(tensors["out.sample"])
    assert_close(decoded, tensors["out.decode_sample"], "decode_sample", atol=IMAGES)
    if "out.decode_mode" in tensors:
        assert_close(vae.decode_raw_latents(tensors["out.mode"]), tensors["out.decode_mode"], "mode", atol=IMAGES)
    expected = tensors["out.decode_to_images_uint8"]
    assert torch.equal(to_uint8(tensors["out.decode_sample"]), expected)
    difference = (to_uint8(decoded).int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


def test_gradients_of_reconstruction_and_kl(replay):
    vae, images, tensors, case = replay
    assert case["grad_loss"].startswith("mean((decode(sample)-x)^2) + 1e-3*sum(kl)/B")
    posterior = vae.posterior(images)
    sample = posterior.mean + posterior.std * tensors["rand.noise"]
    error = (vae.decode_raw_latents(sample) - images).square().mean()
    (error + 1e-3 * kl_loss(posterior.mean, posterior.logvar)).backward()
    gradients = VAVAE.from_config(vae.config)  # a tokenizer made of gradients tells their published names
    gradients.load_state_dict({name: parameter.grad for name, parameter in vae.named_parameters()})
    vae.zero_grad()
    recorded = {name.removeprefix("grad."): value for name, value in tensors.items() if name.startswith("grad.")}
    assert recorded
    for name, expected in recorded.items():
        gradient = published_tokenizer_state_dict(gradients)[name]
        assert_close(gradient[: len(expected)], expected, name, rel_max=GRADIENT)


def test_weights_come_back_in_published_order(replay):
    vae, _, _, case = replay
    published, recorded = published_tokenizer_state_dict(vae), portable_state(case)
    assert list(published) == list(recorded)
    assert all(torch.equal(published[name], value) for name, value in recorded.items())


def test_gaussian(read_case):
    given, _ = read_case("vae/gaussian")
    posterior = DiagonalGaussianDistribution(given["parameters"])
    other = DiagonalGaussianDistribution(given["other_parameters"])
    elementwise = posterior.mean.square() + posterior.var - 1 - posterior.logvar
    quantities = {
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "std": posterior.std,
        "var": posterior.var,
        "kl": posterior.kl(),
        "kl_other": posterior.kl(other),
        "kl_no_sum": elementwise,
        "nll": posterior.nll(given["nll_sample"]),
    }
    deterministic = DiagonalGaussianDistribution(given["parameters"], deterministic=True)
    quantities |= {"det.std": deterministic.std, "det.kl": deterministic.kl()}
    assert quantities.keys() == given.keys() - {"parameters", "other_parameters", "nll_sample"}
    for name, value in quantities.items():
        assert_close(value, given[name], name, rel_max=GAUSSIAN)
    mean_kl = kl_loss(posterior.mean, posterior.logvar)
    assert mean_kl.item() == pytest.approx(given["kl"].mean().item(), rel=GAUSSIAN)


def build_like(vae_config, described):
    """The tokenizer of a described size; without its key list, only attention and channels differ from the first."""
    config = {**vae_config, "latent_channels": described["embed_dim"]}
    if described.get("model_type") == "marvae":
        config["up_block_types"] = ("UpDecoderBlock2D",) * len(config["block_out_channels"])
    with torch.device("meta"):
        vae = VAVAE(**config)
    return vae.to_empty(device="cpu")  # memory that nobody touches


def test_published_sizes(read_case):
    _, sizes = read_case("vae/full_models")
    listed = {name: size for name, size in sizes.items() if "state_keys" in size}
    for name, size in listed.items():
        state = {key: torch.empty(shape, device="meta") for key, shape in size["state_keys"]}
        config = infer_tokenizer_config(state, source=name)
        published = published_tokenizer_state_dict(build_like(config, size))
        assert [[key, list(value.shape)] for key, value in published.items()] == size["state_keys"]
    config = VAVAE.build().config
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    for name, size in sizes.items():
        if "state_sha256" not in size:
            continue
        vae = build_like(config, size)
        shapes = [[key, list(value.shape)] for key, value in published_tokenizer_state_dict(vae).items()]
        assert len(shapes) == size["n_keys"], name
        assert hashlib.sha256(json.dumps(shapes).encode()).hexdigest() == size["state_sha256"], name
        for part in ("encoder", "decoder", "quant_conv", "post_quant_conv"):
            counted = sum(parameter.numel() for parameter in getattr(vae, part).parameters())
            assert counted == size[f"params_{part}"], (name, part)
        assert sum(parameter.numel() for parameter in vae.parameters()) == size["params_total"], name


def test_what_only_training_needs_is_passed_over(read_case):
    _, sizes = read_case("vae/full_models")
    _, case = read_case(f"vae/{CASES[0]}")
    state = portable_state(case)
    extras = [size["extra_keys"] for size in sizes.values() if "extra_keys" in size]
    assert extras
    for keys in extras:
        extended = state | {key: torch.zeros(shape) for key, shape in keys}
        extended["foundation_model.model.blocks.0.attn.qkv.weight"] = torch.zeros(3, 1)
        vae = tokenizer_from_published(extended)
        assert all(
            torch.equal(vae.state_dict()[n], v) for n, v in tokenizer_from_published(state).state_dict().items()
        )
    with pytest.raises(InputError, match=r"1 unexpected \(encoder.head.weight\)"):
        tokenizer_from_published(state | {"encoder.head.weight": torch.zeros(1)})
