"""The page of a report: one HTML file that shows everything and loads nothing.

`report.html` beside this file holds the style sheet and the drawing of the method; this file fills it. Each function
below turns one part of a `Report` into HTML, and every text from outside passes through `escape`.
"""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template

from PIL import Image

from alight.reporting.plots import line_plot
from alight.reporting.report import Answer, Comparison, Curve, Figure, Picture, Report, Stage
from alight.runtime.units import duration

NOT_FINITE = "not finite"
PHONE_WIDTH = 340  # CSS pixels that a picture has on a phone


def render_page(report: Report) -> str:
    """The whole page as HTML text; parts that the report does not have are left out."""
    sections = (
        _section("figures", "", _cards(report)),
        _section("answer", report.answer.question if report.answer else "", _answer(report.answer)),
        _section("results", "Result", _plots(report.results)),
        _section("pictures", "Pictures", "".join(map(_picture, report.pictures))),
        _section("comparison", report.comparison.title if report.comparison else "", _comparison(report.comparison)),
        *(
            _section(f"comparison-{number}", each.title, _comparison(each))
            for number, each in enumerate(report.further_comparisons, start=2)
        ),
        _section("distributions", "Over the images", _plots(report.distributions)),
        _section("training", "Training", _plots(report.curves)),
        _section("conditions", "Every figure and its conditions", _figure_table(report)),
        _section("notes", "Notes, and what was not measured", _notes(report)),
        _section("time", "Time", _stages(report)),
        _section("configuration", "Configuration", _configuration(report.configuration)),
        _section("versions", "Versions", _pairs(report.versions, "versions")),
    )
    template = resources.files("alight.reporting").joinpath("report.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(report.title), summary=escape(report.summary), sections="".join(sections)
    )


def _section(name: str, heading: str, body: str) -> str:
    if not body:
        return ""
    title = f"<h2>{escape(heading)}</h2>" if heading else ""
    return f'<section id="{name}">{title}{body}</section>\n'


def number_text(value: float, digits: int, unit: str = "") -> str:
    """A number as the page writes it: thousands apart, a real minus, a thin space before the unit."""
    text = f"{value:,.{digits}f}".replace("-", "−") if math.isfinite(value) else NOT_FINITE
    return f'{text}<span class="unit">&thinsp;{escape(unit)}</span>' if unit and math.isfinite(value) else text


def figure_text(figure: Figure) -> str:
    """The value of a figure, with the interval of a mean behind it."""
    text = number_text(figure.value, figure.digits, figure.unit)
    if figure.interval is None:
        return text
    low, high = figure.interval
    if not (math.isfinite(low) and math.isfinite(high)):
        return f'{text}<span class="interval"> one run</span>'
    ends = f"{number_text(low, figure.digits)} to {number_text(high, figure.digits)}"
    return f'{text}<span class="interval"> {ends}</span>'


def duration_text(seconds: float) -> str:
    """Seconds as `duration` writes them, or a remark if they are not finite."""
    return duration(seconds) if math.isfinite(seconds) else NOT_FINITE


def plain_text(value: object) -> str:
    """A setting as text: floats without noise, lists by their items."""
    match value:
        case bool():
            return "yes" if value else "no"
        case None:
            return "none"
        case float():
            return f"{value:.6g}" if math.isfinite(value) else NOT_FINITE
        case list() | tuple():
            return ", ".join(map(plain_text, value)) or "none"
        case Mapping():
            return ", ".join(f"{key} {plain_text(item)}" for key, item in value.items()) or "none"
        case _:
            return str(value)


def _cards(report: Report) -> str:
    """Headline figures, each with the figure to compare it with."""
    cards = "".join(_card(figure) for figure in report.figures if figure.headline)
    return f'<div class="cards">{cards}</div>' if cards else ""


def _card(figure: Figure) -> str:
    comparisons = "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in _comparisons(figure))
    value = figure_text(figure)
    finite = "" if math.isfinite(figure.value) else " undefined"
    return (
        f'<article class="card"><h3>{escape(figure.label)}</h3>'
        f'<a class="value{finite}" href="#figure-{escape(figure.name)}" title="conditions">{value}</a>'
        f'<dl>{comparisons}</dl><p class="quiet">{escape(figure.explanation)}</p></article>'
    )


def _comparisons(figure: Figure) -> Iterator[tuple[str, str]]:
    """The value that a figure is compared with: label and value, as HTML."""
    if figure.compare:
        other = figure.compare
        yield escape(other.label), number_text(other.value, other.digits, other.unit)
    if figure.reference:
        label, value = figure.reference
        yield escape(label), number_text(value, figure.digits, figure.unit)


def _answer(answer: Answer | None) -> str:
    """The answer in large type, then why, what to do, and by which measure."""
    if answer is None:
        return ""
    reasons = "".join(f"<p>{escape(reason)}</p>" for reason in answer.reasons)
    advice = "".join(f"<li>{escape(item)}</li>" for item in answer.advice)
    return (
        f'<p class="lead">{escape(answer.answer)}</p><div class="reasons">{reasons}'
        + (f"<h3>What helps</h3><ul>{advice}</ul>" if advice else "")
        + (f'<p class="quiet">{escape(answer.basis)}</p>' if answer.basis else "")
        + "</div>"
    )


