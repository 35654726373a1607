"""The order in which a search tries settings, and the trials that it has planned."""

import itertools
import math
from collections.abc import Callable, Mapping

from alight.config import SolverConfig, TuneConfig
from alight.tune.settings import choices, combinations, settings_of, starting_choice

Measure = Callable[[SolverConfig], float]
"""Settings -> their distance; less is better."""


def grid(config: TuneConfig, measure: Measure) -> None:
    """Try every combination that goes together."""
    starting_choice(config)  # refuses lists of which nothing goes together
    for choice in combinations(choices(config)):
        if (settings := settings_of(config.draw.sampling, choice)) is not None:
            measure(settings)


def stepwise(config: TuneConfig, measure: Measure) -> None:
    """Improve one setting after the other, keeping the best, then try every solver with every number of steps."""
    base, best = config.draw.sampling, starting_choice(config)
    lowest = math.inf
    if (settings := settings_of(base, best)) is not None:
        lowest = measure(settings)
    for name, values in choices(config).items():
        for value in values:
            choice = best | {name: value}
            if (settings := settings_of(base, choice)) is not None and (distance := measure(settings)) < lowest:
                best, lowest = choice, distance
    for solver, steps in itertools.product(config.solvers, config.steps):
        choice = best | {"solver": solver, "num_inference_steps": steps}
        if (settings := settings_of(base, choice)) is not None:
            measure(settings)


def search(config: TuneConfig, measure: Measure) -> None:
    """Try settings in the order that the configuration asks for; equal ones may come more than once.

    Raises:
        InputError: no listed settings go together.
    """
    (grid if config.search == "grid" else stepwise)(config, measure)


def planned(config: TuneConfig, known: Mapping[SolverConfig, float]) -> list[SolverConfig]:
    """All settings that a search is going to try, by the distances that are known so far.

    Guided settings without a known distance are taken to be better than all before, so that the guidance intervals,
    which a search without guidance leaves out, are in the plan from the beginning. So are those with both kinds of
    guidance better than those with one.
    """
    found: dict[SolverConfig, float] = {}

    def expected(settings: SolverConfig) -> float:
        if settings not in found:
            kinds = guidances(settings)
            worse = bool(found) and (kinds == 0 or kinds < max(map(guidances, found)))
            found[settings] = known.get(settings, math.inf if worse else -1.0 - len(found))
        return found[settings]

    search(config, expected)
    return list(found)


def guidances(settings: SolverConfig) -> int:
    """The kinds of guidance that are on."""
    return (settings.guidance_scale != 1) + (settings.internal_scale != 1)
