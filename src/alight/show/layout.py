"""Layout of text for a terminal: tables, indentation, values."""

import re
import shutil
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

LONG_LIST = 10
DEEPEST = 12  # levels of nested values that are shown
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Heads and rows in columns, those in `right` flush right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        pairs = enumerate(zip(cells, widths, strict=True))
        return "  ".join(cell.rjust(w) if number in right else cell.ljust(w) for number, (cell, w) in pairs).rstrip()

    return "\n".join([line(heads), "  ".join("-" * width for width in widths), *map(line, rows)])


def hanging(head: str, text: str) -> str:
    """Text after a head, wrapped to the width of the terminal with a hanging indent."""
    width = max(shutil.get_terminal_size((100, 24)).columns, 40)
    return textwrap.fill(text, width, initial_indent=head, subsequent_indent="    ", break_on_hyphens=False)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as ranges: 1-3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def printable(text: str) -> str:
    """Text from a file without control characters."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def facts(values: Mapping[str, Any], indent: int = 0, depth: int = 0) -> str:
    """Names and values in lines; nested ones are indented, down to a limit."""
    named = {printable(str(name)): value for name, value in values.items()}
    width = max((len(name) for name, value in named.items() if not (isinstance(value, Mapping) and value)), default=0)
    lines = []
    for name, value in named.items():
        if isinstance(value, Mapping) and value and depth < DEEPEST:
            lines.append(f"{'':{indent}}{name}")
            lines.append(facts(value, indent + 2, depth + 1))
        else:
            lines.append(f"{'':{indent}}{name:<{width}}  {setting(value)}")
    return "\n".join(filter(None, lines))


def setting(value: Any, depth: int = 0) -> str:
    """A value as text; long lists and deep nesting are cut off."""
    if depth > DEEPEST:
        return "..."
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case list() | tuple():
            more = f", ... {len(value)} in all" if len(value) > LONG_LIST else ""
            shown = ", ".join(setting(item, depth + 1) for item in value[:LONG_LIST])
            return f"[{shown}{more}]" if value else "none"
        case Mapping():
            return (
                ", ".join(f"{printable(str(name))} {setting(item, depth + 1)}" for name, item in value.items())
                or "none"
            )
        case _:
            return printable(str(value))
