"""Line plots as inline SVG, for pages that load nothing.

A plot is a legend (HTML, so that it wraps on a phone) over an SVG that scales with its column. Colours come from
the page's style sheet through the classes `series-0`, `series-1`, ..., so one plot serves a light and a dark page.

Every long curve is drawn twice: the values themselves, faint, and a smooth line through them. Both live in the space
that is shown, so on a logarithmic axis the smooth line runs through the middle of the faint one.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from alight.reporting.report import Bars

Array = NDArray[np.float64]

# One drawing unit is about a CSS pixel: on a phone 0.8 of one, in a column of a wide page 1.15.
WIDTH, HEIGHT = 440, 270
LEFT, RIGHT, TOP, BOTTOM = 48, 424, 30, 230
SERIES_COLOURS = 6  # number in the style sheet; further series start over, dashed

MAX_POINTS = 600  # more points than this share pixels
SMOOTHING_SHARE = 25  # the smooth line looks at 1/25 of the curve at a time
MIN_SMOOTHED_POINTS = 50  # a shorter curve shows its own shape
PLAIN_NUMBER = re.compile(r"−?[\d,]+(\.\d+)?")
LARGEST = 1e300  # beyond it, and below its inverse, the arithmetic of the axis would itself overflow


@dataclass(frozen=True)
class Series:
    """One named curve: its values, and those in displayed space (nan where they cannot be shown)."""

    label: str
    index: int
    x: Array
    displayed: Array

    @classmethod
    def of(cls, label: str, index: int, x: Sequence[float], y: Sequence[float], log_y: bool) -> "Series":
        """Takes values into displayed space: themselves, or their decimal logarithms."""
        at, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        drawable = np.isfinite(at) & (np.abs(values) < LARGEST) & ((values > 0) | (not log_y))
        displayed = np.where(drawable, values, np.nan)
        return cls(label, index, at, np.log10(displayed) if log_y else displayed)

    @property
    def is_smoothed(self) -> bool:
        """True if there are enough values for a smooth line to say more than they do."""
        return len(self.displayed) >= MIN_SMOOTHED_POINTS

    @property
    def line(self) -> Array:
        """The values of the strong line: smoothed, or the few there are."""
        return smooth(self.displayed) if self.is_smoothed else self.displayed

    @property
    def css_class(self) -> str:
        """Colour of the curve; beyond the colours that the style sheet defines, dashes tell curves apart."""
        return f"series-{self.index % SERIES_COLOURS}" + (" dashed" if self.index >= SERIES_COLOURS else "")


@dataclass(frozen=True)
class Axis:
    """One direction of a plot: the scale from values to coordinates, and the ticks.

    Attributes:
        low: Value at `start`, in displayed space (its decimal logarithm if `log`).
        high: Value at `end`, in displayed space.
        start: Coordinate of `low` in the drawing.
        end: Coordinate of `high` in the drawing.
        log: True if displayed space is the decimal logarithm of the values.
        tick_values: Positions of the ticks, in values (not logarithms).
    """

    low: float
    high: float
    start: float
    end: float
    log: bool
    tick_values: tuple[float, ...]

    @classmethod
    def around(cls, displayed: Array, start: float, end: float, *, log: bool, margin: float, intervals: int) -> "Axis":
        """Fits an axis to finite values in displayed space, with a share of their span as margin on both sides.

        `intervals` is about how many the ticks make.
        """
        low, high = (float(displayed.min()), float(displayed.max())) if displayed.size else (0.0, 1.0)
        if high - low < max(1e-12 * max(abs(low), abs(high)), 1 / LARGEST):  # a constant runs through the middle
            around = 0.1 if log else abs(low) / 2 if abs(low) > 1 / LARGEST else 1.0
            low, high = low - around, high + around
        elif margin == 0 and not log and 0 < low < 0.02 * high:  # steps that begin at 1 begin at the origin
            low = 0.0
        ticks = _log_ticks(low, high) if log else _linear_ticks(low, high, intervals)
        margin *= high - low
        return cls(low - margin, high + margin, start, end, log, ticks)

    def place(self, displayed: Array) -> Array:
        """Coordinates in the drawing of values in displayed space."""
        return self.start + (displayed - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Coordinate and text of every tick."""
        values = np.array(self.tick_values, dtype=np.float64)
        coordinates = self.place(np.log10(values) if self.log else values).tolist()
        texts = [tick_text(value) for value in self.tick_values]
        if not self.log and all(map(PLAIN_NUMBER.fullmatch, texts)):  # 1, 1.5, 2 read better as 1.0, 1.5, 2.0
            decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
            texts = [f"{value:,.{decimals}f}".replace("-", "−") for value in self.tick_values]
        return list(zip(coordinates, texts, strict=True))


