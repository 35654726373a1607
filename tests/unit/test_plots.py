"""Plots of the report: every value where the ticks say, gaps told, peaks kept."""

import math
import re

import numpy as np
import pytest

from alight.reporting import plots
from alight.reporting.plots import line_plot
from alight.reporting.report import Bars


def group(html: str, label: str) -> str:
    """The drawing of one series."""
    return html.partition(f"<title>{label}</title>")[2].partition("</g>")[0]


def points(path: str) -> np.ndarray:
    """All coordinates of a path, (N, 2)."""
    return np.array(re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path), dtype=np.float64)


def tick_positions(html: str, axis: str) -> dict[str, float]:
    """Text of each tick of an axis -> its coordinate, from the labels (4 units below the line they belong to)."""
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]*)</text>', html)
    if axis == "x":
        return {text: float(x) for x, _, anchor, text in found if anchor == "middle"}
    return {text: float(y) - 4 for _, y, anchor, text in found if anchor == "end"}


def test_plot_contains_every_series() -> None:
    x = list(range(100))
    series = {f"loss {i}": (x, [math.sin(k / 9 + i) for k in x]) for i in range(8)}
    html = line_plot("Losses", "step", "loss", series)
    for i in range(8):
        assert group(html, f"loss {i}").count("<path") == 2  # the values and the smooth line
        assert html.count(f"loss {i}") == 2  # drawing and legend
    looks = re.findall(r'<li class="([^"]*)"', html)
    assert len(set(looks)) == 8
    assert "<title>Losses</title>" in html
    assert 'role="img"' in html


def test_points_lie_where_the_ticks_say() -> None:
    html = line_plot("t", "x", "y", {"a": ([0, 10, 20], [-1.0, 0.0, 3.0])})
    at_x, at_y = tick_positions(html, "x"), tick_positions(html, "y")
    drawn = points(group(html, "a"))[1:]  # the first point is there twice: M and L
    # Coordinates are written with one decimal.
    np.testing.assert_allclose(
        drawn, [[at_x["0"], at_y["−1.0"]], [at_x["10"], at_y["0.0"]], [at_x["20"], at_y["3.0"]]], atol=0.11
    )
    assert at_y["3.0"] < at_y["−1.0"]  # up is more


@pytest.mark.parametrize("log_y", [False, True])
def test_bars_reach_the_ends_of_their_intervals_and_labels_stand_beside_points(log_y: bool) -> None:
    bars = {"a": [Bars(0, 0, 1.0, 100.0), Bars(8, 12, 10.0, 10.0), Bars(20, 20, math.nan, math.nan)]}
    series = {"a": ([0, 10, 20], [10.0, 10.0, 10.0])}
    html = line_plot("t", "x", "y", series, log_y=log_y, bars=bars, labels={"a": ["d8", "<d16>", "d32"]})
    at_x, at_y = tick_positions(html, "x"), tick_positions(html, "y")
    (path,) = re.findall(r'<path class="bar" d="([^"]*)"', html)
    vertical, horizontal = path.split("M")[2], path.split("M")[3]
    assert path.count("M") == 4  # nothing is drawn around the point without an interval
    low, high = (float(value) for value in re.findall(r"[\d.]+", vertical)[1:])
    assert high < low
    assert high == pytest.approx(at_y["100"], abs=0.11)
    left, _, right = (float(value) for value in re.findall(r"[\d.]+", horizontal))
    assert left < at_x["10"] < right
    assert right - left == pytest.approx((at_x["20"] - at_x["0"]) / 5, abs=0.21)
    for text, on_the_left in ((">d8<", False), (">&lt;d16&gt;<", False), (">d32<", True)):  # within the plot
        (label,) = re.findall(f"<text [^>]*{text}", html)
        assert ('text-anchor="end"' in label) == on_the_left


def test_logarithmic_axis_shows_equal_ratios_as_equal_distances() -> None:
    html = line_plot("t", "x", "y", {"a": ([0, 1, 2, 3], [1.0, 10.0, 100.0, 1000.0])}, log_y=True)
    y = points(group(html, "a"))[1:, 1]
    np.testing.assert_allclose(np.diff(y), np.diff(y).mean(), atol=0.11)
    at_y = tick_positions(html, "y")
    np.testing.assert_allclose([at_y["1"], at_y["10"], at_y["100"], at_y["1,000"]], y, atol=0.11)


