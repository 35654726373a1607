"""The objective against its definition, written out by hand for single numbers."""

import pytest
import torch
from torch.nn import functional as F

from alight.flow import GVPPath, LinearPath, VPPath, flow_matching_loss
from alight.runtime.errors import InputError

PATHS = [LinearPath(), GVPPath(), VPPath()]
LABELS = torch.tensor([0, 1, 2, 3])
T = torch.tensor([0.1, 0.35, 0.6, 0.9], dtype=torch.float64)


def named(path):
    return type(path).__name__


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_1, x_0, error = (torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    return x_1, x_0, 0.1 * error


def rows(values):
    return values.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("path", PATHS, ids=named)
def test_the_true_velocity_has_no_loss(path):
    x_1, x_0, _ = batch()
    truth = path.sample(x_1, x_0, T).velocity
    loss = flow_matching_loss(lambda x, t, y: truth, x_1, LABELS, path=path, t=T, x_0=x_0)
    assert loss.mse == 0
    assert loss.cosine.abs() < 1e-15
    assert loss.total.abs() < 1e-15


def test_the_model_sees_the_point_the_time_and_the_label():
    x_1, x_0, _ = batch()
    seen = {}

    def model(x, t, class_labels):
        seen.update(x=x, t=t, class_labels=class_labels)
        return x

    loss = flow_matching_loss(model, x_1, LABELS, path=LinearPath(), t=T, x_0=x_0)
    torch.testing.assert_close(seen["x"], rows(T) * x_1 + (1 - rows(T)) * x_0)
    assert seen["t"] is T
    assert seen["class_labels"] is LABELS
    assert loss.t is T
    assert loss.prediction is seen["x"]


def test_parts_by_hand():
    # One position, two channels: target x_1 - x_0 = (1, 0), prediction (3, 4): squared errors 4 and 16, cosine 3/5.
    x_1, x_0 = torch.tensor([[[[1.0]], [[0.0]]]]), torch.zeros(1, 2, 1, 1)
    prediction = torch.tensor([[[[3.0]], [[4.0]]]])
    loss = flow_matching_loss(
        lambda x, t, y: prediction, x_1, None, path=LinearPath(), t=torch.tensor([0.5]), x_0=x_0, cosine_weight=0.25
    )
    assert loss.mse_per_sample.tolist() == pytest.approx([10.0])
    assert loss.cosine_per_sample.tolist() == pytest.approx([0.4])
    assert loss.total.item() == pytest.approx(10.1)


def test_cosine_is_over_channels_and_averaged_over_positions():
    x_1, x_0, error = batch()
    path = LinearPath()
    truth = path.sample(x_1, x_0, T).velocity
    loss = flow_matching_loss(lambda x, t, y: truth + error, x_1, LABELS, path=path, t=T, x_0=x_0)
    a, b = (v.permute(0, 2, 3, 1).reshape(4, 4, 3) for v in (truth, truth + error))
    by_hand = 1 - torch.einsum("npc,npc->np", a, b) / (a.norm(dim=2) * b.norm(dim=2))
    torch.testing.assert_close(loss.cosine_per_sample, by_hand.mean(1))


@pytest.mark.parametrize("path", PATHS, ids=named)
@pytest.mark.parametrize("prediction", ["noise", "score"])
def test_weights_mean_what_they_are_called(path, prediction):
    """A mistake in noise or score costs as much as its velocity error, or as its share of the likelihood bound."""
    x_1, x_0, error = batch()
    sigma, coefficient = rows(path.sigma(T)), rows(path.score_coefficient(T))
    output = x_0 + error if prediction == "noise" else -(x_0 + error) / sigma

    def loss(weight):
        model = lambda x, t, y: output  # noqa: E731
        return flow_matching_loss(
            model, x_1, LABELS, path=path, prediction=prediction, loss_weight=weight, t=T, x_0=x_0
        )

    def mean(values):
        return values.flatten(1).mean(1)

    score_error = -error / sigma
    torch.testing.assert_close(loss(None).mse_per_sample, mean(error.square()))
    torch.testing.assert_close(loss("none").mse_per_sample, mean(error.square()))
    # velocity = (...) x_t + coefficient * score; the bound weighs squared score errors by g^2 / 2 = coefficient.
    torch.testing.assert_close(loss("velocity").mse_per_sample, mean((coefficient * score_error).square()))
    torch.testing.assert_close(loss("likelihood").mse_per_sample, mean(coefficient * score_error.square()))
    assert loss("velocity").cosine == 0
    assert loss("velocity").total == loss("velocity").mse


@pytest.mark.parametrize("weight", ["velocity", "likelihood"])
def test_a_velocity_error_counts_evenly_whatever_the_weight(weight):
    x_1, x_0, _ = batch()
    losses = [
        flow_matching_loss(lambda x, t, y: x, x_1, LABELS, path=GVPPath(), loss_weight=w, t=T, x_0=x_0).mse
        for w in (None, weight)
    ]
    assert losses[0] == losses[1] > 0


def test_draws_come_from_the_generator():
    x_1 = batch()[0].float()

    def loss(seed):
        return flow_matching_loss(
            lambda x, t, y: x, x_1, LABELS, path=LinearPath(), generator=torch.Generator().manual_seed(seed)
        )

    assert loss(0).total == loss(0).total != loss(1).total
    # Noise first, then times: what one finds when drawing by hand.
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn(x_1.shape, generator=generator)
    t = torch.sigmoid(torch.randn(4, generator=generator))
    assert torch.equal(loss(0).t, t)
    torch.testing.assert_close(loss(0).prediction, rows(t) * x_1 + (1 - rows(t)) * x_0)


def test_drawn_times_stay_where_a_noise_prediction_is_defined():
    def times(prediction):
        generator = torch.Generator().manual_seed(0)
        x_1 = torch.zeros(8, 1)
        return flow_matching_loss(
            lambda x, t, y: x, x_1, None, path=LinearPath(), prediction=prediction, generator=generator
        ).t

    # The same draws, squeezed into [0.001, 0.999].
    torch.testing.assert_close(times("noise"), 1e-3 + (1 - 2e-3) * times("velocity"))


def test_gradient_is_that_of_a_regression():
    x_1, x_0, _ = batch()
    path = LinearPath()
    point = path.sample(x_1, x_0, T)
    gain = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    loss = flow_matching_loss(lambda x, t, y: gain * x, x_1, LABELS, path=path, t=T, x_0=x_0, cosine_weight=0.0)
    loss.total.backward()
    by_hand = (2 * (0.3 * point.x_t - point.velocity) * point.x_t).mean()
    torch.testing.assert_close(gain.grad, by_hand)


@pytest.mark.parametrize("latents", [torch.float32, torch.bfloat16])
def test_a_half_precision_model_is_compared_in_float32(latents):
    x_1, x_0, error = (v.to(latents) for v in batch())
    truth = LinearPath().sample(x_1, x_0, T.float()).velocity
    output = (truth + error).bfloat16()
    loss = flow_matching_loss(lambda x, t, y: output, x_1, LABELS, path=LinearPath(), t=T.float(), x_0=x_0)
    assert truth.dtype == loss.total.dtype == torch.float32
    # The rounded output against the unrounded target, in float64. Rounding the target too would be off by 1e-5.
    output, truth = output.double(), truth.double()
    assert loss.mse.item() == pytest.approx(F.mse_loss(output, truth).item(), rel=1e-6)
    assert loss.cosine.item() == pytest.approx(1 - F.cosine_similarity(output, truth, dim=1).mean().item(), abs=2e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction": "epsilon"}, "Unknown prediction"),
        ({"loss_weight": "likelyhood"}, "Did you mean 'likelihood'"),
        ({"t": torch.zeros(3)}, "one time per sample"),
        ({"x_0": torch.zeros(4, 2, 2, 2)}, "shape of the data"),
    ],
)
def test_mistakes_are_explained(settings, message):
    with pytest.raises(InputError, match=message):
        flow_matching_loss(lambda x, t, y: x, batch()[0], LABELS, path=LinearPath(), **settings)
