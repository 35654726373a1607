"""Times by the size of the latents, and ends before noise and data, in training and sampling (arXiv 2510.11690)."""

import math

import pytest
import torch

from alight.config import FlowConfig, SolverConfig
from alight.flow import (
    GuidedVelocity,
    LinearPath,
    SolverOptions,
    resolve_shift,
    sample,
    shift_timesteps,
    solve_ode,
    time_grid,
)
from alight.flow.evaluations import SAME_EVALUATIONS, expected_evaluations
from alight.pipelines import LightningDiTPipeline
from alight.runtime.errors import InputError
from alight.training.transformer_step import draw_steps, draw_times, with_resolved_shift
from helpers.models import tiny_tokenizer, tiny_transformer

SHAPE = (768, 16, 16)
SHIFT = math.sqrt(4096 / math.prod(SHAPE))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def field(x, t):
    return (0.3 - t) * x + 0.5


def noise():
    return torch.randn(2, 3, 4, 4, generator=generator())


def test_an_automatic_shift_is_that_of_the_dimension():
    assert resolve_shift("auto", SHAPE) == pytest.approx(1 / 6.928203230275509)
    assert resolve_shift(0.3, SHAPE) == 0.3
    assert resolve_shift(None) is None
    for wrong in (("auto", None), ("automatic", SHAPE)):
        with pytest.raises(InputError, match="where a number is needed"):
            resolve_shift(*wrong)


# --- training -----------------------------------------------------------------------------------------------------


def test_training_times_follow_the_automatic_shift():
    plain = draw_times(FlowConfig(), 0, 1000, generator())
    flow = with_resolved_shift(FlowConfig(timestep_shift="auto"), SHAPE)
    assert torch.equal(draw_times(flow, 0, 1000, generator()), shift_timesteps(plain, SHIFT))
    assert with_resolved_shift(FlowConfig(), SHAPE) == FlowConfig()


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_no_training_time_is_before_the_first(distribution):
    """The times that are left keep their distribution: uniform, or the sigmoid of a normal number."""
    first, count = 0.3, 50_000
    flow = FlowConfig(time_sampling=distribution, first_time=first)
    t = draw_times(flow, 0, count, generator())
    assert first <= t.min()
    assert t.max() <= 1
    normal = torch.distributions.Normal(0.0, 1.0)
    if distribution == "uniform":
        expected = 0.5 * (1 + first)
    else:
        below = normal.cdf(torch.tensor(first).logit())
        expected = normal.icdf(below + (1 - below) / 2).sigmoid().item()
    assert t.median().item() == pytest.approx(expected, abs=0.006)  # 4 standard errors of the median
    late = FlowConfig(first_time=first, uniform_from_step=5)
    assert torch.equal(draw_times(late, 5, count, generator()), draw_times(flow, 0, count, generator())) == (
        distribution == "uniform"
    )


def test_without_a_first_time_nothing_changes():
    assert torch.equal(
        draw_times(FlowConfig(first_time=0.0), 0, 9, generator()), draw_times(FlowConfig(), 0, 9, generator())
    )
    flow = with_resolved_shift(FlowConfig(timestep_shift="auto", first_time=0.001), SHAPE)
    t, until = draw_steps(flow, 0, draw_times(flow, 0, 9, generator()), generator(1))
    assert (t <= until).all()


# --- sampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2", "ucgm", "dopri5"])
def test_an_ode_ends_at_the_last_time_before_the_shift(solver):
    options = SolverOptions(SHIFT, last_time=0.999)
    end = shift_timesteps(torch.tensor(0.999, dtype=torch.float64), SHIFT).item()
    assert end == pytest.approx(1 - 0.0069, abs=1e-4)
    found = sample(field, noise(), 6, solver, options, path=LinearPath())
    assert torch.equal(found.x, solve_ode(field, noise(), 6, solver, SHIFT, t_1=end).x)
    grid = time_grid(6, SHIFT, t_1=end)
    torch.testing.assert_close(grid, shift_timesteps(torch.linspace(0, 0.999, 7), SHIFT), rtol=0, atol=1e-6)
    whole = sample(field, noise(), 6, solver, SolverOptions(SHIFT), path=LinearPath())
    assert not torch.equal(found.x, whole.x)


