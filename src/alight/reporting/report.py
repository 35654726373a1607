"""The parts of a report: figures, an answer, comparisons, pictures, curves, stages.

No figure travels without the conditions it was measured under. `report_files.write_report` puts it onto the disk.

    report = Report(
        title="Handwritten digits",
        summary="A tokenizer aligned with a vision transformer, a LightningDiT trained on its latents.",
        figures=(Figure("reconstruction_psnr", "Reconstruction", 30.1, "dB", digits=1, conditions={"n": 360}),),
        pictures=(Picture("Samples", "One row per class.", image_grid(samples, 10, labels=classes), magnify=2),),
    )
    write_report("runs/quickstart/report", report)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alight.reporting.pictures import check_images
from alight.runtime.errors import InputError

Conditions = dict[str, str | int | float]  # of a measurement, by name

PEOPLE = ("Frechet", "Gini", "Gram")  # whose names keep their capital letter
NAMES_OF_THE_REPORT = (
    *("title", "summary", "figures", "answer", "comparison", "stages", "results", "distributions", "curves"),
    *("configuration", "versions", "notes", "further_comparisons"),
)


@dataclass(frozen=True)
class Figure:
    """One measured number, with everything that it depends on.

    Attributes:
        name: Key in `report.json`, such as `generated_label_accuracy`.
        label: Its name on the page.
        value: The number; it may be nan or infinite, which the page says and JSON shows as null.
        unit: Such as `dB`; empty for a pure number.
        digits: Decimals on the page; JSON keeps them all.
        conditions: All that the number depends on: count, label protocol, solver, steps, guidance, seeds, hashes, ...
        reference: A number to compare it with, and its name: `("published", 27.96)`, `("goal", 0.9)`.
        explanation: One sentence for readers who do not know the measure.
        compare: The same measure of something real, such as held-out images.
        headline: True if it is also shown as a card at the top.
        better: The better direction: `higher`, `lower`, or empty where that is not settled.
        interval: Of a mean over several runs, the interval that holds the true mean with a probability of 95 %.

    Raises:
        InputError: `name` is not an identifier, `value` is not a number, or `digits` is negative.
    """

    name: str
    label: str
    value: float
    unit: str = ""
    digits: int = 2
    conditions: Mapping[str, str | int | float] = field(default_factory=dict)
    reference: tuple[str, float] | None = None
    explanation: str = ""
    compare: "Figure | None" = None
    headline: bool = True
    better: Literal["higher", "lower", ""] = ""
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise InputError(f"The figure name {self.name!r} is not an identifier; use letters, digits and _.")
        if not isinstance(self.value, Real):
            kind = type(self.value).__name__
            raise InputError(f"The figure {self.name} has a value of type {kind}; pass a number (`tensor.item()`).")
        if self.digits < 0:
            raise InputError(f"The figure {self.name} asks for {self.digits} decimals; use 0 or more.")


def in_a_sentence(label: str) -> str:
    """A label as words of a sentence: it begins with a small letter, unless a name or an abbreviation is first."""
    first = label.partition(" ")[0]
    return label if first in PEOPLE or first.isupper() else label[:1].lower() + label[1:]


class Measure(NamedTuple):
    """The part of a figure that is the same whenever it is taken: a row of a table of measures.

    Attributes:
        label, unit, digits, better, explanation, headline: as of `Figure`.
        conditions: those that never change, after those of the measurement.
    """

    label: str
    unit: str
    digits: int
    better: Literal["higher", "lower", ""]
    explanation: str
    headline: bool = True
    conditions: Mapping[str, str | int | float] = {}

    def figure(
        self,
        name: str,
        value: float,
        conditions: Conditions,
        label: str = "",
        reference: tuple[str, float] | None = None,
    ) -> Figure:
        """A value of this measure; `label` replaces that of the measure."""
        return Figure(
            name,
            label or self.label,
            value,
            self.unit,
            self.digits,
            {**conditions, **self.conditions},
            reference,
            self.explanation,
            headline=self.headline,
            better=self.better,
        )


@dataclass(frozen=True)
class Picture:
    """An image with its caption.

    Attributes:
        title: Heading.
        caption: Its content, and the way it was made.
        image: uint8, (H, W, C) with C = 1 (grey), 3 (RGB) or 4 (RGB and opacity).
        magnify: Width on the page in CSS pixels per image pixel; small images stay crisp.
        row_labels: Text beside each of as many equally high rows, such as class names.

    Raises:
        InputError: `image` has another type or shape, or `magnify` is less than 1.
    """

    title: str
    caption: str
    image: NDArray[np.uint8]
    magnify: int = 1
    row_labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_images(self.image[None], f"The picture {self.title!r}")
        if self.magnify < 1:
            raise InputError(f"The picture {self.title!r} has magnify={self.magnify}; use 1 or more.")


class Bars(NamedTuple):
    """The intervals around a point of a curve, in values of its axes; without length where there is none."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float


