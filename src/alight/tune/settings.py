"""Sampling settings that a search tries: the listed values, and nothing beyond them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alight.config import SolverConfig, TuneConfig
from alight.options import PUBLISHED_KAPPA
from alight.runtime.errors import InputError
from alight.tune.averages import AveragedSettings

Choice = dict[str, object]  # one listed value of every setting, by its name


def choices(config: TuneConfig) -> dict[str, Sequence[object]]:
    """Settings by name, in the order in which a stepwise search improves them."""
    averages: dict[str, Sequence[object]] = {"average": config.averages} if config.averages else {}
    return averages | {
        "guidance_scale": config.guidance_scales,
        "guidance_interval": config.guidance_intervals,
        "internal_scale": config.internal_scales,
        "internal_interval": config.internal_intervals,
        "timestep_shift": config.timestep_shifts,
        "time_warp": config.time_warps,
        "solver": config.solvers,
        "kappa": config.kappas,
        "num_inference_steps": config.steps,
    }


def starting_choice(config: TuneConfig) -> Choice:
    """The listed values nearest to those of `draw.sampling` that go together.

    Raises:
        InputError: no listed values go together.
    """
    wanted = config.draw.sampling
    values_near = {
        "average": None,
        "guidance_scale": wanted.guidance_scale,
        "guidance_interval": wanted.guidance_interval or (0.0, 1.0),
        "internal_scale": wanted.internal_scale,
        "internal_interval": wanted.internal_interval or (0.0, 1.0),
        "timestep_shift": wanted.timestep_shift or 1.0,
        "time_warp": wanted.time_warp,
        "solver": wanted.solver,
        "kappa": wanted.kappa,
        "num_inference_steps": wanted.num_inference_steps,
    }
    ordered = {name: nearest_first(values, values_near[name]) for name, values in choices(config).items()}
    for choice in combinations(ordered):
        if settings_of(wanted, choice) is not None:
            return choice
    raise InputError(
        "No settings of the lists go together: stochastic solvers need at least 2 steps and no time warp, and a "
        "guidance interval has its lower end first. Add such values to the lists."
    )


def combinations(values: Mapping[str, Sequence[object]]) -> Iterator[Choice]:
    """Every combination of listed values, the last name changing fastest."""
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def settings_of(base: SolverConfig, choice: Choice) -> SolverConfig | None:
    """The settings of a choice; None where its values do not go together.

    A value without an effect is left out: an interval without guidance or of all times, a shift of 1 or beside a time
    warp, and kappa of other solvers than ucgm.
    """
    merged = base.model_dump() | choice
    for kind in ("guidance", "internal"):
        if merged[f"{kind}_scale"] == 1 or merged[f"{kind}_interval"] == (0.0, 1.0):
            merged[f"{kind}_interval"] = None
    if merged["timestep_shift"] == 1 or merged["time_warp"] is not None:
        merged["timestep_shift"] = None
    if merged["solver"] != "ucgm":
        merged["kappa"] = PUBLISHED_KAPPA
    try:
        return settings_from(merged)
    except ValueError:  # such as a stochastic solver with a time warp
        return None


def settings_from(values: Mapping[str, Any]) -> SolverConfig:
    """Settings from plain data, with the average of the weights where it is one of them.

    Raises:
        ValueError: they do not go together.
    """
    return (AveragedSettings if "average" in values else SolverConfig).model_validate(values)


def nearest_first(values: Sequence[object], wanted: object) -> list[object]:
    """Numbers by their distance from the wanted one, other values with the wanted one first; ties as listed."""

    def distance(value: object) -> float:
        if isinstance(value, int | float) and isinstance(wanted, int | float):
            return abs(value - wanted)
        return float(value != wanted)

    return sorted(values, key=distance)
