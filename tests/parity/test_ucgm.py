"""The sampler of UCGM against recordings: its time grid, and history extrapolation on a formula and on a network."""

import itertools

import pytest
import torch

from alight.flow import GuidedVelocity, LinearPath, SolverOptions, history_extrapolation, kumaraswamy_grid, sample
from alight.interop.reference import transformer_from_published
from helpers.closeness import assert_close

PUBLISHED_GAP = [0.001, 0.001]


def grid_of(run):
    return kumaraswamy_grid(run["steps"], *run["abc"], gaps=tuple(run["gap"]))


def times_of(run):
    """The times of the evaluations, and that of the data."""
    return [*grid_of(run).tolist(), 1.0]


def test_time_grids(read_case):
    tensors, description = read_case("ucgm/time_grids")
    assert description["grids"]
    for name, run in description["grids"].items():
        assert_close(grid_of(run), tensors[f"grid.{name}"], name, atol=3e-7)
        assert_close(1 - grid_of(run), tensors[f"grid_linear_transport.{name}"], name, atol=3e-7)


def test_a_formula(read_case):
    tensors, description = read_case("ucgm/analytic")
    assert description["runs"]
    for name, run in description["runs"].items():
        evaluated = []

        def velocity(x, t, evaluated=evaluated):
            evaluated.append(x)
            t = torch.tensor(t, dtype=torch.float32)
            return tensors["a"] * x * (0.5 - t) + tensors["c"] * torch.sin(3 * t)

        draws = iter(tensors["rand.w"]) if run["rho"] else None
        second_order = run["order"] == 2  # in which the recorded number of steps is that of evaluations, about
        steps = {"kappa": run["kappa"], "renoise": run["rho"], "noise": draws, "corrected": second_order}
        times = times_of(run | {"steps": (run["steps"] + 1) // 2} if second_order else run)
        x = list(history_extrapolation(velocity, tensors["in.z"], times, **steps))[-1]
        assert len(evaluated) == run["nfev"]
        assert_close(x, tensors[f"{name}.final"], name, rel_max=1e-3 if second_order else 5e-6)
        if second_order:
            continue
        if f"{name}.states" in tensors:
            assert_close(torch.stack(evaluated), tensors[f"{name}.states"], f"{name}.states", rel_max=5e-6)


def test_a_network_with_guidance(read_case):
    tensors, description = read_case("ucgm/dit")
    weights, _ = read_case("transformer/base")
    published = {key.removeprefix("sd."): value for key, value in weights.items() if key.startswith("sd.")}
    model = transformer_from_published(published, num_heads=description["config"]["num_heads"]).eval()
    labels = tensors["in.y"]
    null = torch.full_like(labels, description["null_label"])
    runs = {name: run for name, run in description["runs"].items() if run["gap"] == PUBLISHED_GAP}
    assert runs
    for name, run in runs.items():
        guidance = (run["cfg_scale"] or 1.0, run["cfg_interval"] and tuple(run["cfg_interval"]), 3)
        field = GuidedVelocity(model, labels, null, *guidance)
        options = SolverOptions(time_warp=tuple(run["abc"]), kappa=run["kappa"])
        states = []
        with torch.no_grad():
            solution = sample(
                *(field, tensors["in.z"], run["steps"], "ucgm", options),
                path=LinearPath(),
                on_step=lambda _, x, states=states: states.append(x),
            )
        assert_close(solution.x, tensors[f"{name}.final"][: len(labels)], name, rel_max=1e-5)
        assert solution.nfe * len(labels) == run["row_evaluations"], name


@pytest.mark.parametrize("early", [False, True])
def test_the_recordings_tell_the_first_extrapolated_step(read_case, early):
    """One evaluation too early is another result: a check of the check."""
    tensors, description = read_case("ucgm/analytic")
    run = description["runs"]["medium.kappa_pub"]
    times, x, before = times_of(run), tensors["in.z"], None
    for step, (t, t_next) in enumerate(itertools.pairwise(times)):
        v = tensors["a"] * x * (0.5 - t) + tensors["c"] * torch.sin(torch.tensor(3 * t))
        data, noise = now = x + (1 - t) * v, x - t * v
        if step >= (1 if early else 2) and t_next < 1:
            data, noise = (new + run["kappa"] * (new - old) for new, old in zip(now, before, strict=True))
        x, before = t_next * data + (1 - t_next) * noise, now
    away = (x - tensors["medium.kappa_pub.final"]).abs().max() / tensors["medium.kappa_pub.final"].abs().max()
    assert (away > 5e-5) if early else (away < 5e-6)
