"""Settings after the same time of training: what costs more per step is measured after fewer steps.

The time is that of all steps of the unchanged arrow. A setting whose steps cost less is measured at its last one, when
it has used a part of that time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from alight.metrics.intervals import Interval
from alight.reporting.report import Comparison, Conditions, Figure, in_a_sentence
from alight.studies.costs import NEGLIGIBLE, step_at_equal_time
from alight.studies.results import GENERATION, LABELS, OBSERVER, Results, StudyMeasure, figure, in_words

TITLE = "At the same time of training"
COST = StudyMeasure(
    *("cost_per_step", "Cost of a training step", "lower", 2, ""),
    "As a multiple of that of the unchanged transformer, measured with both in turn.",
)
STEPS = StudyMeasure("steps_at_equal_time", "Steps in that time", "", 0)
USED = StudyMeasure(
    *("time_used", "Share of that time", "", 2, ""), "Less than 1 where steps cost less and the last one came before."
)
EVALUATIONS = StudyMeasure(
    *("evaluations_per_sample", "Model evaluations per sample", "lower", 0, ""), "The cost of sampling."
)


def equal_time_table(results: Results, conditions: Mapping[str, Conditions]) -> Comparison:
    """Costs, and every figure of samples after the same time of training."""
    settings = [setting for setting in results.settings if setting in results.costs]
    steps = {setting: _step(results, setting) for setting in settings}

    def row(measure: StudyMeasure, values: Mapping[str, float]) -> list[Figure | None]:
        return [_plain(measure, values.get(setting), conditions[setting]) for setting in settings]

    used = {setting: results.costs[setting] * steps[setting] / results.steps[-1] for setting in settings}
    rows = {
        COST.label: row(COST, results.costs),
        STEPS.label: row(STEPS, steps),
        USED.label: row(USED, used),
        EVALUATIONS.label: row(EVALUATIONS, results.evaluations),
    }
    for measure in GENERATION:
        found = {setting: results.values_after(setting, measure, steps[setting]) for setting in settings}
        if any(found.values()):
            rows[measure.label] = [
                figure(measure.key, measure, Interval.of(list(values.values())), _after(conditions, setting, steps))
                if (values := found[setting])
                else None
                for setting in settings
            ]
    return Comparison(settings, rows, TITLE)


def equal_time_figures(
    results: Results, conditions: Mapping[str, Conditions], before: Mapping[str, str]
) -> Iterator[Figure]:
    """The paired differences of those changes at which steps are not the same as time.

    Args:
        results: of the study.
        conditions: by setting.
        before: the setting that each is compared with.
    """
    for number, (setting, baseline) in enumerate(before.items(), start=1):
        for measure in GENERATION:
            difference = _difference(results, setting, baseline, measure)
            if difference is not None:
                steps = {name: _step(results, name) for name in (setting, baseline)}
                label = f"{measure.label} after the same time: {setting} - {baseline}"
                described = {**_after(conditions, setting, steps), "compared_with_steps": steps[baseline]}
                yield figure(f"{measure.key}_at_equal_time_{number}", measure, difference, described, label)


def equal_time_summary(results: Results, before: Mapping[str, str]) -> str:
    """The differences in words; nothing where every step costs the same."""
    sentences = []
    for measure in (LABELS, OBSERVER):
        told = [
            f"{setting} {in_words(difference, measure)}"
            for setting, baseline in before.items()
            if (difference := _difference(results, setting, baseline, measure)) is not None
        ]
        if told:
            sentences.append(
                f"After the same time of training, {in_a_sentence(measure.label)} changes by: {'; '.join(told)}."
            )
    return " ".join(sentences)


def _step(results: Results, setting: str) -> int:
    return step_at_equal_time(results.steps[-1], results.costs[setting])


def _difference(results: Results, setting: str, baseline: str, measure: StudyMeasure) -> Interval | None:
    """The paired difference after the same time; None where that is the same as after the same steps."""
    if setting not in results.costs or baseline not in results.costs:
        return None
    if all(abs(results.costs[name] - 1) <= NEGLIGIBLE for name in (setting, baseline)):
        return None
    steps = _step(results, setting), _step(results, baseline)
    return results.difference_after(setting, baseline, measure, *steps)


def _after(conditions: Mapping[str, Conditions], setting: str, steps: Mapping[str, int]) -> Conditions:
    return {**conditions[setting], "measured_after_steps": steps[setting]}


def _plain(measure: StudyMeasure, value: float | None, conditions: Conditions) -> Figure | None:
    """A number that is the same for all seeds."""
    if value is None:
        return None
    return Figure(
        *(measure.key, measure.label, value, measure.unit, measure.digits, conditions),
        explanation=measure.explanation,
        headline=False,
        better=measure.better,
    )
