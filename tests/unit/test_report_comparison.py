"""The answer and the comparison of a report, tables beside it, and numbers and durations as text."""

import csv
import math
import os
import re
from pathlib import Path

import pytest

from alight.reporting.files import write_report, write_table
from alight.reporting.page import duration_text, number_text, plain_text, render_page
from alight.reporting.report import Answer, Comparison, Curve, Figure, Report
from helpers.report_files import Page, read_json


@pytest.fixture
def compared() -> Report:
    def psnr(value: float) -> Figure:
        return Figure("psnr", "PSNR", value, "dB", 1, better="higher", explanation="Nearness.")

    def distance(value: float) -> Figure:
        return Figure("distance", "Distance", value, digits=2, better="lower")

    rows = {
        "PSNR": [psnr(20.04), psnr(21.0), psnr(20.96)],
        "Distance": [None, distance(0.25), distance(0.5)],
        "Count": [Figure("n", "Count", 1.0), Figure("n", "Count", 2.0), None],
        "Tie": [distance(0.101), distance(0.102), distance(math.nan)],
    }
    answer = Answer("Is it good?", "Not yet.", ["It is blurred."], ["Train longer."], "By eye.")
    curve = Curve("Spread", "%", "dB", {"a": ([0, 100], [1.0, math.inf]), "b": ([], [])})
    return Report("t", "s", answer=answer, comparison=Comparison("abc", rows), distributions=(curve,))


def test_the_best_of_a_row_is_bold_where_one_can_tell(compared: Report) -> None:
    assert compared.comparison is not None
    best = [compared.comparison.best(label) for label in compared.comparison.rows]
    assert best == [21.0, 0.25, None, None]
    html = render_page(compared)
    bold = [re.sub("<[^>]*>", "", found).replace("&thinsp;", " ") for found in re.findall("<b>(.*?)</b>", html)]
    # equal as far as the page shows them; the other bold words are those of the drawing of the method
    assert [text for text in bold if re.match(r"[\d.]+", text)] == ["21.0 dB", "21.0 dB", "0.25"]


def test_answer_comparison_and_distributions_are_shown_and_stored(compared: Report, tmp_path: Path) -> None:
    text = Page(render_page(compared)).text
    for part in ("Is it good?", "Not yet.", "It is blurred.", "What helps", "Train longer.", "By eye.", "Nearness."):
        assert part in text
    assert "not finite" in text
    assert "b has none" in text
    write_report(tmp_path, compared)
    data = read_json(tmp_path)
    assert data["answer"]["answer"] == "Not yet."
    assert data["comparison"]["columns"] == "abc"
    assert [figure and figure["value"] for figure in data["comparison"]["rows"]["Distance"]] == [None, 0.25, 0.5]
    assert data["distributions"][0]["series"]["a"] == {"x": [0, 100], "y": [1.0, None]}


def test_tables_hold_all_digits_and_any_name(tmp_path: Path) -> None:
    names = ["plain.png", 'with "quotes", and commas.png', os.fsdecode(b"caf\xe9.png")]
    write_table(tmp_path / "images.csv", {"name": names, "psnr": [1 / 3, math.inf, 20.0], "lpips": ["", 0.5, 1e-17]})
    with (tmp_path / "images.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["name", "psnr", "lpips"]
    assert [row[0] for row in rows[1:3]] == names[:2]
    assert rows[3][0] == r"caf\udce9.png"
    assert [float(row[1]) for row in rows[1:]] == [1 / 3, math.inf, 20.0]
    assert [row[2] for row in rows[1:]] == ["", "0.5", "1e-17"]


@pytest.mark.parametrize(
    ("value", "digits", "unit", "text"),
    [(0.95, 3, "", "0.950"), (-1234567.0, 0, "", "−1,234,567"), (math.nan, 2, "dB", "not finite")],
)
def test_number_text(value: float, digits: int, unit: str, text: str) -> None:
    assert number_text(value, digits, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.21, "4.2 s"), (59.96, "1 min 00 s"), (134.2, "2 min 14 s"), (11100, "3 h 05 min"), (math.inf, "not finite")],
)
def test_duration_text(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1 + 0.2, "0.3"), (True, "yes"), (None, "none"), ([0.1, [1, 2]], "0.1, 1, 2"), ({"a": 1}, "a 1"), ((), "none")],
)
def test_plain_text(value: object, text: str) -> None:
    assert plain_text(value) == text
