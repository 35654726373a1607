"""Time grids, ODE and SDE solvers and likelihoods against recordings of the published samplers.

The published `num_steps` counts grid points: it is one more than our `num_inference_steps`, which counts steps.
"""

import itertools

import pytest
import torch

from alight.flow import (
    GuidedVelocity,
    GVPPath,
    LinearPath,
    VelocityField,
    VPPath,
    log_likelihood,
    solve_ode,
    solve_sde,
    standard_normal_log_density,
    time_grid,
    time_interval,
)
from alight.interop.reference import transformer_from_published
from alight.runtime.errors import InputError
from helpers.closeness import assert_close

PATHS = {"Linear": LinearPath(), "GVP": GVPPath(), "VP": VPPath()}
FORMS = {"SBDM": "sbdm", "inccreasing-decreasing": "increasing-decreasing"}  # [sic]


def analytic_field(tensors):
    """v(x, t) = a x (0.5 - t) + c sin(3 t), in float32 as recorded."""

    def field(x, t):
        t = torch.tensor(t, dtype=torch.float32)
        return tensors["a"] * x * (0.5 - t) + tensors["c"] * torch.sin(3 * t)

    return field


class Listening:
    """A field that remembers the times at which it was asked."""

    def __init__(self, field):
        self.field, self.times = field, []

    def __call__(self, x, t):
        self.times.append(t)
        return self.field(x, t)


def shift_of(recorded):
    return recorded or None  # 0 means off in the recordings


def test_time_grids(read_case):
    tensors, _ = read_case("sampling/time_grids")
    assert tensors
    for key, expected in tensors.items():
        points, shift = (part[1:] for part in key.removeprefix("grid.").replace(".shift", " s", 1).split())
        grid = time_grid(int(points) - 1, shift_of(float(shift)))
        assert_close(grid, expected, key, atol=1e-7)


def is_prediction_run(name):
    return name.split(".")[0] in PATHS


def test_ode_solvers_on_the_analytic_field(read_case):
    tensors, description = read_case("sampling/ode_analytic")
    runs = {name: run for name, run in description["runs"].items() if name in tensors and not is_prediction_run(name)}
    assert runs
    for name, run in runs.items():
        field = Listening(analytic_field(tensors))
        tolerances = {key: run[key] for key in ("atol", "rtol") if key in run}  # else our defaults are the published
        solution = solve_ode(
            field,
            tensors["in.x"],
            run["num_steps"] - 1,
            run["sampling_method"],
            shift_of(run.get("timestep_shift", 0.0)),
            return_trajectory=True,
            **tolerances,
        )
        assert solution.nfe == len(field.times) == run["nfev"], name
        expected = tensors[name]
        actual = solution.trajectory if run["output"].startswith("trajectory") else solution.x
        # dopri5_tight works at the rounding level of float32, where its step sequence is not determined.
        tight = name == "dopri5_tight"
        assert_close(actual, expected, name, atol=5e-5 if tight else 1e-5)
        if f"{name}.t_evals" in tensors:
            times = torch.tensor(field.times, dtype=torch.float64)
            assert_close(times, tensors[f"{name}.t_evals"], f"{name}.t_evals", atol=5e-3 if tight else 1e-5)
            assert solution.steps > 0
        else:
            assert solution.steps == run["num_steps"] - 1


def test_ode_of_noise_and_score_predictions(read_case):
    tensors, description = read_case("sampling/ode_analytic")
    runs = {name: run for name, run in description["runs"].items() if is_prediction_run(name)}
    assert runs
    for name, run in runs.items():
        path_name, prediction, _ = name.split(".")
        path = PATHS[path_name]
        _, sample_eps = description["runs"]["eps"][f"{path_name}.{prediction}"]
        start, end = time_interval(path, prediction, sample_eps)
        velocity = VelocityField(analytic_field(tensors), path, prediction)
        steps = run["num_steps"] - 1
        solution = solve_ode(velocity, tensors["in.x"], steps, run["sampling_method"], t_0=start, t_1=end)
        assert solution.nfe == run["nfev"]
        if prediction == "velocity":
            assert_close(solution.x, tensors[name], name, atol=1e-5)
        else:  # values reach 2e3; the recording of VP noise is itself 2e-6 away from float64
            assert_close(solution.x, tensors[name], name, rel_max=1e-5 if name.startswith("VP.noise") else 1e-6)


