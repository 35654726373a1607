"""The settings that a search tries, their order, and the time that it still takes."""

import pytest
from pydantic import ValidationError

from alight.config import DrawConfig, SolverConfig, TuneConfig
from alight.runtime.errors import InputError
from alight.tune.progress import expected_work, standing, time_left
from alight.tune.record import Trial
from alight.tune.settings import nearest_first
from alight.tune.strategy import planned, search
from alight.tune.trial import preferred


def trial_of(distance, nfe):
    return Trial(SolverConfig(num_inference_steps=int(nfe)), distance, nfe, 1.0)


def tried(config, distance):
    """All settings that a search asks for, by a made-up distance."""
    found = {}

    def measure(settings):
        found[settings] = distance(settings)
        return found[settings]

    search(config, measure)
    return found


def test_the_default_search_begins_with_the_default_settings_and_finds_the_best_of_each_list():
    def distance(settings):
        interval = settings.guidance_interval or (0.0, 1.0)
        shift = settings.timestep_shift or 1.0
        return (
            abs(settings.guidance_scale - 2) + abs(interval[0] - 0.1) + abs(shift - 0.5) - (settings.solver == "heun")
        )

    found = tried(TuneConfig(), distance)
    assert next(iter(found)) == SolverConfig()
    best = min(found, key=found.get)
    assert (best.guidance_scale, best.guidance_interval, best.timestep_shift) == (2.0, (0.1, 1.0), 0.5)
    assert best.solver == "heun"
    assert {(each.solver, each.num_inference_steps) for each in list(found)[-6:]} <= {
        (solver, steps) for solver in ("euler", "heun") for steps in (10, 25, 50)
    }


@pytest.mark.parametrize("kind", ["stepwise", "grid"])
def test_values_that_are_not_listed_are_never_tried(kind):
    config = TuneConfig(
        search=kind,
        steps=(10,),
        solvers=("heun", "ab2"),
        guidance_scales=(1.0, 3.0),
        guidance_intervals=((0.2, 0.9),),
        timestep_shifts=(0.5,),
    )
    found = tried(config, lambda settings: -settings.guidance_scale)
    assert {each.num_inference_steps for each in found} == {10}
    assert {each.solver for each in found} == {"heun", "ab2"}
    assert {each.timestep_shift for each in found} == {0.5}
    assert {each.guidance_interval for each in found if each.guidance_scale != 1} == {(0.2, 0.9)}


def test_kappa_is_tried_with_ucgm_alone_and_a_time_warp_takes_the_place_of_a_shift():
    lists = {"solvers": ("euler", "ucgm"), "kappas": (0.0, 0.5), "time_warps": (None, (1.17, 0.8, 1.1))}
    config = TuneConfig(search="grid", steps=(10,), timestep_shifts=(1.0, 0.3), **lists)
    found = tried(config, lambda settings: 1.0)
    assert {(each.solver, each.kappa) for each in found} == {("euler", 0.5), ("ucgm", 0.0), ("ucgm", 0.5)}
    assert {each.timestep_shift for each in found if each.time_warp} == {None}
    assert {each.timestep_shift for each in found if not each.time_warp} == {None, 0.3}


def test_the_cheapest_settings_within_a_share_of_the_best_are_taken():
    trials = [trial_of(distance, nfe) for distance, nfe in ((1.0, 100.0), (1.04, 50.0), (1.05, 20.0), (1.2, 10.0))]
    chosen = [preferred(trials, within) for within in (0.0, 0.04, 0.05, 0.3)]
    assert [trial.nfe for trial in chosen] == [100, 50, 20, 10]


def test_lists_of_which_nothing_goes_together_are_refused():
    for kind in ("stepwise", "grid"):
        with pytest.raises(InputError, match="go together"):
            planned(TuneConfig(search=kind, solvers=("sde_euler",), time_warps=((1.17, 0.8, 1.1),)), {})


def test_a_shift_by_dimension_is_refused_since_no_list_holds_it():
    with pytest.raises(ValidationError, match="list its value"):
        TuneConfig(draw=DrawConfig(sampling=SolverConfig(timestep_shift="auto")))


