"""Escaping of text from records in a model card, so that names do not become links, headings, HTML or metadata."""

import re
import unicodedata

_LONGEST = 2_000  # characters of one text
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}
_SPECIAL = re.compile(r"([\\`*\[\]|~$])")
_EMPHASIS = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # within a word, an underscore is not markup
_BLOCK = re.compile(r"(?:#{1,6}(?=\s|$)|[-+](?=[-+\s]|$)|=+$|\d{1,9}(?=[.)](?:\s|$)))")  # where a block begins


_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn the direction of what follows


class Markup(str):
    """Text that is Markdown already."""


def plain(text: object) -> str:
    """A text as one line without control characters, for metadata.

    The YAML writer quotes special characters.
    """
    line = "".join(" " if _is_control(character) else character for character in str(text))
    return " ".join(line.split())[:_LONGEST]


def markdown(text: object) -> Markup:
    """A text as one line of Markdown that shows exactly this text, without HTML, links, headings or emphasis."""
    if isinstance(text, Markup):
        return text
    line = _SPECIAL.sub(r"\\\1", plain(text))
    line = _EMPHASIS.sub(r"\\_", line)
    for character, entity in _ENTITIES.items():
        line = line.replace(character, entity)
    line = line.replace("://", "&#58;//")  # some renderers turn every URL into a link
    line = re.sub(r"(?i)\bwww\.", lambda found: f"{found[0][:-1]}&#46;", line)
    if block := _BLOCK.match(line):
        number = block[0].isdigit()
        line = f"{block[0]}\\{line[block.end() :]}" if number else f"\\{line}"
    return Markup(line)


def code(text: object) -> Markup:
    """A text as inline code."""
    content = plain(text).replace("|", "\\|")
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * (longest + 1)
    return Markup(f"{fence} {content} {fence}" if longest else f"{fence}{content}{fence}")


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS
