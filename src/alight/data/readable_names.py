r"""Names as people, terminals and JSON can have them, whatever bytes a file system or an archive holds.

Python shows a byte that is not UTF-8 as half of a surrogate pair, which no console, page or JSON reader accepts. Here
it becomes `\xe9`, in plain characters. Names that look the same in other Unicode normal forms become the same.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from alight.runtime.errors import InputError

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTE = 0xDC00  # what Python adds to a byte that it cannot decode
_LONGEST_CLASS_NAME = 1000  # characters; longer ones are texts, not names


def readable(name: str) -> str:
    r"""The name in normal form NFC, with `\xe9` for a byte that is not UTF-8."""
    return unicodedata.normalize("NFC", printable(name))


def printable(name: str) -> str:
    r"""The name as it is, but with `\xe9` for a byte that is not UTF-8."""
    return _SURROGATE.sub(_escape, name)


@lru_cache(maxsize=1 << 16)
def folded(name: str) -> str:
    """The common form of names that differ in case, normal form or width of spaces alone."""
    return unicodedata.normalize("NFC", " ".join(readable(name).casefold().split()))


def readable_classes(names: Iterable[str], place: str) -> dict[str, str]:
    """A readable name for each class, by the given one; all are different.

    Raises:
        InputError: two names look the same, or one is far too long.
    """
    given: dict[str, str] = {}  # readable -> as given
    for name in names:
        shown = readable(name)
        if len(shown) > _LONGEST_CLASS_NAME:
            raise InputError(
                f"{place} has a class name of {len(shown):,} characters ({shown:.40}...). Give the classes names of "
                f"at most {_LONGEST_CLASS_NAME:,}, or take all images as one class with unconditional=True."
            )
        if given.setdefault(shown, name) != name:
            raise InputError(
                f"{place} has two classes that are both shown as '{shown}' ({given[shown]!a} and {name!a}): they "
                "differ in the Unicode normal form or in bytes that are not UTF-8 alone. Rename one of them, or put "
                "their images together."
            )
    return {name: shown for shown, name in given.items()}


def _escape(surrogate: re.Match[str]) -> str:
    code = ord(surrogate[0])
    return f"\\x{code - _ESCAPED_BYTE:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
