"""Internal Guidance by hand and in closed form: identities, nesting, costs, and the guided Gaussian flow."""

import math

import pytest
import torch

from alight.config import SolverConfig
from alight.flow import GuidedVelocity, InternalGuidance, LinearPath, flow_matching_loss, solve_ode
from alight.flow.evaluations import SAME_EVALUATIONS, expected_evaluations
from alight.runtime.errors import InputError
from helpers.gaussian_flow import GaussianFlow

LABELS, NULL = torch.tensor([3, 5]), torch.tensor([10, 10])


class TwoHeads:
    """f = (label + t) x and b = label x / 2. Remembers its evaluations: rows, and if both outputs were asked for."""

    def __init__(self, same=False):
        self.same, self.calls = same, []

    def __call__(self, x, t, class_labels, *, auxiliary=False):
        self.calls.append((len(x), auxiliary))
        label = class_labels.reshape(-1, 1, 1, 1)
        strong = (label + t.reshape(-1, 1, 1, 1)) * x
        return (strong, strong if self.same else label * x / 2) if auxiliary else strong


def state():
    return torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))


def outputs(labels, t):
    return TwoHeads()(state(), torch.full((2,), t), labels, auxiliary=True)


def by_formula(labels, t, scale):
    strong, weak = outputs(labels, t)
    return weak + scale * (strong - weak)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.4, 3.0])
def test_guidance_extrapolates_from_the_auxiliary_through_the_final_output(scale):
    velocity = GuidedVelocity(InternalGuidance(TwoHeads(), scale), LABELS)(state(), 0.5)
    torch.testing.assert_close(velocity, by_formula(LABELS, 0.5, scale))


def test_scale_one_is_the_model_bit_for_bit_and_asks_for_no_second_output():
    model = TwoHeads()
    velocity = GuidedVelocity(InternalGuidance(model, 1.0), LABELS)(state(), 0.5)
    assert torch.equal(velocity, outputs(LABELS, 0.5)[0])
    assert model.calls == [(2, False)]
    plain = GuidedVelocity(lambda x, t, y: x, LABELS)  # a model without such an output
    assert torch.equal(GuidedVelocity(InternalGuidance(plain.model), LABELS)(state(), 0.5), plain(state(), 0.5))


@pytest.mark.parametrize("scale", [0.0, 1.4, 10.0])
def test_where_both_outputs_are_equal_every_scale_is_the_identity(scale):
    velocity = InternalGuidance(TwoHeads(same=True), scale)(state(), torch.full((2,), 0.5), LABELS)
    assert torch.equal(velocity, outputs(LABELS, 0.5)[0])


def nested(model, class_scale=1.45, scale=1.4, class_interval=None, interval=None):
    guided = InternalGuidance(model, scale, interval)
    return GuidedVelocity(guided, LABELS, NULL, class_scale, guidance_interval=class_interval)


def test_class_guidance_acts_on_both_internally_guided_halves():
    strong, weak = by_formula(LABELS, 0.5, 1.4), by_formula(NULL, 0.5, 1.4)
    torch.testing.assert_close(nested(TwoHeads())(state(), 0.5), weak + 1.45 * (strong - weak))


def test_outside_the_interval_of_class_guidance_the_internal_one_goes_on():
    velocity = nested(TwoHeads(), class_interval=(0.19, 1.0))
    torch.testing.assert_close(velocity(state(), 0.1), by_formula(LABELS, 0.1, 1.4))
    assert velocity.nfe == 1


def test_outside_the_interval_of_internal_guidance_the_class_one_goes_on():
    strong, weak = outputs(LABELS, 0.7)[0], outputs(NULL, 0.7)[0]
    velocity = nested(TwoHeads(), interval=(0.0, 0.6))
    torch.testing.assert_close(velocity(state(), 0.7), weak + 1.45 * (strong - weak))


def test_each_kind_at_scale_one_leaves_the_other():
    torch.testing.assert_close(nested(TwoHeads(), class_scale=1.0)(state(), 0.5), by_formula(LABELS, 0.5, 1.4))
    alone = GuidedVelocity(TwoHeads(), LABELS, NULL, 1.45)
    assert torch.equal(nested(TwoHeads(), scale=1.0)(state(), 0.5), alone(state(), 0.5))