@pytest.mark.parametrize(
    ("solver", "options", "complaint"),
    [
        ("euler", {"last_time": 0.0}, r"must be in \(0, 1\]"),
        ("euler", {"last_time": 1.5}, r"must be in \(0, 1\]"),
        ("sde_euler", {"last_time": 0.9}, "ODE solvers without a time warp"),
        ("mean", {"last_time": 0.9}, "ODE solvers without a time warp"),
        ("euler", {"last_time": 0.9, "time_warp": (1.17, 0.8, 1.1)}, "ODE solvers without a time warp"),
    ],
)
def test_last_times_that_cannot_be_are_refused(solver, options, complaint):
    with pytest.raises(InputError, match=complaint):
        sample(field, noise(), 4, solver, SolverOptions(**options), path=LinearPath())
    if 0 < options["last_time"] < 1:
        with pytest.raises(ValueError, match="last_time is for ODE solvers"):
            SolverConfig(solver=solver, **options)


def test_settings_say_what_they_are():
    assert str(SolverConfig(timestep_shift="auto", last_time=0.999)) == (
        "euler, 50 steps, no guidance, shift auto, until t = 0.999 before the shift"
    )
    assert "last_time" not in SolverConfig().effective()
    assert SolverConfig(last_time=0.9).effective()["last_time"] == 0.9
    with pytest.raises(ValueError, match="timestep_shift"):
        SolverConfig(timestep_shift="automatic")
    shifted = SolverConfig(guidance_scale=2.0, guidance_interval=(0.5, 1.0), last_time=0.6, timestep_shift=1.0)
    assert expected_evaluations(**shifted.model_dump(exclude=SAME_EVALUATIONS)) == 50 + 8  # t = 0.504 to 0.588


def test_a_pipeline_takes_the_shift_of_its_latents():
    facts = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    pipeline = LightningDiTPipeline.from_models(tiny_tokenizer(), tiny_transformer(), facts)
    call = {"class_labels": [1], "num_inference_steps": 3, "seeds": [0], "output_type": "latent"}
    expected = pipeline(**call, timestep_shift=math.sqrt(4096 / 64)).images
    assert torch.equal(pipeline(**call, timestep_shift="auto").images, expected)
    assert not torch.equal(pipeline(**call, timestep_shift="auto", last_time=0.5).images, expected)
    with pytest.raises(InputError, match="'automatic'"):
        pipeline(**call, timestep_shift="automatic")


# --- guidance of rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [None, 1])
def test_guidance_of_rows_is_that_of_each_row_alone(channels):
    model, labels = tiny_transformer(), torch.tensor([1, 2, 3, 4])
    x = torch.randn(4, 4, 4, 4, generator=generator())
    t = torch.tensor([0.1, 0.2, 0.7, 0.9])  # outside, at the lower end, inside, outside
    settings = {"guidance_scale": 2.0, "guidance_interval": (0.2, 0.8), "guidance_channels": channels}
    with torch.no_grad():
        together = GuidedVelocity(model, labels, torch.full_like(labels, 10), **settings)
        found = together(x, t)
        assert together.nfe == 2
        for row in range(4):
            alone = GuidedVelocity(model, labels[row : row + 1], torch.tensor([10]), **settings)
            assert alone.is_guided(t[row]) == (row in (1, 2))
            torch.testing.assert_close(found[row : row + 1], alone(x[row : row + 1], t[row]), rtol=1e-5, atol=1e-5)
        plain = GuidedVelocity(model, labels)
        assert torch.equal(plain(x, t), model(x, t, labels))
        assert plain.nfe == 1
