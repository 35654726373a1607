"""The whole objective of the tokenizer against the published one (`vf_loss/generator_discriminator`), in two ways.

First as the paper writes it, a sum of losses that autograd differentiates as one; then as training takes it, piece by
piece. Between the losses stand convolutions instead of an autoencoder, as recorded.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alight.config import AlignmentConfig, ReconstructionConfig
from alight.losses import (
    hinge_discriminator_loss,
    vanilla_discriminator_loss,
)
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward, discriminator_backward
from helpers.recorded_networks import recorded_discriminator, recorded_lpips
from helpers.tokenizer_objective import tokenizer_objective

NAME = "vf_loss/generator_discriminator"
RELATIVE = 1e-4
DEFAULTS = {
    "kl_weight": 1.0,
    "perceptual_weight": 1.0,
    "disc_factor": 1.0,
    "disc_weight": 1.0,
    "disc_loss": "hinge",
    "logvar_init": 0.0,
    "pp_style": False,
    "vf_weight": 100.0,
    "adaptive_vf": False,
    "distmat_margin": 0.0,
    "cos_margin": 0.0,
    "distmat_weight": 1.0,
    "cos_weight": 1.0,
}


def configurations(settings):
    """The settings of a case under our names."""
    reconstruction = ReconstructionConfig(
        kl_weight=settings["kl_weight"],
        reduction="mean" if settings["pp_style"] else "sum",
        logvar=settings["logvar_init"],
        perceptual_weight=settings["perceptual_weight"],
        vgg16_weights="download",
        lpips_weights="download",
        adversarial_weight=settings["disc_weight"] if settings["disc_factor"] > 0 else 0.0,
        adversarial_loss=settings["disc_loss"],
    )
    alignment = AlignmentConfig(
        weight=settings["vf_weight"],
        adaptive=settings["adaptive_vf"],
        cosine_margin=settings["cos_margin"],
        distance_margin=settings["distmat_margin"],
        cosine_weight=settings["cos_weight"],
        distance_weight=settings["distmat_weight"],
    )
    return reconstruction, alignment


class Convolutions(nn.Module):
    """One convolution in place of the encoder and one in place of the decoder."""

    def __init__(self, tensors):
        super().__init__()
        self.factor = tensors["in.image"].shape[-1] // tensors["moments"].shape[-1]
        self.last_encoder_layer = nn.Parameter(tensors["param.enc.weight"].clone())
        self.last_decoder_layer = nn.Parameter(tensors["param.dec.weight"].clone())

    def posterior(self, images):
        moments = F.conv2d(images, self.last_encoder_layer, stride=self.factor)
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        std = (0.5 * logvar).exp()
        return SimpleNamespace(parameters=moments, mean=mean, logvar=logvar, std=std, deterministic=False)

    def decode_raw_latents(self, latents):
        return F.conv2d(F.interpolate(latents, scale_factor=self.factor), self.last_decoder_layer, padding=1)


class Case:
    """One recorded case: its settings, its networks, and comparison with what was recorded."""

    def __init__(self, name, tensors, description, lpips):
        self.name, self.tensors, self.recorded = name, tensors, description[name]
        self.settings = DEFAULTS | self.recorded["kwargs"]
        started = self.recorded["global_step"] >= self.settings["disc_start"]
        self.factor = self.settings["disc_factor"] * started
        self.vae = Convolutions(tensors)
        weight = tensors["param.linear_proj.weight"]
        self.projection = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
        self.projection.weight.data.copy_(weight)
        self.discriminator = recorded_discriminator(description, "discriminator.")
        self.lpips = lpips if self.settings["perceptual_weight"] > 0 else None
        self.networks = TokenizerNetworks(self.vae, self.projection, None, self.discriminator, self.lpips)
        self.features = tensors["in.aux"] if self.recorded["vf"] else None

    def check(self, value, expected, what):
        expected = torch.as_tensor(expected)
        atol = RELATIVE * float(expected.abs().max())
        torch.testing.assert_close(
            torch.as_tensor(value).detach(), expected, rtol=0, atol=atol, msg=lambda text: f"{self}.{what}: {text}"
        )

    def check_log(self, log, kind="log"):
        recorded = {key.removeprefix("train/"): value for key, value in self.recorded[kind].items()}
        assert set(log) == set(recorded)
        for key, value in recorded.items():
            self.check(log[key], value, key)

    def check_gradients(self, logvar=None):
        given = {
            "enc.weight": self.vae.last_encoder_layer,
            "dec.weight": self.vae.last_decoder_layer,
            "linear_proj.weight": self.projection.weight,
        }
        if logvar is not None:
            given["logvar"] = logvar
        for name, parameter in given.items():
            expected = self.tensors.get(f"{self}.grad.{name}")
            assert (expected is None) == (parameter.grad is None), f"{self}.{name}"
            if expected is not None:
                self.check(parameter.grad, expected, name)

    def check_discriminator(self):
        prefix = f"{self}.disc_grad."
        for name in (key.removeprefix(prefix) for key in self.tensors if key.startswith(prefix)):
            self.check(self.discriminator.get_parameter(name).grad, self.tensors[prefix + name], name)

    def check_statistics(self, moment):
        prefix = f"{self}.bn_after_{moment}."
        names = [key.removeprefix(prefix) for key in self.tensors if key.startswith(prefix)]
        assert names
        for name in names:
            self.check(self.discriminator.get_buffer(name), self.tensors[prefix + name], name)

    def __str__(self):
        return self.name


def case_names(description):
    return [name for name, value in description.items() if isinstance(value, dict) and "kwargs" in value]


@pytest.fixture(scope="module")
def cases(read_case):
    """Every recorded case, in the order of the file."""
    tensors, description = read_case(NAME)
    names = case_names(description)
    assert names
    assert {key.split(".")[0] for key in tensors if key.endswith(".gen_loss")} == set(names)
    lpips = recorded_lpips(description, "perceptual_loss.")
    return lambda: (Case(name, tensors, description, lpips) for name in names)


def test_networks_are_the_recorded_ones(cases):
    case = next(cases())
    tensors = case.tensors
    posterior = case.vae.posterior(tensors["in.image"])
    latents = posterior.mean + (0.5 * posterior.logvar).exp() * tensors["rand.noise"]
    case.check(posterior.parameters, tensors["moments"], "moments")
    case.check(case.vae.decode_raw_latents(latents), tensors["recon"], "recon")
    case.check(case.projection(latents), tensors["z_proj"], "z_proj")
    logits = case.discriminator.eval()(tensors["in.image"])
    case.check(logits, tensors["disc_logits_eval_on_image"], "logits")


def test_losses_of_every_case_by_autograd(cases):
    for case in cases():
        tensors, settings, images = case.tensors, case.settings, case.tensors["in.image"]
        logvar = torch.tensor(settings["logvar_init"], requires_grad=True)
        objective = tokenizer_objective(
            case.networks,
            images,
            tensors["rand.noise"],
            *configurations(settings),
            case.factor,
            features=case.features,
            logvar=logvar,
            sample_weights=tensors["in.sample_weights"] if case.recorded["sample_weights"] else None,
        )
        perceptual, norms = objective.perceptual, {}
        if settings["disc_factor"] > 0:
            norms |= zip(("nll_norm_dec", "g_norm_dec"), objective.norms["decoder"], strict=True)
        log = {
            "logvar": logvar,
            "kl_loss": objective.kl,
            "nll_loss": objective.reconstruction.unweighted,
            "rec_loss": objective.reconstruction.l1_per_pixel
            + (settings["perceptual_weight"] * perceptual.mean() if perceptual is not None else 0.0),
            "d_weight": objective.adversarial_weight,
            "disc_factor": case.factor,
            "g_loss": objective.adversarial,
        }
        if case.features is not None:
            log |= {"vf_loss": objective.alignment, "vf_weight": objective.alignment_weight}
        if settings["adaptive_vf"] and case.features is not None:
            norms |= zip(("nll_norm_enc", "vf_norm_enc"), objective.norms["encoder"], strict=True)
        case.check_statistics("gen")
        objective.total.backward()
        case.check(objective.total, tensors[f"{case}.gen_loss"], "gen_loss")
        case.check_log(log | {"total_loss": objective.total})
        assert set(norms) == set(case.recorded["grad_norms"])
        for name, expected in case.recorded["grad_norms"].items():
            case.check(norms[name], expected, name)
        case.check_gradients(logvar)

        case.discriminator.zero_grad()
        real, fake = case.discriminator(images), case.discriminator(objective.output.detach())
        losses = {"hinge": hinge_discriminator_loss, "vanilla": vanilla_discriminator_loss}
        loss = case.factor * losses[settings["disc_loss"]](real, fake)
        loss.backward()
        case.check(loss, tensors[f"{case}.disc_loss"], "disc_loss")
        log = {"disc_loss": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        case.check_log(log, "disc_log")
        case.check_discriminator()
        case.check_statistics("disc")


def test_training_step_of_every_case(cases):
    """The step of training, for all but sample weights and a learned log-variance, which training does not have."""
    for case in cases():
        if case.recorded["sample_weights"]:
            continue
        tensors, settings = case.tensors, case.settings
        images, noise = tensors["in.image"], tensors["rand.noise"]
        reconstruction, alignment = configurations(settings)
        step = autoencoder_backward(
            case.networks,
            images,
            noise,
            reconstruction,
            alignment,
            adversarial_factor=case.factor,
            features=case.features,
        )
        case.check_statistics("gen")
        assert all(parameter.grad is None for parameter in case.discriminator.parameters())
        case.check_gradients()
        scalars = step.scalars
        total = scalars["loss"] * (images[0].numel() if reconstruction.reduction == "sum" else 1)
        case.check(total, tensors[f"{case}.gen_loss"], "gen_loss")
        log = {
            "total_loss": total,
            "logvar": reconstruction.logvar,
            "kl_loss": scalars["kl"],
            "nll_loss": scalars["reconstruction"],
            "rec_loss": scalars["l1"] + settings["perceptual_weight"] * scalars.get("lpips", 0.0),
            "d_weight": scalars["adversarial_adaptive_weight"],
            "disc_factor": case.factor,
            "g_loss": scalars["adversarial"],
        }
        if case.features is not None:
            log["vf_loss"] = settings["cos_weight"] * scalars["mcos"] + settings["distmat_weight"] * scalars["mdms"]
            log["vf_weight"] = scalars["alignment_adaptive_weight"]
        case.check_log(log)
        assert torch.equal(step.images, images)
        case.check(step.reconstructions, tensors["recon"], "recon")

        scalars = discriminator_backward(
            case.discriminator, step.images, step.reconstructions, settings["disc_loss"], factor=case.factor
        )
        case.check(case.factor * scalars["discriminator"], tensors[f"{case}.disc_loss"], "disc_loss")
        log = {
            "disc_loss": case.factor * scalars["discriminator"],
            "logits_real": scalars["discriminator_real"],
            "logits_fake": scalars["discriminator_fake"],
        }
        case.check_log(log, "disc_log")
        case.check_discriminator()
        case.check_statistics("disc")