def _comparison(comparison: Comparison | None) -> str:
    """A column per model, a row per measure, the best of each row in bold."""
    if comparison is None:
        return ""
    heads = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in comparison.columns)
    rows = []
    for label, figures in comparison.rows.items():
        best = comparison.best(label)
        cells = "".join(_compared(figure, best) for figure in figures)
        explanation = next((figure.explanation for figure in figures if figure is not None), "")
        rows.append(
            f'<tr><th scope="row">{escape(label)}<span class="quiet">{escape(explanation)}</span></th>{cells}</tr>'
        )
    return (
        f'<div class="wide"><table class="comparison"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _compared(figure: Figure | None, best: float | None) -> str:
    if figure is None:
        return '<td class="number quiet">–</td>'
    text = figure_text(figure)
    is_best = best is not None and round(figure.value, figure.digits) == best
    return f'<td class="number">{f"<b>{text}</b>" if is_best else text}</td>'


def _picture(picture: Picture) -> str:
    """The image at its magnified width, names of its rows on the left, the caption on the right or below."""
    file = io.BytesIO()
    pixels = picture.image if picture.image.shape[-1] > 1 else picture.image[..., 0]
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode("ascii")

    height, width = picture.image.shape[:2]
    # Magnified pixels stay squares; where a wide picture has to shrink on a phone, smoothing looks better.
    crisp = "" if picture.magnify == 1 else "crisp" if width <= PHONE_WIDTH else "crisp-when-wide"
    labels = "".join(f"<span>{escape(label)}</span>" for label in picture.row_labels)
    rows = f'<div class="row-labels">{labels}</div>' if labels else ""
    return (
        f'<figure class="picture"><div class="frame">{rows}<img class="{crisp}" width="{width * picture.magnify}" '
        f'height="{height * picture.magnify}" alt="{escape(picture.title)}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption><h3>{escape(picture.title)}</h3><p>{escape(picture.caption)}</p></figcaption></figure>"
    )


def _plots(curves: Sequence[Curve]) -> str:
    plots = "".join(map(_plot, curves))
    return f'<div class="plots">{plots}</div>' if plots else ""


def _plot(curve: Curve) -> str:
    drawing = line_plot(
        *(curve.title, curve.x_label, curve.y_label, curve.series),
        log_y=curve.log_y,
        bars=curve.bars,
        labels=curve.labels,
    )
    return f"<figure><h3>{escape(curve.title)}</h3>{drawing}</figure>"


def _figure_table(report: Report) -> str:
    """Every figure with all its conditions; below it the figure to compare with, and the conditions of that."""
    groups = []
    for figure in report.figures:
        compared = _figure_row(figure.compare) if figure.compare else ""
        groups.append(f'<tbody id="figure-{escape(figure.name)}">{_figure_row(figure)}{compared}</tbody>')
    if not groups:
        return ""
    return (
        '<table class="figures"><thead><tr><th scope="col">Figure</th><th scope="col" class="number">Value</th>'
        f'<th scope="col">Conditions</th></tr></thead>{"".join(groups)}</table>'
    )


def _figure_row(figure: Figure) -> str:
    conditions = _pairs(figure.conditions, "conditions") or '<span class="quiet">none given</span>'
    reference = ""
    if figure.reference:
        label, value = figure.reference
        reference = f'<span class="quiet">{escape(label)} {number_text(value, figure.digits, figure.unit)}</span>'
    return (
        f'<tr><th scope="row">{escape(figure.label)}<code>{escape(figure.name)}</code></th>'
        f'<td class="number">{figure_text(figure)}{reference}</td>'
        f"<td>{conditions}</td></tr>"
    )


def _pairs(values: Mapping[str, object], kind: str) -> str:
    """Names and values that flow like words and wrap between pairs, or stand in columns, as the class says."""
    pairs = "".join(
        f"<div><dt>{escape(str(name))}</dt> <dd>{escape(plain_text(value))}</dd></div>"
        for name, value in values.items()
    )
    return f'<dl class="pairs {kind}">{pairs}</dl>' if pairs else ""


def _notes(report: Report) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return f'<ul class="notes">{notes}</ul>' if notes else ""


def _stages(report: Report) -> str:
    """One row per stage: name, share of the time as a bar, duration, summary."""
    if not report.stages:
        return ""
    total = sum(stage.seconds for stage in report.stages)
    longest = max((stage.seconds for stage in report.stages if math.isfinite(stage.seconds)), default=0.0)
    rows = "".join(_stage(stage, longest) for stage in report.stages)
    return (
        f'<table class="stages"><tbody>{rows}</tbody><tfoot><tr><th scope="row">Total</th><td></td>'
        f'<td class="number">{duration_text(total)}</td><td></td></tr></tfoot></table>'
    )


def _stage(stage: Stage, longest: float) -> str:
    share = 100 * stage.seconds / longest if longest > 0 and math.isfinite(stage.seconds) else 0.0
    return (
        f'<tr><th scope="row">{escape(stage.name)}</th>'
        f'<td class="bar"><span style="width:{share:.1f}%"></span></td>'
        f'<td class="number">{duration_text(stage.seconds)}</td><td>{_pairs(stage.summary, "summary")}</td></tr>'
    )


def _configuration(configuration: Mapping[str, object]) -> str:
    """One fold per top-level part; inside, dotted names as the command line takes them."""
    groups = {name: value for name, value in configuration.items() if isinstance(value, Mapping) and value}
    single = {name: value for name, value in configuration.items() if name not in groups}
    folds = "".join(
        f"<details><summary>{escape(str(name))}</summary>{_pairs(dict(_dotted(group)), 'settings')}</details>"
        for name, group in groups.items()
    )
    return _pairs(single, "settings") + folds


def _dotted(group: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Flattens nested settings: {"optimizer": {"lr": 1}} -> ("optimizer.lr", 1)."""
    for name, value in group.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
