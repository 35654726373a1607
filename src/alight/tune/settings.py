"""Sampling settings that a search tries: one by one, or all combinations."""

import itertools
from collections.abc import Iterator, Sequence

from alight.config import SolverConfig, TuneConfig


def choices(config: TuneConfig) -> dict[str, Sequence[object]]:
    """Settings by name, in the order in which a stepwise search improves them."""
    return {
        "guidance_scale": config.guidance_scales,
        "guidance_interval": config.guidance_intervals,
        "timestep_shift": [None if shift == 1 else shift for shift in config.timestep_shifts],
        "solver": config.solvers,
        "num_inference_steps": config.steps,
    }


def grid(config: TuneConfig) -> Iterator[SolverConfig]:
    """Every combination that goes together."""
    names = choices(config)
    for values in itertools.product(*names.values()):
        settings = changed(config.draw.sampling, **dict(zip(names, values, strict=True)))
        if settings is not None:
            yield settings


def changed(settings: SolverConfig, **values: object) -> SolverConfig | None:
    """Other settings; None where they do not go together. Without guidance, an interval means nothing."""
    merged = settings.model_dump() | values
    if merged["guidance_scale"] == 1 or merged["guidance_interval"] == (0.0, 1.0):
        merged["guidance_interval"] = None
    try:
        return SolverConfig.model_validate(merged)
    except ValueError:  # such as a stochastic solver with a shift
        return None
