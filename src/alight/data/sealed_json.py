"""JSON files that show when they are no longer what was written: the values, and a checksum of them as a seal.

One wrong bit in a mean or a count would be read as a number like any other. With the seal it is noticed.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from alight.runtime.errors import InputError
from alight.runtime.files import write_text

SEAL = "seal"  # SHA-256 over the text of the other values


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write values and their seal atomically; numbers must be finite."""
    write_text(path, _sealed_text(values))


def read_sealed(path: Path) -> dict[str, Any]:
    """Read values that `write_sealed` wrote.

    Raises:
        InputError: the file cannot be read, or differs in a single bit from what was written.
    """
    try:
        text = path.read_bytes().decode()
        values: dict[str, Any] = json.loads(text)
        values.pop(SEAL)
        intact = text == _sealed_text(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error!r}). Restore it, or make the latents again.") from error
    if not intact:
        raise InputError(
            f"{path} is not what was written: it was damaged, or edited by hand. Restore it, or make the latents "
            "again."
        )
    return values


def _sealed_text(values: Mapping[str, Any]) -> str:
    seal = sha256(json.dumps(values, allow_nan=False).encode()).hexdigest()
    return json.dumps({**values, SEAL: seal}, indent=2, allow_nan=False) + "\n"
