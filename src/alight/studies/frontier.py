"""`alight study frontier`: reconstruction against generation over latent widths, plain and aligned.

More channels reconstruct better and are harder to generate: the optimization dilemma (paper, figure 1). Alignment
moves the frontier, and makes training converge faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from alight.artifacts import Artifact
from alight.config import FrontierStudyConfig, Job
from alight.metrics.intervals import Speedup
from alight.reporting.report import Bars, Comparison, Conditions, Curve, Figure, in_a_sentence
from alight.studies.grid import Setting, repetitions, typical_jobs
from alight.studies.results import (
    FOUNDATION,
    LABELS,
    MEASURES,
    OBSERVER,
    PSNR,
    UNIFORMITY,
    Results,
    StudyMeasure,
    columns,
    figure,
    in_words,
)
from alight.studies.study import Study, carry_out_study

KINDS = ("plain", "aligned")


def run(config: FrontierStudyConfig) -> Artifact:
    """Train and measure every width with and without alignment, each with several seeds, and write the report.

    Runs of the same width and seed begin from the same weights and see the same batches and noise; what is finished
    already is kept.

    Raises:
        InputError: no run can be carried out, or the folder holds another study; what was finished before stays.
    """
    return carry_out_study(config, settings(config), FrontierStudy(config))


def wire(config: FrontierStudyConfig) -> dict[str, Job]:
    """The jobs that a plan measures: the shared ones, and those of one run."""
    return typical_jobs(config, settings(config))


def repeats(config: FrontierStudyConfig) -> dict[str, int]:
    """The number of times that each of them is carried out."""
    return repetitions(config, settings(config))


def settings(config: FrontierStudyConfig) -> list[Setting]:
    """Both kinds of every width."""
    found = []
    for channels in config.latent_channels:
        widest = channels == max(config.latent_channels)
        seeds = config.seeds_at_widest if widest and config.seeds_at_widest is not None else config.seeds
        for kind in KINDS:
            plain = {"tokenizer.alignment.foundation": None} if kind == "plain" else {}
            changes = {"tokenizer.model.latent_channels": channels, **plain}
            found.append(Setting(name(kind, channels), changes, seeds))
    return found


def name(kind: str, channels: int) -> str:
    """The name of a setting."""
    return f"{kind} d{channels}"


class FrontierStudy(Study):
    """The parts of the report that only a frontier has."""

    title = "The frontier of reconstruction and generation"

    def __init__(self, config: FrontierStudyConfig) -> None:
        self.widths = config.latent_channels

    def summary(self, results: Results) -> str:
        """The dilemma and its remedy, in the words that the intervals allow."""
        return " ".join([*self._dilemma(results), *self._remedy(results)])

    def _dilemma(self, results: Results) -> Iterator[str]:
        narrow, wide = name("plain", self.widths[0]), name("plain", self.widths[-1])
        generation = LABELS if results.has(LABELS) else OBSERVER
        for measure, half in ((PSNR, "reconstruction"), (generation, "generation")):
            low, high = results.interval(narrow, measure), results.interval(wide, measure)
            if low is None or high is None or narrow == wide:
                continue
            sure = "" if low.n == 1 or low.apart_from(high) else " (the intervals overlap)"
            better = (high.mean > low.mean) == (measure.better == "higher")
            yield (
                f"Without alignment, {half} {'improves' if better else 'worsens'} from {self.widths[0]} to "
                f"{self.widths[-1]} channels: {measure.label} {in_words(low, measure)} and "
                f"{in_words(high, measure)}{sure}."
            )

    def _remedy(self, results: Results) -> Iterator[str]:
        wide, plain = name("aligned", self.widths[-1]), name("plain", self.widths[-1])
        for measure in (LABELS, OBSERVER, PSNR):
            difference = results.difference(wide, plain, measure)
            if difference is None:
                continue
            sure = "" if difference.n == 1 or difference.excludes_zero else ", an interval that includes zero"
            change = f"{in_words(difference, measure)}{sure}"
            yield f"At {self.widths[-1]} channels, alignment changes {measure.label} by {change}."
        yield from self._convergence(results, wide, plain)
        ours, observed = (results.difference(wide, plain, measure) for measure in (FOUNDATION, OBSERVER))
        if ours is not None and observed is not None and ours.n > 1 and (ours.mean < 0) != (observed.mean < 0):
            yield "The foundation model's own distance disagrees with the observer's; trust the observer's."

    def _convergence(self, results: Results, wide: str, plain: str) -> Iterator[str]:
        """The difference after half of the steps, and the steps that plain needs to catch up."""
        measure, half = (LABELS if results.has(LABELS) else OBSERVER), results.steps[-1] // 2
        difference = results.difference_after(wide, plain, measure, half)
        found = results.speedup(wide, plain, measure, half)
        if difference is None or found is None:
            return
        factor = found.factor
        interval = "" if factor.n == 1 or found.unreached else f" ({factor.low:.2f} to {factor.high:.2f})"
        bound = "at least " if found.unreached else ""
        yield (
            f"After half of the training steps the difference is {in_words(difference, measure)}, and plain needs "
            f"{bound}{factor.mean:.2f} times the steps{interval} to come as far."
        )

    def figures(self, results: Results, conditions: Mapping[str, Conditions]) -> Iterator[Figure]:
        """Paired differences at every width, and the factors of convergence."""
        for channels in self.widths:
            aligned, plain = name("aligned", channels), name("plain", channels)
            for measure in MEASURES:
                difference = results.difference(aligned, plain, measure)
                if difference is not None:
                    label = f"{measure.label}, d{channels}: aligned - plain"
                    shown = figure(f"{measure.key}_gain_d{channels}", measure, difference, conditions[aligned], label)
                    yield headline(shown, channels == self.widths[-1] and measure in (LABELS, OBSERVER, PSNR))
            for measure in (LABELS, OBSERVER):
                yield from self._on_the_way(results, channels, measure, conditions[aligned])

    def _on_the_way(
        self, results: Results, channels: int, measure: StudyMeasure, conditions: Conditions
    ) -> Iterator[Figure]:
        """Paired differences before the end of training, and factors of convergence."""
        aligned, plain = name("aligned", channels), name("plain", channels)
        for step, words in shares(results.steps):
            own: Conditions = {**conditions, "steps of the aligned run": step}
            label = f"{measure.label}, d{channels}, after {words} of the steps: aligned - plain"
            difference = results.difference_after(aligned, plain, measure, step)
            if difference is not None and step != results.steps[-1]:
                yield figure(f"{measure.key}_gain_d{channels}_{step}", measure, difference, own, label)
            found = results.speedup(aligned, plain, measure, step)
            if found is not None:
                what = in_a_sentence(measure.label)
                label = f"Steps that plain needs for the {what} of aligned after {words}, d{channels}"
                yield speedup_figure(f"{measure.key}_speedup_d{channels}_{step}", label, found, own)

    def plots(self, results: Results) -> Iterator[Curve]:
        """The frontier, as the paper draws it, and how evenly filled latents are against generation."""
        for measure in (LABELS, OBSERVER):
            yield self._against(results, PSNR, measure)
        yield self._against(results, UNIFORMITY[0], LABELS if results.has(LABELS) else OBSERVER)

    def _against(self, results: Results, across: StudyMeasure, up: StudyMeasure) -> Curve:
        series: dict[str, tuple[list[float], list[float]]] = {}
        bars: dict[str, list[Bars]] = {}
        labels: dict[str, list[str]] = {}
        for kind in KINDS:
            points = [
                (channels, x, y)
                for channels in self.widths
                if (x := results.interval(name(kind, channels), across)) is not None
                and (y := results.interval(name(kind, channels), up)) is not None
            ]
            if points:
                series[kind] = [x.mean for _, x, _ in points], [y.mean for _, _, y in points]
                bars[kind] = [Bars(x.low, x.high, y.low, y.high) for _, x, y in points]
                labels[kind] = [f"d{channels}" for channels, _, _ in points]
        unit = f" in {across.unit}" if across.unit else ""
        return Curve(
            f"{up.label} against {across.label}",
            f"{across.label}{unit}",
            up.label,
            series,
            bars=bars,
            labels=labels,
        )

    def comparison(self, results: Results, conditions: Mapping[str, Conditions]) -> Comparison:
        """Every figure of every setting."""
        return Comparison(results.settings, columns(results, MEASURES, conditions), "Every setting")


def shares(steps: Sequence[int]) -> Iterator[tuple[int, str]]:
    """A third, half and all of the steps of training, as far as samples were measured there."""
    for share, words in ((3, "a third"), (2, "half"), (1, "all")):
        if steps[-1] % share == 0 and steps[-1] // share in steps:
            yield steps[-1] // share, words


def headline(shown: Figure, wanted: bool) -> Figure:
    """A figure, also as a card at the top where that is wanted."""
    return replace(shown, headline=wanted)


def speedup_figure(name: str, label: str, found: Speedup, conditions: Conditions) -> Figure:
    """A factor of convergence; where a baseline never came there, a lower bound, which has no interval."""
    conditions = {**conditions, "seeds": found.factor.n}
    if found.unreached:
        label = f"{label}, at least"
        conditions["plain runs that never reach it"] = found.unreached
    return Figure(
        *(name, label, found.factor.mean, "x", 2, conditions),
        explanation="Steps of the plain run, as a multiple of those of the aligned one; geometric mean.",
        headline=False,
        interval=None if found.unreached else (found.factor.low, found.factor.high),
    )
