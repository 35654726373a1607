"""Fills the page of the configuration: a table per command, from the typed classes and the comments in them."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from alight.config import Job, Section  # noqa: E402 (the package beside these pages, installed or not)
from alight.config.commands import COMMANDS

MARK = "<!-- configuration -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What MkDocs calls with the text of every page."""
    return markdown.replace(MARK, "\n".join(tables())) if MARK in markdown else markdown


def tables() -> Iterator[str]:
    """Heading, purpose and options of every command."""
    for name, kind in ((name, command.config) for name, command in COMMANDS.items()):
        yield f"## alight {name}\n\n{inspect.getdoc(kind)}\n"
        yield "| option | default | |\n|---|---|---|"
        for option, default, comment in rows(kind()):
            yield f"| `{option}` | {default} | {comment} |"
        yield ""


def rows(section: Section, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted name, default and comment of every option; a whole job inside another one is one row."""
    comments = field_comments(type(section))
    for name in type(section).model_fields:
        value, comment = getattr(section, name), escaped(comments.get(name, ""))
        if isinstance(value, Job):
            command = next(command for command, entry in COMMANDS.items() if entry.config is type(value))
            yield f"{prefix}{name}", "", f"everything of [alight {command}](#alight-{command.replace(' ', '-')})"
        elif isinstance(value, Section):
            yield from rows(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", f"`{default_text(value)}`", comment


def default_text(value: object) -> str:
    """A default as a recipe would have it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(map(default_text, value))}]"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def field_comments(kind: type[Section]) -> dict[str, str]:
    """Field name -> the comment on its line, of a class and of those that it inherits from."""
    comments: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not (issubclass(base, Section) and base is not Section):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        lines = source.splitlines()
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for node in body.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                _, _, comment = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :].partition("#")
                comments[node.target.id] = comment.strip()
    return comments


def escaped(comment: str) -> str:
    """A comment as a cell of a table."""
    return comment.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
