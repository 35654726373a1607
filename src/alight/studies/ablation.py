"""`alight study ablation`: named changes of one arrow, one at a time and on top of each other, in one report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alight.artifacts import Artifact
from alight.config import AblationStudyConfig, Job
from alight.metrics.intervals import Interval
from alight.reporting.report import Comparison, Conditions, Curve, Figure
from alight.runtime.errors import InputError
from alight.studies.equal_time import equal_time_figures, equal_time_summary, equal_time_table
from alight.studies.grid import Setting, changed, repetitions, typical_jobs
from alight.studies.results import LABELS, MEASURES, OBSERVER, PSNR, Results, columns, figure, in_words
from alight.studies.study import Study, carry_out_study

BASELINE = "unchanged"


def run(config: AblationStudyConfig) -> Artifact:
    """Train and measure the arrow as it is and with every change, each with several seeds, and write the report.

    Raises:
        InputError: there are no changes, or two of one name; no run can be carried out; or the folder holds another
            study. What was finished before stays.
    """
    return carry_out_study(config, settings(config), AblationStudy(config), config.equal_time)


def wire(config: AblationStudyConfig) -> dict[str, Job]:
    """The jobs that a plan measures: the shared ones, and those of one run."""
    return typical_jobs(config, settings(config))


def repeats(config: AblationStudyConfig) -> dict[str, int]:
    """The number of times that each of them is carried out."""
    return repetitions(config, settings(config))


def settings(config: AblationStudyConfig) -> list[Setting]:
    """The arrow as it is, every change alone, and the cumulated ones.

    Raises:
        InputError: there are no changes, or two of one name; or a setting changes nothing.
    """
    if not config.alone and not config.cumulated:
        raise InputError("An ablation needs changes: 'alone' or 'cumulated', as in digits/ablation_tokenizer.")
    if twice := ({BASELINE, *config.alone} & set(config.cumulated)) | ({BASELINE} & set(config.alone)):
        raise InputError(f"Two settings are called {', '.join(sorted(twice))}; every change needs a name of its own.")
    if empty := [name for name, changes in (*config.alone.items(), *config.cumulated.items()) if not changes]:
        raise InputError(f"The setting '{empty[0]}' has no changes. Give it some, or leave it out.")
    unchanged = Setting(BASELINE, {}, config.seeds)
    alone = [Setting(name, changes, config.seeds) for name, changes in config.alone.items()]
    cumulated: list[Setting] = []
    together: dict[str, Any] = {}
    for name, changes in config.cumulated.items():
        together = {**together, **changes}
        cumulated.append(Setting(name, together, config.seeds))
    for column in (alone, cumulated):  # the first of the cumulated ones may be among those alone
        require_different(config, [unchanged, *column])
    return [unchanged, *alone, *cumulated]


def require_different(config: AblationStudyConfig, compared: Sequence[Setting]) -> None:
    """Refuse settings that are what an earlier one is, whose difference from it would be none.

    Raises:
        InputError: names both; or a change names no key, or has a value that does not fit.
    """
    earlier: list[tuple[str, AblationStudyConfig]] = []
    for setting in compared:
        own = changed(config, setting)
        if (same := next((name for name, each in earlier if each == own), None)) is not None:
            raise InputError(
                f"The setting '{setting.name}' is the same as '{same}': its changes give what is there already. "
                "Change something else, or leave it out."
            )
        earlier.append((setting.name, own))


class AblationStudy(Study):
    """The parts of the report that only an ablation has."""

    title = "The effect of every change"

    def __init__(self, config: AblationStudyConfig) -> None:
        rungs = [BASELINE, *config.cumulated]
        self.before = dict.fromkeys(config.alone, BASELINE) | dict(zip(rungs[1:], rungs, strict=False))

    def summary(self, results: Results) -> str:
        """The changes whose effect is significant, its interval excluding zero, and those whose effect is not."""
        sentences = []
        for measure in (LABELS, OBSERVER, PSNR):
            known: list[tuple[str, Interval]] = []
            unknown: list[tuple[str, Interval]] = []
            for setting, before in self.before.items():
                difference = results.difference(setting, before, measure)
                if difference is not None:
                    (known if difference.excludes_zero else unknown).append((setting, difference))
            if known:
                told = "; ".join(f"{setting} {in_words(change, measure)}" for setting, change in known)
                sentences.append(f"{measure.label} changes significantly with: {told}.")
            if unknown:
                names = ", ".join(setting for setting, _ in unknown)
                sentences.append(f"{measure.label} does not change significantly with: {names}.")
        return " ".join([*sentences, equal_time_summary(results, self.before)]).strip()

    def figures(self, results: Results, conditions: Mapping[str, Conditions]) -> Iterator[Figure]:
        """The paired difference of every change to the setting before it."""
        for number, (setting, before) in enumerate(self.before.items(), start=1):
            for measure in MEASURES:
                difference = results.difference(setting, before, measure)
                if difference is not None:
                    label = f"{measure.label}: {setting} - {before}"
                    yield figure(f"{measure.key}_change_{number}", measure, difference, conditions[setting], label)
        yield from equal_time_figures(results, conditions, self.before)

    def plots(self, results: Results) -> Iterator[Curve]:
        """Nothing: settings have no order but that of their names."""
        yield from ()

    def comparison(self, results: Results, conditions: Mapping[str, Conditions]) -> Comparison:
        """Every figure of every setting."""
        return Comparison(results.settings, columns(results, MEASURES, conditions), "Every setting")

    def further_comparisons(self, results: Results, conditions: Mapping[str, Conditions]) -> Iterator[Comparison]:
        """The settings after the same time of training."""
        if results.costs:
            yield equal_time_table(results, conditions)
