"""`alight report`: the figures of finished reports with their conditions, side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, JsonValue, with_config
from typing_extensions import TypedDict

from alight.config import ReportConfig
from alight.runtime.errors import InputError
from alight.runtime.files import short_names
from alight.runtime.reading import read_json
from alight.show.layout import hanging, printable, ranges, setting, table

REPORT = "report.json"


@with_config(ConfigDict(strict=True, extra="allow"))
class _Measured(TypedDict):
    """A figure of the file, without its comparison."""

    name: str
    label: str
    value: Annotated[int | float, Field(ge=-1e300, le=1e300)] | None
    conditions: dict[str, JsonValue]
    digits: NotRequired[Annotated[int, Field(ge=0, le=20)]]
    unit: NotRequired[str]


class _Figure(_Measured):
    compare: NotRequired[_Measured | None]


@with_config(ConfigDict(strict=True, extra="allow"))
class _Report(TypedDict):
    title: str
    figures: list[_Figure]


@dataclass(frozen=True)
class Figures:
    """The figures of one report.

    Attributes:
        name: of the report: the end of its path that distinguishes it from the others.
        path: of its `report.json`.
        title: of the report.
        figures: as in the file, each followed by its comparison.
    """

    name: str
    path: Path
    title: str
    figures: Sequence[dict[str, Any]]

    def find(self, name: str) -> dict[str, Any] | None:
        """The figure of that name."""
        return next((figure for figure in self.figures if figure["name"] == name), None)


@dataclass(frozen=True)
class SideBySide:
    """Several reports in the given order."""

    reports: Sequence[Figures]

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        return {
            "reports": [
                {"name": each.name, "path": str(each.path), "title": each.title, "figures": list(each.figures)}
                for each in self.reports
            ]
        }

    @property
    def names(self) -> list[str]:
        """The names of all figures, in their order."""
        return list(dict.fromkeys(figure["name"] for each in self.reports for figure in each.figures))

    def __str__(self) -> str:
        alone = len(self.reports) == 1
        heads = ("", "figure", *(["value"] if alone else [each.name for each in self.reports]))
        rows = [
            (str(number), self._label(name), *(_value(each.find(name)) for each in self.reports))
            for number, name in enumerate(self.names, start=1)
        ]
        figures = table(heads, rows, right=[0, *range(2, len(heads))])
        title = f"{printable(self.reports[0].title)}\n\n" if alone else ""
        return f"{title}{figures}\n\nConditions, by the numbers of the figures they belong to\n{self._conditions()}"

    def _label(self, name: str) -> str:
        return next(printable(figure["label"]) for each in self.reports if (figure := each.find(name)) is not None)

    def _conditions(self) -> str:
        """All conditions of the figures; a condition that several figures share is listed once."""
        belongs: dict[tuple[str, str], list[int]] = {}  # (report or nothing, condition) -> numbers of figures
        for number, name in enumerate(self.names, start=1):
            for whose, condition in self._conditions_of(name):
                belongs.setdefault((whose, condition), []).append(number)
        together: dict[tuple[str, str], list[str]] = {}  # (numbers, report or nothing) -> conditions
        for (whose, condition), numbers in belongs.items():
            together.setdefault((ranges(numbers), whose), []).append(condition)
        return "\n".join(
            hanging(f"{numbers}{f', {whose}' if whose else ''}:  ", "; ".join(conditions))
            for (numbers, whose), conditions in together.items()
        )

    def _conditions_of(self, name: str) -> Iterator[tuple[str, str]]:
        """The conditions of a figure, with the report's name before those in which the reports differ."""
        found = {each.name: figure["conditions"] for each in self.reports if (figure := each.find(name)) is not None}
        for key in dict.fromkeys(key for conditions in found.values() for key in conditions):
            texts = {report: f"{key} {setting(conditions.get(key))}" for report, conditions in found.items()}
            if len(set(texts.values())) == 1:
                yield "", next(iter(texts.values()))
            else:
                yield from texts.items()


def run(config: ReportConfig) -> SideBySide:
    """Read the reports that the configuration names.

    Raises:
        InputError: there is no report, or it cannot be read.
    """
    paths = [find_report(folder) for folder in config.folders]
    names = short_names([path.parent.resolve() for path in paths])
    pairs = zip(paths, names, strict=True)
    return SideBySide([read_report(path, name.removesuffix("/report")) for path, name in pairs])


def find_report(folder: Path) -> Path:
    """The `report.json` of a report or of a run, or the file itself."""
    places = (folder / REPORT, folder / "report" / REPORT, folder)
    found = next((path for path in places if path.is_file() and path.suffix == ".json"), None)
    if found is None:
        raise InputError(
            f"There is no finished report in {folder}: neither {REPORT} nor report/{REPORT}. 'alight evaluate' and "
            "'alight tokenizer evaluate' write one."
        )
    return found


def read_report(path: Path, name: str) -> Figures:
    """Read the figures of one file.

    Raises:
        InputError: it is not a report of this package.
    """
    content = read_json(path, _Report, "It is not a report of alight, or damaged: create it again.")
    figures: list[dict[str, Any]] = []
    for figure in content["figures"]:
        figures += [dict(each) for each in (figure, figure.get("compare")) if each is not None]
    return Figures(name, path, content["title"], figures)


def _value(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "-"
    if figure["value"] is None:
        return "not finite"
    return printable(f"{figure['value']:,.{figure.get('digits', 3)}f} {figure.get('unit', '')}".rstrip())
