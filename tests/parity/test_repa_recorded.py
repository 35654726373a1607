"""Projectors, normalised targets and losses against recordings of REPA and iREPA, gradients included."""

import pytest
import torch

from alight.flow import LinearPath, flow_matching_loss
from alight.losses import spatial_norm, token_alignment_loss
from alight.models.position import Grid
from alight.models.token_projector import TokenConvolution, TokenMLP
from helpers.closeness import assert_close

CASES = (
    *("repa_one", "repa_two", "repa_zero_token"),
    *("irepa_conv3", "irepa_conv3_gamma1", "irepa_conv1", "irepa_mlp"),
)
LAYERS = {"0": "linear_1", "2": "linear_2", "4": "linear_3"}  # the position of a layer in the published MLP
REL_MAX = 1e-5


def published(tensors, prefix):
    """The tensors below a prefix under our names: those of an MLP, or of a convolution."""
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    found = {name.removeprefix("projection_layer."): value for name, value in found.items()}
    renamed = {}
    for name, value in found.items():
        layer, _, rest = name.rpartition(".")
        renamed[f"{LAYERS[layer]}.{rest}" if layer else f"conv.{rest}"] = value
    return renamed


def projector_with(weights, grid):
    """The projector that these weights belong to."""
    if "conv.weight" in weights:
        features, width, kernel, _ = weights["conv.weight"].shape
        projector = TokenConvolution(width, features, grid, kernel)
    else:
        hidden, width = weights["linear_1.weight"].shape
        projector = TokenMLP(width, len(weights["linear_3.bias"]), hidden)
    projector.load_state_dict(weights)
    return projector


def weights_of(tensors, projector, number):
    """The recorded weights of a projector by the name that the losses give it."""
    if projector in ("conv1", "conv3"):
        return published(tensors, f"sd_{projector}.")
    return published(tensors, f"sd.projectors.{number}.")


@pytest.fixture(scope="module")
def recorded(read_case):
    tensors, description = read_case("repa/projectors")
    return tensors, Grid(*description["grid"])


@pytest.mark.parametrize("name", ["mlp0", "mlp1", "conv3", "conv1"])
def test_projectors(recorded, name):
    tensors, grid = recorded
    kind, number = (name, 0) if name.startswith("conv") else ("mlp", int(name[-1]))
    with torch.no_grad():
        found = projector_with(weights_of(tensors, kind, number), grid)(tensors["in.hidden"])
    torch.testing.assert_close(found, tensors[f"out.{name}"], rtol=0, atol=1e-5)


def test_spatial_norm(read_case):
    tensors, description = read_case("repa/spatial_norm")
    names = [name for name in tensors if name.startswith("out.")]
    assert names
    for name in names:
        constant = name.startswith("out.constant.")
        features = tensors["in.features_constant" if constant else "in.features"]
        found = spatial_norm(features, float(name.rpartition("gamma")[2]))
        rtol = 1e-5 if constant else 0.0  # a channel without variation becomes huge
        torch.testing.assert_close(found, tensors[name], rtol=rtol, atol=1e-5, msg=name)
    assert description["method"] == "zscore"


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients(read_case, recorded, name):
    tensors, description = read_case("repa/losses")
    case, (weights, grid) = description["cases"][name], recorded
    kinds = [kind_of(name) for _ in case["targets"]]
    projectors = [projector_with(weights_of(weights, kind, number), grid) for number, kind in enumerate(kinds)]
    hidden, gamma = tensors["in.hidden"].clone().requires_grad_(), case["spatial_norm_gamma"]
    terms = []
    for projector, target in zip(projectors, case["targets"], strict=True):
        features = tensors[f"in.{target}"]
        features = features if gamma is None else spatial_norm(features, gamma)
        terms.append(token_alignment_loss(projector(hidden), features))
    loss = torch.stack(terms).mean()
    assert loss.item() == pytest.approx(case["projection_loss"], abs=1e-6)
    total = denoising(tensors).mean() + case["coefficient"] * loss
    assert total.item() == pytest.approx(case["total"], rel=1e-5)
    total.backward()
    assert_close(hidden.grad, tensors[f"{name}.grad.hidden"], "hidden", rel_max=REL_MAX)
    for number, projector in enumerate(projectors):
        expected = published(tensors, f"{name}.grad.projectors.{number}.")
        found = {key: parameter.grad for key, parameter in projector.named_parameters()}
        assert found.keys() == expected.keys()
        for key, gradient in found.items():
            assert_close(gradient, expected[key], key, rel_max=REL_MAX)


def kind_of(name):
    """The projector of a recorded loss."""
    return next((kind for kind in ("conv3", "conv1") if kind in name), "mlp")


def denoising(tensors):
    """The recorded denoising loss of each image; its time runs from data to noise and its velocity the other way."""
    images, noise, t = tensors["in.images"], tensors["rand.noise"], tensors["rand.t"].flatten()

    def model(x, time, _):
        """The recorded model, whose answer is turned round and which is told the time of noise."""
        answer = x.flatten(1) @ tensors["in.W"].T + (1 - time)[:, None] * tensors["in.b"]
        return -answer.view_as(x)

    loss = flow_matching_loss(model, images, None, path=LinearPath(), cosine_weight=0.0, t=1 - t, x_0=noise)
    torch.testing.assert_close(loss.mse_per_sample, tensors["out.denoising"], rtol=1e-5, atol=1e-6)
    return loss.mse_per_sample