def test_calls_that_failed_there_work_or_explain_themselves_here(read_case):
    tensors, description = read_case("sampling/ode_analytic")
    field, x = analytic_field(tensors), tensors["in.x"]

    def default_interval(path, prediction):
        start, end = time_interval(path, prediction)
        return solve_ode(VelocityField(field, path, prediction), x, 9, t_0=start, t_1=end).x

    def sde(form):
        return solve_sde(field, x, 10, path=LinearPath(), diffusion_form=form).x

    mended = {
        "method_heun": lambda: solve_ode(field, x, 9, "heun").x,
        "reverse_true": lambda: solve_ode(field, x, 9, t_0=1.0, t_1=0.0).x,
        "vp_default_eps_sampling": lambda: default_interval(VPPath(), "velocity"),
        "linear_noise_default_eps_sampling": lambda: default_interval(LinearPath(), "noise"),
        "likelihood_unpatched": lambda: log_likelihood(field, x, 4).log_prob,
        "sde_constant_form": lambda: sde("constant"),
        "sde_increasing_decreasing_spelled_right": lambda: sde("increasing-decreasing"),
        "sde_SBDM_linear_velocity_default_eps": lambda: sde("sbdm"),  # our default stays away from t = 0
    }
    assert set(mended) == set(description["errors"])
    for name, call in mended.items():
        assert torch.isfinite(call()).all(), name
    with pytest.raises(InputError, match="infinite"):  # the eps that made it infinite there, asked for explicitly
        solve_sde(field, x, 10, path=LinearPath(), diffusion_form="sbdm", eps=0.0)


def test_sde(read_case):
    tensors, description = read_case("sampling/sde")
    assert description["runs"]
    for name, run in description["runs"].items():
        path_name, prediction = name.split(".")[:2]
        last_step = run["last_step"].lower() if run["last_step"] else None
        solution = solve_sde(
            analytic_field(tensors),
            tensors["in.x"],
            description["num_steps"] - (last_step is None),  # there, "no last step" still counts as one
            run["method"].lower(),
            path=PATHS[path_name],
            prediction=prediction,
            diffusion_form=FORMS.get(run["form"], run["form"]),
            diffusion_norm=run["norm"],
            last_step=last_step,
            last_step_size=description["last_step_size"],
            eps=run["eps"],
            noise=tensors["rand.w"],
            return_trajectory=True,
        )
        assert run["finite"]
        assert list(solution.interval) == pytest.approx([run["t0"], run["t1"]], abs=1e-12), name
        evaluations = {"Euler": 1, "Heun": 2}[run["method"]] * (description["num_steps"] - 1) + (last_step is not None)
        assert solution.nfe == evaluations
        before_last = solution.trajectory[-1 if last_step is None else -2]
        assert_close(solution.trajectory[1], tensors[f"{name}.first"], f"{name}.first", rel_max=1e-4)
        assert_close(before_last, tensors[f"{name}.before_last"], f"{name}.before_last", rel_max=1e-4)
        assert_close(solution.x, tensors[f"{name}.final"], f"{name}.final", rel_max=1e-4)


@pytest.fixture(scope="module")
def transformer(read_case):
    tensors, description = read_case("transformer/base")
    published = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
    return transformer_from_published(published, num_heads=description["config"]["num_heads"]).eval()


def guided(transformer, tensors, description, run):
    labels = tensors["in.y"]
    return GuidedVelocity(
        transformer,
        labels,
        torch.full_like(labels, description["config"]["num_classes"]),
        guidance_scale=description["cfg_scale"] if run["cfg"] else 1.0,
        guidance_interval=(description["start"], 1.0) if run["cfg_interval"] else None,
        guidance_channels=3,
    )


