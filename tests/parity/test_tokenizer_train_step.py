"""Whole training batches of the real tokenizer against recordings (`vf_loss/train_step`, `train_step_gan`).

Autoencoder, projection, LPIPS, discriminator and both optimizers from the recorded weights; the foundation model is
the linear one of the recordings. Tolerances are those of the recordings.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
from test_foundation_recorded import RecordedViT
from torch import nn

from alight.config import AlignmentConfig, OptimizerConfig, ReconstructionConfig
from alight.interop.reference import published_tokenizer_state_dict, tokenizer_from_published
from alight.models.foundation import FoundationModel
from alight.training.optimizer import make_optimizer, optimizer_step
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward, discriminator_backward
from helpers.portable_weights import portable_tensor
from helpers.recorded_networks import recorded_discriminator, recorded_lpips, recorded_state

DINOV2_PATCH = 14
LOOSE_LOGS, LOOSE_GRADIENTS = (1e-3, 1e-2), (1e-2, 0.15)  # relative, of the first batch and of the second
TIGHT_LOGS = 1e-4  # relative: the plain losses of the first batch
STATISTICS = 1e-4  # relative to the largest
PLAIN_LOSSES = ("kl_loss", "nll_loss", "rec_loss", "g_loss", "vf_loss", "logits_real", "logits_fake")
NOT_OF_THE_NETWORK = ("loss.", "linear_proj.")


def build(case):
    """The networks of a recording."""
    weights = [rule for rule in case["weights"] if not rule["name"].startswith(NOT_OF_THE_NETWORK)]
    vae = tokenizer_from_published(recorded_state(case | {"weights": weights})).train()
    weight = recorded_state(case, "linear_proj.")["weight"]
    projection = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
    projection.load_state_dict({"weight": weight})
    rule = case["fake_vit"]["rule"]
    vit = RecordedViT(portable_tensor(rule, rule["seed"]), DINOV2_PATCH)
    return TokenizerNetworks(
        vae,
        projection,
        FoundationModel(vit, input_mode="published"),
        recorded_discriminator(case, "loss.discriminator."),
        recorded_lpips(case, "loss.perceptual_loss."),
    )


def of_autoencoder(networks, what):
    """What `what` gives for the parameters of the autoencoder and the projection, under the published names, flat."""
    vae = copy.deepcopy(networks.vae).requires_grad_(False)
    for own, parameter in zip(vae.parameters(), networks.vae.parameters(), strict=True):
        own.copy_(what(parameter))
    view = published_tokenizer_state_dict(vae) | {"linear_proj.weight": what(networks.projection.weight)}
    return {name: value.detach().clone().flatten() for name, value in view.items()}


def of_discriminator(networks, what):
    """The same of the discriminator."""
    named = networks.discriminator.named_parameters()
    return {f"loss.discriminator.{name}": what(parameter).detach().clone().flatten() for name, parameter in named}


def value(parameter):
    return parameter


def gradient(parameter):
    return parameter.grad


@dataclass
class Batch:
    """What one batch left behind, under the recorded names."""

    logs: dict[str, float]
    gradients: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    statistics: dict[str, torch.Tensor]


def replay(tensors, case):
    """Train on the recorded batches."""
    networks, settings = build(case), case["lossconfig"]
    optimization = OptimizerConfig(lr=case["learning_rate"], betas=(0.5, 0.9), max_grad_norm=None)
    reconstruction = ReconstructionConfig(
        kl_weight=settings["kl_weight"],
        logvar=settings["logvar_init"],
        vgg16_weights="download",
        lpips_weights="download",
        adversarial_weight=settings["disc_weight"],
    )
    alignment = AlignmentConfig(
        weight=settings["vf_weight"],
        adaptive=settings["adaptive_vf"],
        cosine_margin=settings["cos_margin"],
        distance_margin=settings["distmat_margin"],
    )
    players = [
        make_optimizer([*networks.vae.named_parameters(), *networks.projection.named_parameters()], optimization),
        make_optimizer(networks.discriminator.named_parameters(), optimization),
    ]
    batches = []
    for index in range(len(case["logs"])):
        rule = case["image_rule"] | {"name": case["image_rule"]["name"].format(step=index)}
        images = portable_tensor(rule, rule["seed"]).permute(0, 3, 1, 2)
        # the published trainer counts the steps of both optimizers
        steps = [case.get("global_step_start", 0) + 2 * index + player for player in range(2)]
        factors = [float(step >= settings["disc_start"]) for step in steps]
        step = autoencoder_backward(
            networks, images, tensors[f"step{index}.noise"], reconstruction, alignment, adversarial_factor=factors[0]
        )
        gradients = of_autoencoder(networks, gradient)
        optimizer_step(players[0], optimization.lr, None)
        judged = discriminator_backward(
            networks.discriminator, step.images, step.reconstructions, "hinge", factor=factors[1]
        )
        gradients |= of_discriminator(networks, gradient)
        optimizer_step(players[1], optimization.lr, None)
        total = float(step.scalars["loss"]) * images[0].numel()
        lost = factors[1] * judged["discriminator"]
        logs = {
            "aeloss": total,
            "total_loss": total,
            "logvar": reconstruction.logvar,
            "kl_loss": step.scalars["kl"],
            "nll_loss": step.scalars["reconstruction"],
            "rec_loss": step.scalars["l1"] + step.scalars["lpips"],
            "d_weight": step.scalars["adversarial_adaptive_weight"],
            "disc_factor": factors[0],
            "g_loss": step.scalars["adversarial"],
            "vf_loss": step.scalars["mcos"] + step.scalars["mdms"],
            "vf_weight": step.scalars["alignment_adaptive_weight"],
            "discloss": lost,
            "disc_loss": lost,
            "logits_real": judged["discriminator_real"],
            "logits_fake": judged["discriminator_fake"],
        }
        batches.append(
            Batch(
                {name: float(number) for name, number in logs.items()},
                gradients,
                of_autoencoder(networks, value) | of_discriminator(networks, value),
                {name: buffer.clone() for name, buffer in networks.discriminator.named_buffers()},
            )
        )
    return batches


@pytest.fixture(scope="module", params=["train_step", "train_step_gan"])
def replayed(request, read_case):
    tensors, case = read_case(f"vf_loss/{request.param}")
    return replay(tensors, case), tensors, case


def recorded(tensors, index, kind):
    """The recorded tensors of one kind, by name."""
    prefix = f"step{index}.{kind}."
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    assert found, prefix
    return found


def test_logs(replayed):
    batches, _, case = replayed
    for index, (batch, logs) in enumerate(zip(batches, case["logs"], strict=True)):
        expected = {name.removeprefix("train/"): value for name, value in logs.items()}
        assert set(batch.logs) == set(expected)
        for name, value in expected.items():
            loose = LOOSE_LOGS[min(index, 1)]
            rel = TIGHT_LOGS if index == 0 and name in PLAIN_LOSSES else loose
            assert batch.logs[name] == pytest.approx(value, rel=rel, abs=0), (index, name)


def test_gradients(replayed):
    batches, tensors, _ = replayed
    for index, batch in enumerate(batches):
        for name, expected in recorded(tensors, index, "grad").items():
            bound = LOOSE_GRADIENTS[min(index, 1)] * expected.abs().max()
            error = (batch.gradients[name][: len(expected)] - expected).abs().max()
            assert error <= bound, f"batch {index}, {name}: {error:.1e} > {bound:.1e}"


def test_running_statistics(replayed):
    batches, tensors, _ = replayed
    for index, batch in enumerate(batches):
        for name, expected in recorded(tensors, index, "bn").items():
            error, bound = (batch.statistics[name] - expected).abs().max(), STATISTICS * expected.abs().max()
            assert error <= bound, f"batch {index}, {name}: {error:.1e} > {bound:.1e}"


def test_weights(replayed):
    """Adam's first steps are nearly signs, so weights of tiny gradient may go the other way."""
    batches, tensors, case = replayed
    for index, batch in enumerate(batches):
        found = recorded(tensors, index, "after")
        differences = torch.cat(
            [(batch.weights[name][: len(expected)] - expected).abs() for name, expected in found.items()]
        )
        assert differences.median() <= 1e-6
        assert (differences <= 1e-5).float().mean() >= 0.85
        assert differences.max() <= 2.1 * case["learning_rate"] * (index + 1)
