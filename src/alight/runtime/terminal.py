"""Colour, where a person sees it: on a terminal, unless NO_COLOR (no-color.org) or a dumb terminal forbids it."""

import os
from typing import Literal, TextIO

Colour = Literal["green", "yellow", "red", "bold"]

_CODES: dict[Colour, str] = {"green": "32", "yellow": "33", "red": "31", "bold": "1"}


def coloured(stream: TextIO) -> bool:
    """Whether colours would be seen, and are wanted."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: Colour, stream: TextIO) -> str:
    """The text in a colour, or as it is, as the stream allows."""
    return f"\033[{_CODES[colour]}m{text}\033[0m" if coloured(stream) else text