# --- costs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "stages"), [("euler", 1), ("heun2", 2)])
def test_alone_it_costs_one_evaluation_and_within_class_guidance_two(solver, stages):
    model = TwoHeads()
    alone = GuidedVelocity(InternalGuidance(model, 1.7), LABELS)
    assert solve_ode(alone, state(), 5, solver).nfe == alone.nfe == 5 * stages
    assert model.calls == [(2, True)] * 5 * stages

    model = TwoHeads()
    both = nested(model, interval=(0.0, 0.6))
    assert solve_ode(both, state(), 5, solver).nfe == both.nfe == 2 * 5 * stages
    assert {rows for rows, _ in model.calls} == {4}


def test_the_cost_is_known_beforehand():
    def cost(**settings):
        config = SolverConfig(num_inference_steps=10, **settings)
        return expected_evaluations(**config.model_dump(exclude=SAME_EVALUATIONS))

    assert cost(internal_scale=1.7) == 10
    assert cost(internal_scale=1.4, guidance_scale=1.45) == 20
    assert cost(internal_scale=1.4, guidance_scale=1.45, guidance_interval=(0.45, 1.0)) == 15


# --- intervals ----------------------------------------------------------------------------------------------------


def test_both_ends_of_the_interval_are_inside_as_float32():
    guided = InternalGuidance(TwoHeads(), 3.0, (0.1, 0.6))

    def is_guided(t):
        time = torch.full((2,), float(t))
        plain = TwoHeads()(state(), time, LABELS)
        return not torch.equal(guided(state(), time, LABELS), plain)

    assert [is_guided(t) for t in (0.0, 0.0999, 0.1, 0.3, 0.6, 0.6001, 1.0)] == [0, 0, 1, 1, 1, 0, 0]


def test_rows_may_have_times_of_their_own():
    guided, time = InternalGuidance(TwoHeads(), 3.0, (0.5, 1.0)), torch.tensor([0.25, 0.75])
    strong, weak = TwoHeads()(state(), time, LABELS, auxiliary=True)
    velocity = guided(state(), time, LABELS)
    assert torch.equal(velocity[0], strong[0])
    torch.testing.assert_close(velocity[1], weak[1] + 3 * (strong[1] - weak[1]))


@pytest.mark.parametrize("shift", [0.15, 0.2, 0.4, 0.3, None])
@pytest.mark.parametrize("interval", [None, (0.0, 1.0), (0.25, 1.0)])
def test_the_last_point_of_a_shifted_grid_is_guided_though_it_may_be_above_one(shift, interval):
    """In float32, 0.2 t / (1 - 0.8 t) at t = 1 is above 1; a bound of 1 would drop guidance in Heun's last stage."""
    seen = []

    def model(x, t, labels, *, auxiliary=False):
        seen.append(t[0].item())
        return (x, -x) if auxiliary else x

    guided = GuidedVelocity(InternalGuidance(model, 2.0, interval), LABELS)
    solve_ode(guided, state(), 8, "heun2", shift)
    assert seen[-1] == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(guided(state(), seen[-1]), 3 * state())


def test_the_field_jumps_at_the_ends_of_both_intervals():
    assert nested(TwoHeads(), class_interval=(0.25, 1.0), interval=(0.0, 0.5)).breakpoints == (0.25, 0.5)
    assert nested(TwoHeads(), scale=1.0, class_interval=(0.25, 1.0), interval=(0.0, 0.5)).breakpoints == (0.25,)
    assert InternalGuidance(TwoHeads(), 2.0).breakpoints == ()


@pytest.mark.parametrize("interval", [(0.8, 0.1), (-0.1, 0.5), (0.1, 1.5)])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(InputError, match="internal interval"):
        InternalGuidance(TwoHeads(), 1.0, interval)


# --- the Gaussian flow --------------------------------------------------------------------------------------------


