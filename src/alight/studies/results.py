"""The figures of a study: read from the reports of its runs, joined over seeds, compared in pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from alight.artifacts import SAMPLES_RECORD
from alight.metrics.intervals import Interval, Speedup, paired_difference, speedup
from alight.reporting.report import Conditions, Figure
from alight.runtime.reading import read_json_object
from alight.studies.grid import Run

REPORT = "report.json"


class StudyMeasure(NamedTuple):
    """A figure of the runs' reports that a study compares.

    Attributes:
        key: in `report.json`.
        label: on the page.
        better: direction.
        digits: decimals on the page.
        unit: such as dB.
        explanation: a sentence.
    """

    key: str
    label: str
    better: Literal["higher", "lower", ""]
    digits: int
    unit: str = ""
    explanation: str = ""


PSNR = StudyMeasure("reconstruction_psnr", "Reconstruction PSNR", "higher", 2, "dB", "Of held-out images.")
RECONSTRUCTION = (
    PSNR,
    StudyMeasure("reconstruction_ssim", "Reconstruction SSIM", "higher", 4, "", "Of held-out images."),
    StudyMeasure(
        *("reconstruction_observed", "Frechet distance of reconstructions, observer", "lower", 4, ""),
        "Of held-out images and their reconstructions.",
    ),
    StudyMeasure(
        *("linear_cosine", "Features read off linearly", "higher", 3, ""),
        "Cosine of the foundation model's features and the best linear map of the latents.",
    ),
)
LATENTS = (  # of the tokenizer's own report, as far as it has them
    StudyMeasure("gram_agreement", "Gram agreement", "higher", 3, "", "Of positions, with the foundation model's."),
    StudyMeasure(
        "decoder_drift", "Decoder drift", "lower", 3, "", "Change of decoded images by noise in the latents."
    ),
    StudyMeasure("neighbour_accuracy", "Nearest-neighbour accuracy", "higher", 3, "", "Class of the nearest latent."),
)
LABELS = StudyMeasure(
    *("generated_label_accuracy", "Label accuracy", "higher", 3, ""),
    "Share of samples in which a classifier that was fitted to real images sees the class that was asked for.",
)
OBSERVER = StudyMeasure(
    *("frechet_distance_observer", "Frechet distance, observer", "lower", 4, ""),
    "Of samples and training images, in the features of a network that took no part in training.",
)
FOUNDATION = StudyMeasure(
    *("frechet_distance_foundation", "Frechet distance, foundation model", "lower", 3, ""),
    "In the features that the latents were aligned with: biased towards alignment, and never the only measure.",
)
GENERATION = (
    LABELS,
    OBSERVER,
    StudyMeasure("observer_density", "Density, observer", "higher", 3, "", "Real neighbourhoods around samples."),
    StudyMeasure("observer_coverage", "Coverage, observer", "higher", 3, "", "Real images with a sample nearby."),
    StudyMeasure(
        *("observer_authenticity", "Authenticity, observer", "higher", 3, ""),
        "Share of samples that copy no training image; more than 0.5 for new real ones.",
    ),
    StudyMeasure("frechet_distance_grey_pixels", "Frechet distance, 8x8 grey pixels", "lower", 3),
    FOUNDATION,
)
UNIFORMITY = (
    StudyMeasure("density_cv", "Density CV of the latents", "lower", 3, "", "Of a t-SNE map, as in table 6."),
    StudyMeasure("density_gini", "Gini of the latents' density", "lower", 3),
    StudyMeasure("density_entropy", "Entropy of the latents' density", "higher", 3),
)
MEASURES = (*RECONSTRUCTION, *LATENTS, *GENERATION, *UNIFORMITY)  # rows of the table; absent ones are left out


@dataclass(frozen=True)
class Results:
    """Figures of all runs that have finished.

    Attributes:
        steps: after which samples were measured.
        values: setting -> key -> seed -> value at the end.
        curves: setting -> key -> seed -> steps -> value, of samples.
        evaluations: setting -> of the transformer per sample.
        costs: setting -> of a training step, where they are compared after the same time, too.
    """

    steps: tuple[int, ...]
    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    curves: dict[str, dict[str, dict[int, dict[int, float]]]] = field(default_factory=dict)
    evaluations: dict[str, float] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, runs: Iterable[Run], steps: tuple[int, ...], costs: Mapping[str, float] | None = None) -> Results:
        """Read the reports of the runs that are complete."""
        results = cls(steps, costs=costs or {})
        for run in runs:
            if run.is_finished:
                results._add(run)
        return results

    def _add(self, run: Run) -> None:
        values = self.values.setdefault(run.setting, {})
        curves = self.curves.setdefault(run.setting, {})
        remedy = "Delete its folder; the study makes it again."
        found = read_json_object(run.jobs["reconstruction"].output / REPORT, remedy)
        for step in sorted(int(name.partition("/")[2]) for name in run.jobs if name.startswith("report/")):
            report = read_json_object(run.jobs[f"report/{step}"].output / REPORT, remedy)
            for measure in GENERATION:
                if isinstance(value := report.get(measure.key), int | float):
                    curves.setdefault(measure.key, {}).setdefault(run.seed, {})[step] = float(value)
        samples = read_json_object(run.jobs[f"samples/{step}"].output / SAMPLES_RECORD, remedy)
        if isinstance(evaluations := samples.get("nfe"), int | float):
            self.evaluations[run.setting] = float(evaluations)
        found = {**report, **found}  # PSNR as measured by the tokenizer's own report
        for measure in MEASURES:
            if isinstance(value := found.get(measure.key), int | float):
                values.setdefault(measure.key, {})[run.seed] = float(value)

    @property
    def settings(self) -> list[str]:
        """The names of the settings with a finished run."""
        return list(self.values)

    def interval(self, setting: str, measure: StudyMeasure) -> Interval | None:
        """The mean of a figure over the seeds of a setting."""
        found = self.values.get(setting, {}).get(measure.key)
        return Interval.of(list(found.values())) if found else None

    def difference(self, setting: str, baseline: str, measure: StudyMeasure) -> Interval | None:
        """The paired difference of a figure to that of a baseline; None where both have the same tokenizer."""
        own, others = (self.values.get(name, {}).get(measure.key, {}) for name in (setting, baseline))
        shared = measure not in GENERATION and own == others
        return None if shared else paired_difference(own, others)

    def difference_after(
        self, setting: str, baseline: str, measure: StudyMeasure, step: int, baseline_step: int | None = None
    ) -> Interval | None:
        """The paired difference of a figure of samples after some steps of training, of the baseline after as many."""
        own = self.values_after(setting, measure, step)
        others = self.values_after(baseline, measure, baseline_step or step)
        return paired_difference(own, others)

    def values_after(self, setting: str, measure: StudyMeasure, step: int) -> dict[int, float]:
        """A figure of samples after some steps of training, by seed."""
        curves = self.curves.get(setting, {}).get(measure.key, {})
        return {seed: curve[step] for seed, curve in curves.items() if step in curve}

    def speedup(self, setting: str, baseline: str, measure: StudyMeasure, after: int) -> Speedup | None:
        """The factor of steps at which the baseline has what the setting has after some."""
        own, others = (self.curves.get(name, {}).get(measure.key, {}) for name in (setting, baseline))
        return speedup(own, others, after, measure.better == "higher")

    def learning_curve(self, setting: str, measure: StudyMeasure) -> dict[int, Interval]:
        """The mean of a figure over seeds after every measured number of steps."""
        seeds = self.curves.get(setting, {}).get(measure.key, {})
        return {
            step: Interval.of([values[step] for values in seeds.values()])
            for step in self.steps
            if seeds and all(step in values for values in seeds.values())
        }

    def has(self, measure: StudyMeasure) -> bool:
        """True if any run has a figure of this measure."""
        return any(measure.key in found for found in self.values.values())


def figure(name: str, measure: StudyMeasure, interval: Interval, conditions: Conditions, label: str = "") -> Figure:
    """The mean of a measure with its interval."""
    return Figure(
        name,
        label or measure.label,
        interval.mean,
        measure.unit,
        measure.digits,
        {**conditions, "seeds": interval.n},
        explanation=measure.explanation,
        headline=False,
        better=measure.better,
        interval=(interval.low, interval.high),
    )


def columns(
    results: Results, measures: Sequence[StudyMeasure], conditions: Mapping[str, Conditions]
) -> dict[str, list[Figure | None]]:
    """A row per measure with a column per setting."""
    rows: dict[str, list[Figure | None]] = {}
    for measure in measures:
        if results.has(measure):
            found = [(setting, results.interval(setting, measure)) for setting in results.settings]
            rows[measure.label] = [
                None if interval is None else figure(measure.key, measure, interval, conditions[setting])
                for setting, interval in found
            ]
    return rows


def in_words(interval: Interval, measure: StudyMeasure) -> str:
    """A mean with its interval in words."""
    unit = f" {measure.unit}" if measure.unit else ""
    if interval.n == 1:
        return f"{interval.mean:.{measure.digits}f}{unit} (one run)"
    ends = f"{interval.low:.{measure.digits}f} to {interval.high:.{measure.digits}f}"
    return f"{interval.mean:.{measure.digits}f}{unit} ({ends})"