def test_the_search_begins_with_the_listed_values_nearest_to_the_asked_ones():
    first = planned(TuneConfig(steps=(2, 4), guidance_scales=(3.0, 2.0), solvers=("heun",)), {})[0]
    assert (first.num_inference_steps, first.guidance_scale, first.solver) == (4, 2.0, "heun")
    assert nearest_first((10, 25, 50), 30) == [25, 10, 50]
    assert nearest_first(("euler", "heun"), "heun") == ["heun", "euler"]


@pytest.mark.parametrize("favourite", [1.0, 2.0, 4.0])
def test_the_plan_is_never_exceeded_and_ends_exact(favourite):
    config, known = TuneConfig(), {}
    longest = len(planned(config, known))

    def measure(settings):
        known[settings] = abs(settings.guidance_scale - favourite)
        assert settings in planned(config, known)
        assert len(planned(config, known)) <= longest
        return known[settings]

    search(config, measure)
    assert set(planned(config, known)) == set(known)


@pytest.mark.parametrize("favourite", [(1.0, 1.0), (1.0, 1.4), (2.0, 1.0), (2.0, 1.7)])
@pytest.mark.parametrize("scales", [(1.0, 1.4, 1.7), (1.7, 1.4, 1.0), (1.0,), (1.4,)])
def test_internal_guidance_is_planned_alone_and_beside_that_of_the_classes(favourite, scales):
    config = TuneConfig(
        guidance_scales=(1.0, 2.0),
        internal_scales=scales,
        internal_intervals=((0.0, 1.0), (0.0, 0.6)),
        draw={"sampling": {"internal_scale": 1.4}},
    )
    known, longest = {}, len(planned(config, {}))

    def measure(settings):
        known[settings] = abs(settings.guidance_scale - favourite[0]) + abs(settings.internal_scale - favourite[1])
        assert settings in planned(config, known)
        assert len(planned(config, known)) <= longest
        return known[settings]

    search(config, measure)
    assert {settings.internal_scale for settings in known} == set(scales)
    assert all(settings.internal_interval is None for settings in known if settings.internal_scale == 1)
    internal = {settings.internal_interval for settings in known if settings.internal_scale != 1}
    best = min(known, key=known.get)
    assert internal == {None, (0.0, 0.6)} or best.internal_scale == 1


def test_the_work_of_settings_follows_their_evaluations():
    one = expected_work(SolverConfig(num_inference_steps=1))
    step = expected_work(SolverConfig(num_inference_steps=2)) - one
    assert expected_work(SolverConfig(num_inference_steps=10)) == one + 9 * step
    assert expected_work(SolverConfig(num_inference_steps=1000)) == one + 999 * step
    assert expected_work(SolverConfig(num_inference_steps=10, solver="heun")) == one + 19 * step
    assert expected_work(SolverConfig(num_inference_steps=10, guidance_scale=2.0)) == one + 19 * step
    assert expected_work(SolverConfig(num_inference_steps=10, internal_scale=1.7)) == one + 9 * step
    half = SolverConfig(num_inference_steps=10, guidance_scale=2.0, guidance_interval=(0.45, 1.0))
    assert expected_work(half) == one + 14 * step
    assert expected_work(SolverConfig(solver="dopri5")) > one
    assert expected_work(SolverConfig(solver="sde_heun", num_inference_steps=20)) > one


def test_the_time_that_is_left_follows_the_work():
    cheap, costly = SolverConfig(num_inference_steps=8), SolverConfig(num_inference_steps=18, guidance_scale=2.0)
    finished = {cheap: Trial(cheap, 1.0, 8, 5.0)}
    ratio = expected_work(costly) / expected_work(cheap)
    assert time_left([cheap, costly], finished) == pytest.approx(5.0 * ratio)
    assert standing([cheap, costly], finished) == f"trial 1 of 2, {5.0 * ratio:.1f} s left"
    assert standing([cheap], finished) == "trial 1 of 1"
