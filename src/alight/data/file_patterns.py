"""Patterns for many files: `*` and `?` as in a shell, and numbered or listed parts in braces."""

import glob
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from alight.runtime.errors import InputError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
_MOST_PARTS = 100_000


def is_pattern(word: str) -> bool:
    """Tell if the word is a pattern."""
    return any(character in word for character in "*?{")


def find_files(pattern: str) -> list[Path]:
    """The files that match a path or a pattern: braces in their own order, the matches of a `*` sorted.

    Raises:
        InputError: a file that the braces name is missing, or a `*` matches none.
    """
    if os.path.isfile(pattern):
        return [Path(pattern)]
    folder, rest = os.path.split(pattern)
    if not os.path.isdir(folder):  # otherwise its name is literal
        folder, rest = "", pattern
    files = []
    for name in expand_braces(rest):
        escaped = os.path.join(glob.escape(folder), name.replace("[", "[[]"))  # brackets are just names
        found = sorted(glob.glob(escaped)) if is_pattern(name) else [os.path.join(folder, name)]
        if not found or not all(map(os.path.isfile, found)):
            raise InputError(f"There is no file {name:.300} for the pattern {pattern:.300}; check its name.")
        files += found
    return list(map(Path, dict.fromkeys(files)))


def expand_braces(pattern: str) -> list[str]:
    """Expand `a{08..10}` to a08, a09, a10, and `{a,b}c` to ac, bc; several braces give all combinations.

    Raises:
        InputError: a range counts down, or there are too many files.
    """
    if math.prod(len(_parts(content)) for content in _BRACES.findall(pattern)) > _MOST_PARTS:
        raise InputError(f"The pattern {pattern:.300} has more than {_MOST_PARTS:,} files. Use a smaller one.")
    return _expanded(pattern)


def _expanded(pattern: str) -> list[str]:
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    return [head + part + rest for part in _parts(braces.group(1)) for rest in _expanded(tail)]


def _parts(content: str) -> Sequence[str]:
    numbers = _RANGE.fullmatch(content)
    if numbers is None:
        return content.split(",")
    first, last = map(int, numbers.groups())
    if not 0 <= last - first < _MOST_PARTS:
        raise InputError(f"The range {{{content}}} must count upwards, to at most {_MOST_PARTS:,} files.")
    return [f"{number:0{len(numbers.group(1))}d}" for number in range(first, last + 1)]
