"""What a report consists of, and how it gets onto the disk.

A run ends in two files: `report.json`, which tools read, and `report.html`, which people read. Both come from one
`Report`, so that they cannot disagree, and no figure travels without the conditions it was measured under.

    report = Report(
        title="Handwritten digits",
        summary="A tokenizer aligned with a vision transformer, a LightningDiT trained on its latents.",
        figures=(Figure("reconstruction_psnr", "Reconstruction", 30.1, "dB", digits=1, conditions={"n": 360}),),
        pictures=(Picture("Samples", "One row per class.", image_grid(samples, 10, labels=classes), magnify=2),),
    )
    write_report("runs/quickstart/report", report)
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alight.metrics.report_page import render_page
from alight.runtime.errors import InputError

NAMES_OF_THE_REPORT = ("title", "summary", "figures", "stages", "curves", "configuration", "versions", "notes")


@dataclass(frozen=True)
class Figure:
    """One measured number, with everything that it depends on.

    Attributes:
        name: Key in `report.json`, such as `generated_label_accuracy`.
        label: What the page calls it.
        value: The number; it may be nan or infinite, which the page says and JSON shows as null.
        unit: Such as `dB`; empty for a pure number.
        digits: Decimals on the page; JSON keeps them all.
        conditions: What the number depends on: count, label protocol, solver, steps, guidance, seeds, hashes, ...
        reference: A number to hold it against, and what that is: `("published", 27.96)`, `("goal", 0.9)`.
        explanation: One sentence for somebody who does not know the measure.
        compare: The same measure of something real, such as held-out images.
        headline: Whether it is also shown as a card at the top.

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

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise InputError(f"The figure name {self.name!r} is no identifier; use letters, digits and underscores.")
        if not isinstance(self.value, Real):
            kind = type(self.value).__name__
            raise InputError(f"The figure {self.name} has a value of type {kind}; pass a number (`tensor.item()`).")
        if self.digits < 0:
            raise InputError(f"The figure {self.name} asks for {self.digits} decimals; use 0 or more.")


@dataclass(frozen=True)
class Picture:
    """An image with its caption.

    Attributes:
        title: Heading.
        caption: What one sees, and how it was made.
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
        _check_images(self.image[None], f"The picture {self.title!r}")
        if self.magnify < 1:
            raise InputError(f"The picture {self.title!r} has magnify={self.magnify}; use 1 or more.")


@dataclass(frozen=True)
class Curve:
    """Curves over one x axis, such as the losses of a training stage.

    Attributes:
        title: Heading.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        series: Name -> (x values, y values), equally long. Values that are not finite leave gaps.
        log_y: Logarithmic vertical axis.

    Raises:
        InputError: x and y of a series differ in length.
    """

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    log_y: bool = False

    def __post_init__(self) -> None:
        for name, (x, y) in self.series.items():
            if len(x) != len(y):
                raise InputError(
                    f"The series {name!r} of {self.title!r} has {len(x)} x values and {len(y)} y values; "
                    "they belong together in pairs."
                )


@dataclass(frozen=True)
class Stage:
    """How long one stage took, in seconds, and what it did in a few words and numbers."""

    name: str
    seconds: float
    summary: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything that a run has to say.

    Attributes:
        title: Heading of the page.
        summary: One paragraph: what was done, on which data, with which result.
        figures: Measured numbers; their names are the top-level keys of `report.json`.
        pictures: Samples, originals beside reconstructions.
        curves: Losses.
        stages: Times, in the order in which the stages ran.
        configuration: The resolved configuration, nested.
        versions: Library -> version.
        notes: What was not measured, and what to bear in mind.

    Raises:
        InputError: Two figures share a name, or a figure is called like a part of the report.
    """

    title: str
    summary: str
    figures: Sequence[Figure] = ()
    pictures: Sequence[Picture] = ()
    curves: Sequence[Curve] = ()
    stages: Sequence[Stage] = ()
    configuration: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        taken: dict[str, Figure | None] = dict.fromkeys(NAMES_OF_THE_REPORT)
        for figure in self.all_figures:
            if taken.setdefault(figure.name, figure) != figure:  # one real measurement may serve several figures
                raise InputError(
                    f"The report has two entries called {figure.name!r}; every figure needs a name of its own, and "
                    f"{', '.join(NAMES_OF_THE_REPORT)} are taken."
                )

    @property
    def all_figures(self) -> tuple[Figure, ...]:
        """The figures and, behind each, the one it is compared with."""
        return tuple(each for figure in self.figures for each in (figure, figure.compare) if each is not None)


def report_data(report: Report) -> dict[str, object]:
    """The content of `report.json`: each figure's plain value by name, then everything with its conditions.

    Numbers that are not finite become None. What JSON does not know (paths, types) becomes text.
    """
    plain: dict[str, object] = {figure.name: figure.value for figure in report.all_figures}
    if report.stages:
        plain.setdefault("seconds_total", round(sum(stage.seconds for stage in report.stages), 3))
    curves = [
        {
            "title": curve.title,
            "x_label": curve.x_label,
            "y_label": curve.y_label,
            "log_y": curve.log_y,
            "series": {name: {"x": list(x), "y": list(y)} for name, (x, y) in curve.series.items()},
        }
        for curve in report.curves
    ]
    data = {
        "title": report.title,
        "summary": report.summary,
        **plain,
        "figures": [asdict(figure) for figure in report.figures],
        "stages": [asdict(stage) for stage in report.stages],
        "curves": curves,
        "configuration": report.configuration,
        "versions": report.versions,
        "notes": report.notes,
    }
    return {name: _strict(value) for name, value in data.items()}