class GaussianHeads:
    """The exact velocity of N(0, s^2) data, and that of data of a smaller variance: an output that learned less.

    The label chooses the deviations.
    """

    deviations = {0: (0.5, 0.4), 1: (0.9, 0.7)}  # the null class is the wider one

    def __call__(self, x, t, class_labels, *, auxiliary=False):
        strong, weak = torch.empty_like(x), torch.empty_like(x)
        for row, label in enumerate(class_labels.tolist()):
            for output, deviation in zip((strong, weak), self.deviations[label], strict=True):
                output[row] = GaussianFlow(LinearPath(), deviation).velocity(x[row : row + 1], t[row : row + 1])[0]
        return (strong, weak) if auxiliary else strong


def log_gain(deviation, low=0.0, high=1.0):
    """Half the logarithm of the variance that the exact flow gains between two times."""
    flow = GaussianFlow(LinearPath(), deviation)
    return 0.5 * math.log(flow.variance(high) / flow.variance(low))


def gain(velocity, solver="rk4", steps=200):
    x = torch.tensor([[[[1.0]]]], dtype=torch.float64)
    return solve_ode(velocity, x, steps, solver, atol=1e-8, rtol=1e-8).x.item()


@pytest.mark.parametrize("scale", [1.0, 1.4, 1.7])
def test_the_guided_flow_of_a_gaussian_has_the_known_variance(scale):
    """Both fields are linear, so the guided flow ends at the variance s^(2w) / r^(2w - 2)."""
    strong, weak = GaussianHeads.deviations[0]
    found = gain(GuidedVelocity(InternalGuidance(GaussianHeads(), scale), torch.tensor([0])))
    assert found**2 == pytest.approx(strong ** (2 * scale) / weak ** (2 * scale - 2), rel=1e-6)


def test_the_nested_flow_of_a_gaussian_has_the_known_variance():
    guided = InternalGuidance(GaussianHeads(), 1.4)
    found = gain(GuidedVelocity(guided, torch.tensor([0]), torch.tensor([1]), 1.45))
    conditional, null = (
        1.4 * log_gain(strong) - 0.4 * log_gain(weak) for strong, weak in GaussianHeads.deviations.values()
    )
    assert math.log(found) == pytest.approx(null + 1.45 * (conditional - null), rel=1e-6)


def test_an_interval_gains_what_lies_within_it():
    """An adaptive solver begins again at the ends of the interval, of which it is told."""
    strong, weak = GaussianHeads.deviations[0]
    velocity = GuidedVelocity(InternalGuidance(GaussianHeads(), 1.7, (0.25, 0.75)), torch.tensor([0]))
    within = log_gain(strong, 0.25, 0.75) - log_gain(weak, 0.25, 0.75)
    assert math.log(gain(velocity, "dopri5", 1)) == pytest.approx(log_gain(strong) + 0.7 * within, rel=1e-5)


# --- the loss -----------------------------------------------------------------------------------------------------


def test_the_loss_adds_the_error_of_the_auxiliary_output_and_no_direction_of_it():
    x_1, x_0 = state().double(), torch.ones(2, 4, 2, 2, dtype=torch.float64)
    truth, common = x_1 - x_0, {"path": LinearPath(), "t": torch.tensor([0.25, 0.5]), "x_0": x_0}
    alone = flow_matching_loss(lambda x, t, y: truth + 2, x_1, LABELS, **common)
    both = flow_matching_loss(lambda x, t, y: (truth + 2, truth - 3), x_1, LABELS, auxiliary_weight=0.5, **common)
    assert (alone.auxiliary, both.auxiliary.item()) == (None, pytest.approx(9.0))
    assert both.auxiliary_per_sample.tolist() == pytest.approx([9.0, 9.0])
    assert torch.equal(both.mse, alone.mse)
    assert torch.equal(both.cosine, alone.cosine)
    assert both.total.item() == pytest.approx(alone.total.item() + 4.5)
    off = flow_matching_loss(lambda x, t, y: (truth + 2, truth - 3), x_1, LABELS, auxiliary_weight=0.0, **common)
    assert torch.equal(off.total, alone.total)
