"""Guidance by hand, on a model whose prediction names its label."""

import pytest
import torch

from alight.flow import (
    GUIDANCES,
    AutoGuidance,
    ClassifierFreeGuidance,
    GuidedVelocity,
    VelocityField,
    VPPath,
    solve_ode,
)
from alight.options import GuidanceName, names_of
from alight.runtime.errors import InputError

LABELS = torch.tensor([3, 5])
NULL = torch.tensor([10, 10])


class LabelModel:
    """v = (label + channel) x + t: every row and channel shows its origin. Remembers how many rows it computed."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, t, class_labels):
        self.rows.append(len(x))
        assert len(x) == len(t) == len(class_labels)
        channel = torch.arange(x.shape[1]).reshape(1, -1, 1, 1)
        return (class_labels.reshape(-1, 1, 1, 1) + channel) * x + t.reshape(-1, 1, 1, 1)


def state(channels=4):
    return torch.randn(2, channels, 2, 2, generator=torch.Generator().manual_seed(0))


def prediction(labels, t):
    x = state()
    return LabelModel()(x, torch.full((2,), t), labels)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 10.0])
def test_guidance_extrapolates_all_channels(scale):
    guided = GuidedVelocity(LabelModel(), LABELS, NULL, scale)(state(), 0.5)
    weak, conditional = prediction(NULL, 0.5), prediction(LABELS, 0.5)
    torch.testing.assert_close(guided, weak + scale * (conditional - weak))


def test_guidance_of_the_first_channels_only():
    guided = GuidedVelocity(LabelModel(), LABELS, NULL, 4.0, guidance_channels=3)(state(), 0.5)
    everywhere = GuidedVelocity(LabelModel(), LABELS, NULL, 4.0)(state(), 0.5)
    torch.testing.assert_close(guided[:, :3], everywhere[:, :3])
    torch.testing.assert_close(guided[:, 3:], prediction(LABELS, 0.5)[:, 3:])


def test_scale_one_is_the_conditional_model_at_half_the_cost():
    model = LabelModel()
    velocity = GuidedVelocity(model, LABELS, NULL, 1.0)
    torch.testing.assert_close(velocity(state(), 0.5), prediction(LABELS, 0.5), rtol=0, atol=0)
    assert model.rows == [2]
    assert velocity.nfe == 1


@pytest.mark.parametrize(
    ("t", "guided"),
    [(0.0, False), (0.1249, False), (0.125, True), (0.5, True), (0.8, True), (0.8001, False), (1.0, False)],
)
def test_interval(t, guided):
    model = LabelModel()
    velocity = GuidedVelocity(model, LABELS, NULL, 3.0, guidance_interval=(0.125, 0.8))
    expected = GuidedVelocity(LabelModel(), LABELS, NULL, 3.0 if guided else 1.0)(state(), t)
    torch.testing.assert_close(velocity(state(), t), expected, rtol=0, atol=0)
    assert model.rows == [4 if guided else 2]  # the null rows are not even computed
    assert velocity.nfe == (2 if guided else 1)
    assert velocity.is_guided(t) == guided


def test_the_interval_is_compared_in_float32():
    velocity = GuidedVelocity(LabelModel(), LABELS, NULL, 3.0, guidance_interval=(0.1, 1.0))
    just_below = torch.nextafter(torch.tensor(0.1), torch.tensor(0.0))
    assert torch.tensor(0.1).item() > 0.1  # 0.1 is no float32 number, the nearest is larger
    assert velocity.is_guided(0.1)
    assert velocity.is_guided(torch.tensor(0.1))
    assert velocity.is_guided(0.1 - 1e-10)  # rounds to the same float32
    assert not velocity.is_guided(just_below)


def test_an_interval_that_ends_at_the_data_has_no_end():
    """Adaptive solvers ask beyond t = 1; guidance must not stop there."""
    assert GuidedVelocity(LabelModel(), LABELS, NULL, 3.0, guidance_interval=(0.1, 1.0)).is_guided(1.03)
    assert not GuidedVelocity(LabelModel(), LABELS, NULL, 3.0, guidance_interval=(0.1, 0.9)).is_guided(1.03)


def test_autoguidance_pushes_away_from_the_weak_model():
    weak = lambda x, t, y: -x  # noqa: E731
    velocity = GuidedVelocity(LabelModel(), LABELS, guidance_scale=1.5, guide=weak)
    expected = -state() + 1.5 * (prediction(LABELS, 0.5) + state())
    torch.testing.assert_close(velocity(state(), 0.5), expected)
    assert velocity.nfe == 2


def test_breakpoints_are_where_guidance_switches():
    def breakpoints(scale, interval):
        return GuidedVelocity(LabelModel(), LABELS, NULL, scale, interval).breakpoints

    assert breakpoints(3.0, (0.25, 0.75)) == (0.25, 0.75)
    assert breakpoints(3.0, (0.25, 1.0)) == (0.25,)
    assert breakpoints(3.0, None) == ()
    assert breakpoints(1.0, (0.25, 0.75)) == ()
    guided = GuidedVelocity(LabelModel(), LABELS, NULL, 3.0, (0.25, 0.75))
    assert VelocityField(guided, VPPath(), "noise").breakpoints == (0.25, 0.75)


@pytest.mark.parametrize("solver", ["euler", "heun2", "ab2"])
def test_a_guided_solution_counts_its_network_evaluations(solver):
    model = LabelModel()
    velocity = GuidedVelocity(model, LABELS, NULL, 3.0, guidance_interval=(0.45, 1.0))
    solution = solve_ode(velocity, state(), 10, solver)
    assert solution.nfe == velocity.nfe == sum(model.rows) // 2
    assert solve_ode(velocity, state(), 10, solver).nfe == solution.nfe  # this run only, not the field's life


def test_guiding_the_noise_is_guiding_the_velocity():
    """Both are affine in each other with the same x_t, so the order of guidance and conversion does not matter."""
    path, x = VPPath(), state()
    noise_first = VelocityField(GuidedVelocity(LabelModel(), LABELS, NULL, 3.0), path, "noise")

    def as_velocity(x, t, labels):
        return VelocityField(lambda x, _: LabelModel()(x, t, labels), path, "noise")(x, t[0].item())

    velocity_first = GuidedVelocity(as_velocity, LABELS, NULL, 3.0)
    torch.testing.assert_close(noise_first(x, 0.4), velocity_first(x, 0.4), rtol=1e-5, atol=1e-5)
    assert noise_first.nfe == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_interval": (0.8, 0.1)}, "Swap"),
        ({"guidance_interval": (0.1, 1.5)}, "0 <= low <= high <= 1"),
        ({"guidance_channels": 0}, "at least 1"),
        ({"null_labels": None}, "null_labels"),
        ({"null_labels": torch.tensor([10])}, "one null label"),
        ({"guidance_channels": 5}, "only 4 channels"),
    ],
)
def test_mistakes_are_explained(settings, message):
    settings = {"null_labels": NULL, "guidance_scale": 2.0} | settings
    with pytest.raises(InputError, match=message):
        GuidedVelocity(LabelModel(), LABELS, **settings)(state(), 0.5)


def test_a_state_that_does_not_fit_the_labels_is_explained():
    with pytest.raises(InputError, match="3 samples"):
        GuidedVelocity(LabelModel(), LABELS, NULL, 2.0)(torch.zeros(3, 4, 2, 2), 0.5)


# --- strategies ---------------------------------------------------------------------------------------------------


class Halved:
    """A strategy of one evaluation, as with an auxiliary head: the weak prediction is half the strong one."""

    evaluations = 1

    def __init__(self, model, labels):
        self.model, self.labels = model, labels

    def predict_pair(self, x, t):
        strong = self.model(x, t, self.labels)
        return strong, strong / 2


def test_a_strategy_of_ones_own_is_one_class():
    velocity = GuidedVelocity(
        LabelModel(), LABELS, guidance_scale=3.0, guidance_interval=(0.5, 1.0), guidance=Halved(LabelModel(), LABELS)
    )
    plain = GuidedVelocity(LabelModel(), LABELS)
    assert torch.equal(velocity(state(), 0.25), plain(state(), 0.25))
    torch.testing.assert_close(velocity(state(), 0.75), 2 * plain(state(), 0.75))  # 0.5 + 3 (1 - 0.5)
    assert velocity.nfe == 2


def test_the_named_strategies_are_what_the_arguments_choose():
    weak = LabelModel()
    by_name = ClassifierFreeGuidance(LabelModel(), LABELS, NULL), AutoGuidance(LabelModel(), weak, LABELS)
    by_argument = {"null_labels": NULL}, {"guide": weak}
    for name, strategy, argument in zip(GUIDANCES, by_name, by_argument, strict=True):
        one = GuidedVelocity(LabelModel(), LABELS, guidance_scale=1.5, guidance=strategy)
        other = GuidedVelocity(LabelModel(), LABELS, guidance_scale=1.5, **argument)
        named = GuidedVelocity(LabelModel(), LABELS, guidance_scale=1.5, guidance=name, **argument)
        velocity = one(state(), 0.5)
        assert torch.equal(velocity, other(state(), 0.5))
        assert torch.equal(velocity, named(state(), 0.5))
        assert one.nfe == other.nfe == named.nfe == strategy.evaluations


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("classifier_free", {"guide": LabelModel()}, "needs the null class"),
        ("classifier_free", {"null_labels": NULL, "guide": LabelModel()}, "no guide"),
        ("autoguidance", {"null_labels": NULL}, "needs a guide"),
        ("auto", {}, "Did you mean 'autoguidance'"),
    ],
)
def test_a_strategy_is_refused_without_what_it_needs(name, argument, message):
    with pytest.raises(InputError, match=message):
        GuidedVelocity(LabelModel(), LABELS, guidance_scale=2.0, guidance=name, **argument)


@pytest.mark.parametrize("name", GUIDANCES)
def test_at_scale_one_a_named_strategy_is_off_and_needs_nothing(name):
    velocity = GuidedVelocity(LabelModel(), LABELS, guidance=name)
    assert torch.equal(velocity(state(), 0.5), GuidedVelocity(LabelModel(), LABELS)(state(), 0.5))
    assert velocity.nfe == 1


def test_the_table_holds_every_name():
    assert set(GUIDANCES) == set(names_of(GuidanceName))