def _strict(value: object) -> object:
    """A value that strict JSON can hold: no nan, no infinity, text keys."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _strict(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_strict(item) for item in value]
        case _:
            return str(value)


def write_report(folder: str | Path, report: Report) -> Path:
    """Writes `report.json` and `report.html` and returns the path of the page.

    The page is one file: pictures, plots and style are inside it, and it loads nothing. An earlier report in the
    folder is replaced only after both new files are complete on the disk.

    Raises:
        InputError: `folder` cannot be a folder.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"The report cannot be written to {folder}: a file is in the way; name another folder."
        ) from error
    text = json.dumps(report_data(report), indent=2, ensure_ascii=False, allow_nan=False)
    page, data = folder / "report.html", folder / "report.json"
    _replace_together({page: render_page(report), data: _lists_on_one_line(text) + "\n"})
    return page


def _lists_on_one_line(text: str) -> str:
    """Indented JSON with each flat list of numbers on one line: a curve is a line, not a thousand."""
    # A line break inside a JSON string is written as \n, so real line breaks are always layout.
    numbers = re.compile(r"\[\n\s+((?:(?:-?[\d.]+(?:e[+-]?\d+)?|null),?\s+)+)\]")
    return numbers.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text)


def _replace_together(contents: Mapping[Path, str]) -> None:
    """Replaces several files, touching none of them before all new contents are safely on the disk."""
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, text in contents.items():
            # A broken file name may hold characters that UTF-8 cannot; their escapes must not cost the report.
            with temporary[path].open("wb") as file:
                file.write(text.encode("utf-8", errors="backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(temporary[path], path)
    finally:
        for leftover in temporary.values():
            leftover.unlink(missing_ok=True)


def image_grid(
    images: ArrayLike, columns: int, *, padding: int = 2, labels: ArrayLike | None = None
) -> NDArray[np.uint8]:
    """Arranges equally large images in rows, with transparent gaps that suit a light and a dark page.

    Args:
        images: uint8, (N, H, W, C) with C = 1, 3 or 4.
        columns: Images in a row.
        padding: Pixels between neighbours.
        labels: (N,) classes. With them every row is a class, in ascending order, and shows its first `columns`
            images; without them images fill the rows in order and all are shown.

    Returns:
        uint8, (H', W', 4): red, green, blue, opacity.

    Raises:
        InputError: Shapes or types do not fit.
    """
    images = np.asarray(images)
    _check_images(images, "The image grid")
    if columns < 1 or padding < 0:
        raise InputError(f"An image grid needs columns >= 1 and padding >= 0, not {columns} and {padding}.")
    if labels is None:
        rows = [np.arange(len(images))[start : start + columns] for start in range(0, len(images), columns)]
    else:
        labels = np.asarray(labels)
        if labels.shape != (len(images),):
            raise InputError(f"The image grid has {len(images)} images and labels of shape {labels.shape}.")
        rows = [np.flatnonzero(labels == label)[:columns] for label in np.unique(labels)]

    cells = _with_opacity(images)
    height, width = images.shape[1] + padding, images.shape[2] + padding
    grid = np.zeros((len(rows) * height - padding, max(map(len, rows)) * width - padding, 4), dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, index in enumerate(row):
            top, left = i * height, j * width
            grid[top : top + height - padding, left : left + width - padding] = cells[index]
    return grid


def pair_strip(
    originals: ArrayLike, reconstructions: ArrayLike, *, padding: int = 2, difference_gain: float | None = None
) -> NDArray[np.uint8]:
    """Originals in one row, their reconstructions below, and the magnified differences below those.

    Args:
        originals: uint8, (N, H, W, C).
        reconstructions: uint8, the same shape.
        padding: Pixels between neighbours.
        difference_gain: Adds a third row: middle grey + gain * (reconstruction - original), so that grey means equal
            and a pixel brighter than grey came out too bright. None leaves the row out.

    Returns:
        uint8, (H', W', 4): red, green, blue, opacity.

    Raises:
        InputError: Shapes or types do not fit.
    """
    originals, reconstructions = np.asarray(originals), np.asarray(reconstructions)
    _check_images(originals, "The originals of a pair strip")
    _check_images(reconstructions, "The reconstructions of a pair strip")
    if originals.shape != reconstructions.shape:
        raise InputError(
            f"A pair strip needs pairs: the originals have shape {originals.shape}, "
            f"the reconstructions {reconstructions.shape}."
        )
    rows = [_with_opacity(originals), _with_opacity(reconstructions)]
    if difference_gain is not None:
        difference = rows[1].astype(np.float64) - rows[0]
        shown = np.clip(np.rint(128 + difference_gain * difference), 0, 255).astype(np.uint8)
        shown[..., 3] = 255
        rows.append(shown)
    return image_grid(np.concatenate(rows), columns=len(originals), padding=padding)


def _check_images(images: NDArray[np.generic], name: str) -> None:
    """Refuses what is not a non-empty batch (N, H, W, C) of uint8 images."""
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3, 4) or images.size == 0:
        raise InputError(
            f"{name} needs uint8 images of shape (height, width, channels) with 1, 3 or 4 channels in the last place; "
            f"these are {images.dtype} of shape {images.shape[1:]}."
        )


def _with_opacity(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W, 1 | 3 | 4) -> (N, H, W, 4)."""
    if images.shape[-1] == 4:
        return images
    opaque = np.full((*images.shape[:-1], 1), 255, dtype=np.uint8)
    return np.concatenate([np.broadcast_to(images, (*images.shape[:-1], 3)), opaque], axis=-1)
