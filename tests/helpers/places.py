"""Places in the package, by which operations are told apart."""

import sys
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import alight

PACKAGE = Path(alight.__file__).parent


class Place(NamedTuple):
    """A place in the package: a file below it, and a function."""

    file: str
    function: str


def calling_place() -> Place:
    """The innermost file and function of the package on the stack, comprehensions aside; empty outside of it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and not frame.f_code.co_name.startswith("<"):
            return Place(str(path.relative_to(PACKAGE)), frame.f_code.co_name)
        frame = frame.f_back
    return Place("", "")
