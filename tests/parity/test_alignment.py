"""The alignment terms and LPIPS against recordings of the published losses (`vf_loss/`)."""

import pytest
import torch

from alight.losses import marginal_cosine_loss, marginal_distance_matrix_loss
from alight.models.perceptual import stage_distance
from helpers.recorded_networks import recorded_lpips


def test_alignment_terms(read_case):
    tensors, description = read_case("vf_loss/terms")
    margins = {name: value for name, value in description.items() if name != "weights"}
    assert margins
    for margin, values in margins.items():
        for weights, (distance_weight, cosine_weight) in description["weights"].items():
            z = tensors["in.z"].clone().requires_grad_()
            loss = distance_weight * marginal_distance_matrix_loss(z, tensors["in.aux"], values["distmat_margin"])
            loss = loss + cosine_weight * marginal_cosine_loss(z, tensors["in.aux"], values["cos_margin"])
            loss.backward()
            case = f"{margin}.{weights}"
            torch.testing.assert_close(loss, tensors[f"{case}.vf_loss"], rtol=1e-6, atol=1e-6, msg=case)
            torch.testing.assert_close(z.grad, tensors[f"{case}.grad_z"], rtol=1e-6, atol=1e-6, msg=case)


@pytest.fixture(scope="module")
def lpips(read_case):
    tensors, description = read_case("vf_loss/lpips")
    return recorded_lpips(description), tensors


def test_lpips(lpips):
    model, tensors = lpips
    a = tensors["in.a"].clone().requires_grad_()
    distance = model(a, tensors["in.b"])
    torch.testing.assert_close(distance, tensors["out.lpips"], rtol=0, atol=1e-5)
    distance.sum().backward()
    scale = float(tensors["grad.a"].abs().max())
    torch.testing.assert_close(a.grad, tensors["grad.a"], rtol=0, atol=1e-4 * scale)


@torch.no_grad()
def test_lpips_stage_by_stage(lpips):
    model, tensors = lpips
    a, b = ((tensors[name] - model.shift) / model.scale for name in ("in.a", "in.b"))
    torch.testing.assert_close(a, tensors["scaled_a"], rtol=0, atol=1e-5)
    assert sum(name.startswith("layer") and name.endswith(".value") for name in tensors) == len(model.stages)
    for index, (stage, weight) in enumerate(zip(model.stages, model.linear, strict=True)):
        for layer in list(model.features)[stage]:
            a, b = layer(a), layer(b)
        means = tensors[f"layer{index}.feat_mean_per_channel_a"]
        torch.testing.assert_close(a.mean((0, 2, 3)), means, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stage_distance(a, b, weight), tensors[f"layer{index}.value"], rtol=0, atol=1e-5)


def test_stage_distance_of_given_features(lpips):
    _, tensors = lpips
    cases = sorted({name.split(".")[0] for name in tensors if name.startswith("fake")})
    assert cases
    for case in cases:
        x, y, weight, expected = (tensors[f"{case}.{name}"] for name in ("f0", "f1", "lin", "value"))
        torch.testing.assert_close(stage_distance(x, y, weight), expected, rtol=0, atol=1e-5, msg=case)
