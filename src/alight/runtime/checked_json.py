"""JSON files with a checksum of their values, which reveals damage and edits by hand.

Without it, a flipped bit in a mean or a count would go unnoticed.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from alight.runtime.errors import InputError
from alight.runtime.files import write_text
from alight.runtime.reading import JSON_LIMIT, parse_json, read_bytes

CHECKSUM = "checksum"  # SHA-256 over the text of the other values
_FORMER_NAME = "seal"  # of the checksum, in files of version 0.1
REMEDY = "Restore it, or create its folder again."


def write_checked(path: Path, values: Mapping[str, Any]) -> None:
    """Write values and their checksum atomically; numbers must be finite.

    Raises:
        InputError: the disk refuses.
        ValueError: a number is not finite.
    """
    write_text(path, _text(values, CHECKSUM))


def read_checked(path: Path) -> dict[str, Any]:
    """Read values that `write_checked` wrote.

    Raises:
        InputError: the file cannot be read, has no checksum, or does not match it.
    """
    values, checked = read_perhaps_checked(path)
    if not checked:
        raise InputError(f"{path} has no checksum, so it is not what was written. {REMEDY}")
    return values


def read_perhaps_checked(path: Path) -> tuple[dict[str, Any], bool]:
    """Read values from a file that may be older than checksums.

    Returns:
        The values, and True if the file has a checksum.

    Raises:
        InputError: the file cannot be read, or does not match its checksum.
    """
    content = read_bytes(path, JSON_LIMIT)
    values: dict[str, Any] = parse_json(content, dict, str(path), REMEDY)
    name = next((key for key in (CHECKSUM, _FORMER_NAME) if key in values), None)
    if name is None:
        return values, False
    values.pop(name)
    if content.decode() != _text(values, name):
        raise InputError(f"{path} is not what was written: it was damaged, or edited by hand. {REMEDY}")
    return values, True


def _text(values: Mapping[str, Any], name: str) -> str:
    checksum = sha256(json.dumps(values, allow_nan=False).encode()).hexdigest()
    return json.dumps({**values, name: checksum}, indent=2, allow_nan=False) + "\n"
