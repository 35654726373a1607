"""The report of a search: quality against cost, the best settings, and their images."""

import math
from collections.abc import Sequence

from alight.artifacts import library_versions
from alight.config import SolverConfig, TuneConfig
from alight.evaluation.tokenizer_report import magnification
from alight.pipelines.selection import Selection, selection_text
from alight.reporting.pictures import image_grid
from alight.reporting.report import Conditions, Curve, Figure, Picture, Report, Stage
from alight.tune.averages import AveragedSettings, average_of
from alight.tune.measure import Measure
from alight.tune.record import Trial
from alight.tune.trial import SettingsSearch, front

TABLE = "settings.csv"
SHOWN_IMAGES = 10  # in each of two rows


def describe(
    config: TuneConfig,
    search: SettingsSearch,
    trials: Sequence[Trial],
    best: Trial,
    storing: str,
    doubt: str | None,
    selection: Selection,
) -> Report:
    """Quality against cost, the best settings and their images.

    Args:
        config: of the search.
        search: that made the trials.
        trials: in the order in which they were made.
        best: of them.
        storing: sentence on the place where the best settings are stored.
        doubt: reason why the distances do not tell good settings from bad ones, or None.
        selection: record of the search.
    """
    images = search.images(best.settings)
    shown = images.pick(range(min(SHOWN_IMAGES * 2, images.count)))
    measure = search.measure_name
    cheapest = "; ".join(f"NFE {trial.nfe:g}: {trial.distance:.4g} ({trial.settings})" for trial in front(trials))
    conditions = {**images.conditions, "comparable": f"no: {doubt}" if doubt else search.comparable}
    return Report(
        title=f"Sampling settings of {config.pipeline.name}",
        summary=f"{len(trials)} settings were tried on the same {images.count:,} labels and noises. "
        f"{chosen_as(config.within)}: {best.settings}. {storing}",
        figures=best_figures(search.measure, conditions, trials[0], best, measure),
        pictures=[
            Picture(
                "With the best settings", str(best.settings), image_grid(shown, SHOWN_IMAGES), magnification(shown)
            )
        ],
        distributions=quality_curves(trials, measure),
        stages=[Stage("tune", sum(trial.seconds for trial in trials), {"trials": len(trials)})],
        configuration={"tune": config.model_dump(mode="json"), "best": best.settings.model_dump(mode="json")},
        versions=library_versions(),
        notes=[
            f"Every trial, with all its settings, is in {TABLE} beside this page.",
            selection_text(selection),
            f"The cheapest settings for every quality: {cheapest}.",
            *averages_note(trials),
        ],
    )


def chosen_as(within: float) -> str:
    """The rule by which settings were chosen, in words."""
    return f"The cheapest within {within:.0%} of the lowest distance" if within else "The best"


def averages_note(trials: Sequence[Trial]) -> list[str]:
    """A sentence on the averages that were tried, if the search was about them."""
    tried = [trial.settings for trial in trials if isinstance(trial.settings, AveragedSettings)]
    widths = dict.fromkeys("own weights" if each.average is None else f"{each.average:g}" for each in tried)
    return [f"Averages of the weights that were tried, by their widths: {', '.join(widths)}."] if widths else []


def best_figures(measure: Measure, conditions: Conditions, first: Trial, best: Trial, name: str) -> list[Figure]:
    """Distance and cost of the best settings, beside those of the first; `name` is that of the distance."""
    conditions = {
        **conditions,
        "NFE": best.nfe,
        "features": measure.reference.statistics[measure.key].features or measure.key,
        "reference": measure.reference.description,
    }
    return [
        Figure(
            "best_distance",
            name,
            best.distance,
            digits=3,
            conditions=conditions,
            reference=("before", first.distance),
            explanation=f"With {best.settings}.",
            better="lower",
        ),
        Figure("best_nfe", "Model evaluations per image", best.nfe, digits=0, reference=("before", first.nfe)),
    ]


def quality_curves(trials: Sequence[Trial], measure: str) -> list[Curve]:
    """The distance against the cost and against the scales of guidance, where there is anything to draw."""
    optimal = front(trials)
    cheapest = [trial.nfe for trial in optimal], [trial.distance for trial in optimal]
    scales, internal = (
        best_at([(getattr(trial.settings, name), trial.distance) for trial in trials])
        for name in ("guidance_scale", "internal_scale")
    )
    by_cost = {"best for its cost": cheapest, **by_solver(trials)}
    curves = [
        Curve("Quality against cost", "model evaluations per image", measure, by_cost),
        Curve("Guidance", "guidance scale", measure, {"best of its scale": scales}),
    ]
    if len(internal[0]) > 1:
        curves.append(Curve("Internal guidance", "internal scale", measure, {"best of its scale": internal}))
    averages = [(width, trial.distance) for trial in trials if (width := average_of(trial.settings)) is not None]
    if averages:
        series = {"best of its width": best_at(averages)}
        curves.append(Curve("Average of the weights", "width, as a share of the training", measure, series))
    return [curve for curve in curves if finite(curve)]


def by_solver(trials: Sequence[Trial]) -> dict[str, tuple[list[float], list[float]]]:
    """The best of every solver for every cost, the cheapest first."""
    solvers = dict.fromkeys(trial.settings.solver for trial in trials)
    return {
        solver: best_at([(trial.nfe, trial.distance) for trial in trials if trial.settings.solver == solver])
        for solver in solvers
    }


def best_at(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Of points (x, y) the lowest at every x, from left to right."""
    lowest: dict[float, float] = {}
    for x, y in sorted(points):
        lowest[x] = min(y, lowest.get(x, math.inf))
    return list(lowest), list(lowest.values())


def finite(curve: Curve) -> bool:
    """Tell if there is anything to draw."""
    return any(math.isfinite(value) for _, values in curve.series.values() for value in values)


def table(trials: Sequence[Trial]) -> dict[str, list[object]]:
    """A column per setting and result, a row per trial, the best first."""
    ordered = sorted(trials, key=lambda trial: trial.distance)
    columns: dict[str, list[object]] = {
        name: [getattr(trial.settings, name) for trial in ordered] for name in SolverConfig.model_fields
    }
    if any(isinstance(trial.settings, AveragedSettings) for trial in ordered):
        columns["average"] = [average_of(trial.settings) or "own weights" for trial in ordered]
    results = {name: [getattr(trial, name) for trial in ordered] for name in ("distance", "nfe", "seconds")}
    return columns | results
