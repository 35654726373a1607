"""Text for a terminal: colours if it is interactive, and no control characters from names."""

import os
import re
import unicodedata
from typing import Any, Literal, TextIO

Colour = Literal["green", "yellow", "red", "bold"]

_CODES: dict[Colour, str] = {"green": "32", "yellow": "33", "red": "31", "bold": "1"}
_PAINT = re.compile(rf"(\033\[(?:0|{'|'.join(_CODES.values())})m)")
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, formats such as those that turn the direction, half characters
_JOINERS = "\u200c\u200d"  # belong to the spelling of some languages, and to emoji
_SHOWN = 80  # characters of a value in a message


def coloured(stream: TextIO) -> bool:
    """Tell if the stream shows colours and the user has not turned them off."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: Colour, stream: TextIO) -> str:
    """The text in a colour, if the stream shows colours."""
    return f"\033[{_CODES[colour]}m{text}\033[0m" if coloured(stream) else text


def printable(text: str, keep: str = "") -> str:
    r"""The text with every control character written as an escape, such as \x1b.

    Args:
        text: any text, for example with names of files or keys of recipes.
        keep: characters that stay, such as line breaks.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if character in keep or not _steers(character) else _escaped(character) for character in text
    )


def printable_lines(text: str, stream: TextIO) -> str:
    """As `printable`, for results of several lines; colours of `paint` stay if the stream shows them."""
    parts = _PAINT.split(text) if coloured(stream) else [text]
    return "".join(part if index % 2 else printable(part, keep="\n\t") for index, part in enumerate(parts))


def shortened(value: Any) -> str:
    """A value for a message, cut off if it is long."""
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _steers(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN and character not in _JOINERS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
