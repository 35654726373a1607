"""A report on the disk: `report.json`, which tools read, and `report.html`, which people read.

Both come from one `Report`, so that they cannot disagree.
"""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from alight.reporting.page import render_page
from alight.reporting.report import Curve, Report
from alight.runtime.files import explained_disk_errors, replacing


def report_data(report: Report) -> dict[str, object]:
    """The content of `report.json`: each figure's plain value by name, then everything with its conditions.

    Numbers that are not finite become None. Objects that JSON does not know (paths, types) become text.
    """
    plain: dict[str, object] = {figure.name: figure.value for figure in report.all_figures}
    if report.stages:
        plain.setdefault("seconds_total", round(sum(stage.seconds for stage in report.stages), 3))
    data = {
        "title": report.title,
        "summary": report.summary,
        **plain,
        "figures": [asdict(figure) for figure in report.figures],
        "answer": asdict(report.answer) if report.answer else None,
        "comparison": asdict(report.comparison) if report.comparison else None,
        "stages": [asdict(stage) for stage in report.stages],
        "results": [_curve_data(curve) for curve in report.results],
        "distributions": [_curve_data(curve) for curve in report.distributions],
        "curves": [_curve_data(curve) for curve in report.curves],
        "configuration": report.configuration,
        "versions": report.versions,
        "notes": report.notes,
    }
    if report.further_comparisons:
        data["further_comparisons"] = [asdict(each) for each in report.further_comparisons]
    return {name: _strict(value) for name, value in data.items()}


def _curve_data(curve: Curve) -> dict[str, object]:
    series: dict[str, dict[str, list[object]]] = {
        name: {"x": list(x), "y": list(y)} for name, (x, y) in curve.series.items()
    }
    axes = {"x_label": curve.x_label, "y_label": curve.y_label, "log_y": curve.log_y}
    for name, bars in curve.bars.items():
        series[name]["bars"] = [list(each) for each in bars]
    for name, labels in curve.labels.items():
        series[name]["labels"] = list(labels)
    return {"title": curve.title, **axes, "series": series}


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
        InputError: the disk refuses.
    """
    folder = Path(folder)
    with explained_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report_data(report), indent=2, ensure_ascii=False, allow_nan=False)
    page, data = folder / "report.html", folder / "report.json"
    with replacing(page) as new_page, replacing(data) as new_data:
        # A broken file name may hold characters that UTF-8 cannot; their escapes must not cost the report.
        new_page.write_text(render_page(report), encoding="utf-8", errors="backslashreplace")
        new_data.write_text(_lists_on_one_line(text) + "\n", encoding="utf-8", errors="backslashreplace")
    return page


def figure_lines(report: Report) -> list[str]:
    """The figures as a table for the terminal, each with the conditions that decide if it compares with others."""
    lines = [""]
    for figure in report.figures:
        value = f"{figure.value:,.{figure.digits}f}{f' {figure.unit}' if figure.unit else ''}"
        compared = figure.conditions.get("comparable")
        lines.append(f"{figure.label:<44} {value:>14}{f'   comparable {compared}' if compared else ''}")
    if report.answer is not None:
        lines += ["", f"{report.answer.question} {report.answer.answer}"]
    return [*lines, ""]


def write_table(path: str | Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Write equally long columns as a CSV file in UTF-8, numbers with all their digits."""
    with Path(path).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _lists_on_one_line(text: str) -> str:
    """Indented JSON with each flat list of numbers on one line: a curve is a line, not a thousand."""
    # A line break inside a JSON string is written as \n, so real line breaks are always layout.
    numbers = re.compile(r"\[\n\s+((?:(?:-?[\d.]+(?:e[+-]?\d+)?|null),?\s+)+)\]")
    return numbers.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text)