def _linear_ticks(low: float, high: float, intervals: int = 5) -> tuple[float, ...]:
    """Multiples of 1, 2 or 5 times a power of ten that cut the span into about that many intervals."""
    target = (high - low) / intervals
    magnitude = 10.0 ** math.floor(math.log10(target))
    step = next(factor for factor in (1, 2, 5, 10) if factor * magnitude >= 0.75 * target) * magnitude
    digits = max(0, 1 - math.floor(math.log10(step)))  # rounding removes the dust of binary fractions
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(k * step, digits) for k in range(first, last + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Decades, or 1-2-5 within them, or linear ticks: the first of these that is neither crowded nor empty."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    decades = [10.0**k for k in exponents if low <= k <= high]
    if len(decades) >= 3:
        return tuple(decades[:: math.ceil(len(decades) / 6)])
    fine = [factor * 10.0**k for k in exponents for factor in (1, 2, 5)]
    fine = [value for value in fine if low <= math.log10(value) <= high]
    if len(fine) >= 3:
        return tuple(fine)
    return _linear_ticks(10.0**low, 10.0**high)


def tick_text(value: float) -> str:
    """A tick's value as people write it: 0.05, 20,000, 1.5M, 10⁻⁵."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        text = f"{value:,g}"
    elif 1e6 <= abs(value) < 1e9:
        text = f"{value / 1e6:g}M"
    else:
        factor, exponent = f"{value:e}".split("e")
        power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        text = power if float(factor) == 1 else f"{float(factor):g}·{power}"
    return text.replace("-", "−")


def smooth(displayed: Array) -> Array:
    """Moving straight line: each value becomes that of a line fitted to the 1/25 of the curve around it.

    In the middle of the curve this is the moving average; at its ends, where the window lies on one side, an average
    would lag behind a falling loss and the line does not. Values that are not finite are skipped and stay nan.
    """
    radius = max(1, len(displayed) // SMOOTHING_SHARE // 2)
    finite = np.isfinite(displayed)
    position = np.arange(len(displayed), dtype=np.float64)
    width = min(2 * radius + 1, len(displayed))
    low = np.clip(np.arange(len(displayed)) - radius, 0, len(displayed) - width)  # windows stay whole at the ends
    high = low + width

    def window_sum(values: Array) -> Array:
        running = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
        total: Array = running[high] - running[low]
        return total

    count = np.maximum(window_sum(np.ones_like(position)), 1)
    mean_x, mean_y = window_sum(position) / count, window_sum(displayed) / count
    variance = window_sum(position**2) / count - mean_x**2
    covariance = window_sum(position * displayed) / count - mean_x * mean_y
    slope = np.divide(covariance, variance, out=np.zeros_like(position), where=variance > 1e-6)
    return np.where(finite, mean_y + slope * (position - mean_x), np.nan)


def thin(x: Array, y: Array) -> tuple[Array, Array]:
    """Keeps the extremes of each of `MAX_POINTS / 2` stretches, so that a thinned curve keeps its peaks."""
    if len(y) <= MAX_POINTS:
        return x, y
    keep: list[int] = []
    for stretch in np.array_split(np.arange(len(y)), MAX_POINTS // 2):
        finite = stretch[np.isfinite(y[stretch])]
        if finite.size == 0:
            keep.append(int(stretch[0]))  # a gap stays a gap
        else:
            keep.extend(sorted({int(finite[y[finite].argmin()]), int(finite[y[finite].argmax()])}))
    return x[keep], y[keep]


def _path(x: Array, y: Array, kind: str) -> str:
    """An SVG path through the points; it lifts the pen wherever a value is not finite."""
    commands: list[str] = []
    drawing = False
    for x_i, y_i in zip(x, y, strict=True):
        if not (math.isfinite(x_i) and math.isfinite(y_i)):
            drawing = False
            continue
        if not drawing:
            commands.append(f"M{x_i:.1f} {y_i:.1f}")
        commands.append(f"L{x_i:.1f} {y_i:.1f}")  # also behind M: the line without length makes a lone dot visible
        drawing = True
    return f'<path class="{kind}" d="{"".join(commands)}"/>' if commands else ""


def _draw(series: Series, x_axis: Axis, y_axis: Axis) -> str:
    """One curve: the strong line, over the faint values themselves where it smooths them."""
    values = [("raw", series.displayed)] if series.is_smoothed else []
    paths = ""
    for kind, shown in [*values, ("line", series.line)]:
        x, y = thin(series.x, shown)
        paths += _path(x_axis.place(x), y_axis.place(y), kind)
    return f'<g class="{series.css_class}"><title>{escape(series.label)}</title>{paths}</g>'


def _draw_bars(curve: Series, bars: Sequence[Bars], x_axis: Axis, y_axis: Axis, log_y: bool) -> str:
    """A cross of two intervals around every point that has some."""
    parts = []
    for bar in bars:
        ends = np.array([bar.y_low, bar.y_high])
        with np.errstate(invalid="ignore", divide="ignore"):
            y = y_axis.place(np.log10(ends) if log_y else ends)
        x = x_axis.place(np.array([bar.x_low, bar.x_high]))
        middle_x, middle_y = x.mean(), y.mean()
        if np.isfinite([*x, *y]).all():
            parts.append(f"M{x[0]:.1f} {middle_y:.1f}H{x[1]:.1f}M{middle_x:.1f} {y[0]:.1f}V{y[1]:.1f}")
    return f'<g class="{curve.css_class}"><path class="bar" d="{"".join(parts)}"/></g>' if parts else ""


def _draw_labels(curve: Series, labels: Sequence[str], x_axis: Axis, y_axis: Axis) -> str:
    """A small text beside every point: to its left in the right half, so that long ones stay within the plot."""
    x, y = x_axis.place(curve.x), y_axis.place(curve.displayed)
    texts = []
    for at, height, label in zip(x, y, labels, strict=True):
        if math.isfinite(at) and math.isfinite(height):
            left = at > (LEFT + RIGHT) / 2
            place = f'x="{at - 5:.1f}" text-anchor="end"' if left else f'x="{at + 5:.1f}"'
            texts.append(f'<text {place} y="{height - 5:.1f}">{escape(label)}</text>')
    return f'<g class="{curve.css_class} point-labels">{"".join(texts)}</g>'


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> str:
    """Grid lines, ticks and the names of the axes."""
    parts = [f'<text class="axis-name" x="0" y="14">{escape(y_label)}</text>']
    for at, text in y_axis.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>')
    for at, text in x_axis.ticks():
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{BOTTOM}" y2="{BOTTOM + 4}"/>')
        parts.append(f'<text x="{at:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{text}</text>')
    middle = (LEFT + RIGHT) / 2
    parts.append(
        f'<text class="axis-name" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return "".join(parts)


def _legend_entry(series: Series, log_y: bool) -> str:
    """Name, last value of the line, and the number of values that the plot cannot show."""
    end = series.line[-1] if series.line.size else math.nan
    nothing = "no value at the end" if series.line.size else "has none"
    text = tick_text(float(f"{10**end if log_y else end:.3g}")) if math.isfinite(end) else nothing
    hidden = int((~np.isfinite(series.displayed)).sum())
    note = f", {hidden:,} of {len(series.displayed):,} values cannot be drawn" if hidden else ""
    return (
        f'<li class="{series.css_class}"><span class="swatch"></span>{escape(series.label)} '
        f'<span class="quiet">{text}{note}</span></li>'
    )


def _bar_ends(bars: Mapping[str, Sequence[Bars]], log_y: bool) -> tuple[Array, Array]:
    """The ends of all intervals in displayed space, for the axes to reach; those that cannot be shown are left out."""
    every = np.array([bar for each in bars.values() for bar in each], dtype=np.float64).reshape(-1, 4)
    x, y = every[:, :2].ravel(), every[:, 2:].ravel()
    shown = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log_y))
    return x[shown], np.log10(y[shown]) if log_y else y[shown]


def line_plot(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    log_y: bool = False,
    bars: Mapping[str, Sequence[Bars]] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Draws curves over one x axis as a piece of HTML: a legend with their last values, and a responsive SVG.

    Args:
        title: Accessible name of the drawing (screen readers, tooltip); the page shows its own heading.
        x_label: Name of the horizontal axis, with its unit if it has one.
        y_label: Name of the vertical axis, with its unit if it has one.
        series: Name -> (x values, y values) of equal length. Values that are not finite leave a gap and are counted
            in the legend; on a logarithmic axis so are those that are not positive.
        log_y: Logarithmic vertical axis.
        bars: Name -> intervals around every point, as of `Curve`.
        labels: Name -> text beside every point, likewise.

    Returns:
        HTML text without references to anything outside it. All names are escaped.
    """
    curves = [Series.of(label, index, x, y, log_y) for index, (label, (x, y)) in enumerate(series.items())]
    points = [(curve.x[shown], curve.displayed[shown]) for curve in curves for shown in [np.isfinite(curve.displayed)]]
    ends = _bar_ends(bars or {}, log_y)
    all_x = np.concatenate([x for x, _ in [*points, ends]])
    all_y = np.concatenate([y for _, y in [*points, ends]])
    x_axis = Axis.around(all_x, LEFT, RIGHT, log=False, margin=0, intervals=5)
    y_axis = Axis.around(all_y, BOTTOM, TOP, log=log_y, margin=0.04, intervals=6)

    if all_y.size:
        body = _frame(x_axis, y_axis, x_label, y_label) + "".join(_draw(curve, x_axis, y_axis) for curve in curves)
        for curve in curves:
            body += _draw_bars(curve, (bars or {}).get(curve.label, ()), x_axis, y_axis, log_y)
            if labels and curve.label in labels:
                body += _draw_labels(curve, labels[curve.label], x_axis, y_axis)
    else:
        body = f'<text class="axis-name" x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no finite values</text>'
    legend = "".join(_legend_entry(curve, log_y) for curve in curves)
    return (
        f'<ul class="legend">{legend}</ul><svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{body}</svg>'
    )