@pytest.mark.filterwarnings("error")  # logarithms of what is not positive are not even tried
def test_values_that_cannot_be_drawn_leave_gaps_and_are_counted() -> None:
    y = [1.0, 2.0, math.nan, 3.0, math.inf, 2.0]
    html = line_plot("t", "x", "y", {"a": (range(6), y), "zeros": (range(3), [0.0, 1.0, 2.0])}, log_y=True)
    assert group(html, "a").count("M") == 3
    assert "2 of 6 values cannot be drawn" in html
    assert "1 of 3 values cannot be drawn" in html
    assert "nan" not in html
    assert "inf" not in html


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize(
    "y", [[], [math.nan] * 3, [5.0], [0.0] * 3, [1e-320, 1e-320], [1e308, -1e308, 1.0], [1e299, 1e-299], [7e-9] * 60]
)
def test_no_values_can_break_a_plot(y: list[float], log_y: bool) -> None:
    html = line_plot("t", "x", "y", {"only": (range(len(y)), y)}, log_y=log_y)
    drawable = [value for value in y if abs(value) < 1e300 and (value > 0 or not log_y)]
    assert ("no finite values" in html) == (not drawable)
    assert "only" in html
    for x_i, y_i in points(html):
        assert plots.LEFT <= x_i <= plots.RIGHT
        assert plots.TOP <= y_i <= plots.BOTTOM


def test_smooth_is_a_moving_average_that_does_not_lag_at_the_ends() -> None:
    line = 5.0 - 0.01 * np.arange(500)
    # A straight line is its own moving line, ends included; float64 sums over 500 positions keep 1e-9.
    np.testing.assert_allclose(plots.smooth(line), line, atol=1e-9)
    noisy = line + np.random.default_rng(0).standard_normal(500)
    window = noisy[250 - 10 : 250 + 11]  # 500 values // 25 // 2 = 10 on each side
    assert plots.smooth(noisy)[250] == pytest.approx(window.mean(), abs=1e-9)
    slope, offset = np.polyfit(np.arange(21), noisy[:21], 1)
    assert plots.smooth(noisy)[0] == pytest.approx(offset, abs=1e-9)
    assert plots.smooth(noisy)[4] == pytest.approx(offset + 4 * slope, abs=1e-9)


def test_smooth_skips_gaps() -> None:
    values = np.linspace(1.0, 2.0, 200)
    values[[0, 50, 51, 199]] = np.nan
    smoothed = plots.smooth(values)
    np.testing.assert_array_equal(np.isnan(smoothed), np.isnan(values))
    np.testing.assert_allclose(smoothed[~np.isnan(values)], values[~np.isnan(values)], atol=1e-9)


def test_thinned_curves_keep_peaks_and_gaps() -> None:
    y = np.zeros(100_000)
    y[12_345], y[77_777] = 9.0, -9.0
    y[40_000:60_000] = np.nan
    x, thinned = plots.thin(np.arange(100_000.0), y)
    assert len(x) <= plots.MAX_POINTS
    assert (x[thinned == 9.0], x[thinned == -9.0]) == (12_345, 77_777)
    assert np.all(np.diff(x) > 0)
    assert np.isnan(thinned).any()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.05, "0.05"),
        (-2.5, "−2.5"),
        (20_000.0, "20,000"),
        (1.5e6, "1.5M"),
        (1e-5, "10⁻⁵"),
        (2e-5, "2·10⁻⁵"),
        (-1e12, "−1·10¹²"),
    ],
)
def test_tick_text(value: float, text: str) -> None:
    assert plots.tick_text(value) == text


@pytest.mark.parametrize("scale", [1e-7, 0.013, 1.0, 37.0, 2e8])
@pytest.mark.parametrize("log", [False, True])
def test_axes_have_neither_too_few_nor_too_many_ticks(scale: float, log: bool) -> None:
    for ratio in (1.1, 1.7, 3.0, 9.0, 40.0, 900.0, 1e5, 1e9):
        values = np.array([scale, scale * ratio])
        axis = plots.Axis.around(np.log10(values) if log else values, 0, 100, log=log, margin=0.04, intervals=6)
        positions = [at for at, _ in axis.ticks()]
        assert 3 <= len(positions) <= 9, (scale, ratio, axis)
        assert -1e-6 <= min(positions) < max(positions) <= 100 + 1e-6
        assert len({text for _, text in axis.ticks()}) == len(positions)