@dataclass(frozen=True)
class Curve:
    """Curves over one x axis, such as the losses of a training stage.

    Attributes:
        title: Heading.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        series: Name -> (x values, y values), equally long. Values that are not finite leave gaps.
        log_y: Logarithmic vertical axis.
        bars: Name -> intervals around every point, for series of few points.
        labels: Name -> text beside every point, likewise.

    Raises:
        InputError: x and y of a series, or its bars or labels, differ in length.
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    log_y: bool = False
    bars: Mapping[str, Sequence[Bars]] = field(default_factory=dict)
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (x, y) in self.series.items():
            if len(x) != len(y):
                raise InputError(
                    f"The series {name!r} of {self.title!r} has {len(x)} x values and {len(y)} y values; "
                    "they belong together in pairs."
                )
            for what, beside in (("bars", self.bars), ("labels", self.labels)):
                if name in beside and len(beside[name]) != len(x):
                    raise InputError(
                        f"The series {name!r} of {self.title!r} has {len(x)} points and {len(beside[name])} {what}."
                    )


@dataclass(frozen=True)
class Answer:
    """A question that the figures answer, in plain words.

    Attributes:
        question: Heading.
        answer: The answer in a few words.
        reasons: Why, a sentence or two each.
        advice: The steps to take, likewise.
        basis: The thresholds of the assessment, and their limits.
    """

    question: str
    answer: str
    reasons: Sequence[str] = ()
    advice: Sequence[str] = ()
    basis: str = ""


@dataclass(frozen=True)
class Comparison:
    """The same measures of several things, side by side.

    Attributes:
        columns: Names of the compared things.
        rows: Name of the measure -> a figure per column, None where it was not measured.
        title: Heading.

    Raises:
        InputError: A row has not one entry per column.
    """

    columns: Sequence[str]
    rows: Mapping[str, Sequence[Figure | None]]
    title: str = "Side by side"

    def __post_init__(self) -> None:
        for label, figures in self.rows.items():
            if len(figures) != len(self.columns):
                raise InputError(f"The row {label!r} has {len(figures)} entries for {len(self.columns)} columns.")

    def best(self, label: str) -> float | None:
        """The best value of a row; None where none is better than the others, as far as the page shows them."""
        figures = [figure for figure in self.rows[label] if figure is not None and math.isfinite(figure.value)]
        shown = {round(figure.value, figure.digits) for figure in figures}
        if len(shown) < 2 or not figures[0].better:
            return None
        return max(shown) if figures[0].better == "higher" else min(shown)


@dataclass(frozen=True)
class Stage:
    """The duration of one stage in seconds, and its work in a few words and numbers."""

    name: str
    seconds: float
    summary: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        title: Heading of the page.
        summary: One paragraph: what was done, on which data, with which result.
        figures: Measured numbers; their names are the top-level keys of `report.json`.
        answer: Their meaning.
        comparison: The same measures of several models.
        further_comparisons: More tables of this kind.
        pictures: Samples, originals beside reconstructions.
        results: Plots of the main result, shown first.
        distributions: Spread of scores over the images.
        curves: Losses.
        stages: Times, in the order in which the stages ran.
        configuration: The resolved configuration, nested.
        versions: Library -> version.
        notes: Omitted measurements, and caveats.

    Raises:
        InputError: Two figures share a name, or a figure is called like a part of the report.
    """

    title: str
    summary: str
    figures: Sequence[Figure] = ()
    answer: Answer | None = None
    comparison: Comparison | None = None
    pictures: Sequence[Picture] = ()
    results: Sequence[Curve] = ()
    distributions: Sequence[Curve] = ()
    curves: Sequence[Curve] = ()
    stages: Sequence[Stage] = ()
    configuration: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    further_comparisons: Sequence[Comparison] = ()

    def __post_init__(self) -> None:
        taken: dict[str, Figure | None] = dict.fromkeys(NAMES_OF_THE_REPORT)
        for figure in self.all_figures:
            if taken.setdefault(figure.name, figure) != figure:  # one real measurement may serve several figures
                raise InputError(
                    f"The report has two entries called {figure.name!r}; every figure needs another name, and "
                    f"{', '.join(NAMES_OF_THE_REPORT)} are taken."
                )

    @property
    def all_figures(self) -> tuple[Figure, ...]:
        """The figures and, behind each, the one it is compared with."""
        return tuple(each for figure in self.figures for each in (figure, figure.compare) if each is not None)