def with_null_rows(velocity):
    """The published field: null rows ride along in the state, though their velocity comes from the first half of it.

    They matter to dopri5 alone, whose error norm sees them. Told nothing of the jump at the start of guidance, its
    result depends on where its steps happen to fall around it (by 0.5 in these recordings), so its steps are replayed
    exactly.
    """
    null = GuidedVelocity(velocity.model, velocity.null_labels)

    def field(state, t):
        x = state[: len(state) // 2]
        first, second = velocity(x, t), null(x, t)
        return torch.cat([first, torch.cat([first[:, :3], second[:, 3:]], dim=1)])

    return field


def test_guided_transformer(read_case, transformer):
    tensors, description = read_case("sampling/ode_dit")
    assert description["runs"]
    for name, run in description["runs"].items():
        velocity = guided(transformer, tensors, description, run)
        z, adaptive = tensors["in.z"], run["method"] == "dopri5"
        doubled = adaptive and run["cfg"]
        field = Listening(with_null_rows(velocity) if doubled else velocity)
        with torch.no_grad():
            solution = solve_ode(
                field,
                torch.cat([z, z]) if doubled else z,
                run["num_steps"] - 1,
                run["method"],
                shift_of(run["timestep_shift"]),
                atol=description["atol"],
                rtol=description["rtol"],
                return_trajectory=True,
            )
        # A fixed-step solver treats every row alone, so ours, which has no null rows, equals the first n rows.
        expected = tensors[f"{name}.final"]
        assert_close(solution.x, expected[: len(solution.x)], name, atol=1e-3 if adaptive else 5e-5)
        if f"{name}.mid" in tensors:
            middle = solution.trajectory[len(solution.trajectory) // 2]
            assert_close(middle, tensors[f"{name}.mid"][: len(middle)], f"{name}.mid", atol=5e-5)
        times, recorded = torch.tensor(field.times), tensors.get(f"{name}.t_evals", torch.empty(0))
        assert adaptive == (f"{name}.t_evals" in tensors)
        if not adaptive:
            assert len(times) == run["nfev"], name
        elif len(times) == len(recorded):  # rounding may add or save a step; then the final state alone decides
            # Rounding in the error estimate moves the steps: by 5e-3 on one processor, by 1e-4 on another.
            assert_close(times.double(), recorded, f"{name}.t_evals", atol=2e-2)
        num_guided = sum(velocity.is_guided(t) for t in field.times)
        assert velocity.nfe == len(field.times) + num_guided
        assert run["cfg"] == (num_guided > 0)


def recorded_probes(tensors, run):
    return tensors[f"{run}.eps"].to(torch.float32)


def test_likelihood(read_case, transformer):
    tensors, description = read_case("sampling/likelihood")
    assert description["runs"]
    for name, run in description["runs"].items():
        of_transformer = name.startswith("dit.")
        x = tensors["dit.x" if of_transformer else "in.x"]
        velocity = GuidedVelocity(transformer, tensors["dit.y"]) if of_transformer else analytic_field(tensors)
        probes = recorded_probes(tensors, name)
        used = itertools.count()
        result = log_likelihood(
            velocity,
            x,
            run["num_steps"] - 1,
            run["method"],
            atol=description["atol"],
            rtol=description["rtol"],
            probes=(probe for probe in probes if next(used) >= 0),
        )
        assert result.nfe == len(probes) == run["n_eps"], name
        assert next(used) == run["n_eps"]
        if run["method"] == "dopri5":
            # The error estimate of the log density is at rounding level: the order in which the divergence is summed
            # decides the size of a step, which moves x_0 by up to 2.5e-4.
            tolerances = {"rel_max": 1e-3}, {"rel_max": 1e-3}
        else:
            # As for the ODE: 1e-5 on the field, 5e-5 on the transformer. The log density sums over all dimensions.
            tolerances = {"atol": 5e-5 if of_transformer else 1e-5}, {"rel_max": 1e-5}
        assert_close(result.x_0, tensors[f"{name}.z"], f"{name}.z", **tolerances[0])
        assert_close(result.log_prob, tensors[f"{name}.logp"], f"{name}.logp", **tolerances[1])


def test_prior(read_case):
    tensors, _ = read_case("sampling/likelihood")
    log_density = standard_normal_log_density(tensors["prior.in"])
    assert_close(log_density, tensors["prior.logp"], "prior", rel_max=1e-6)
