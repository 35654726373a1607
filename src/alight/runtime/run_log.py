"""The log of a training run: one JSON object per line, with the step and the figures of that step."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from alight.runtime.console import log
from alight.runtime.reading import read_bytes

LOG_FILE = "log.jsonl"
LOG_LIMIT = 2**30  # bytes; a line has a few hundred
LAST_STEP = 2**53  # beyond which a number in JSON may not be the step that was written


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log, oldest first: a step and finite numbers; damaged lines are left out with a warning.

    Raises:
        InputError: the log is no regular file, or cannot be read.
    """
    path = folder / LOG_FILE
    texts = read_bytes(path, LOG_LIMIT).split(b"\n") if path.exists() else []
    lines, damaged = [], 0
    for number, text in enumerate(texts, start=1):
        if (line := _parse_line(text)) is not None:
            lines.append(line)
        elif text.strip() and number < len(texts):  # a crash may cut off the last line, which is no damage
            damaged += 1
    if damaged:
        log.warning("%s: %d damaged lines are left out.", path, damaged)
    return lines


def _parse_line(text: bytes) -> dict[str, float] | None:
    """The numbers of a line; None if it is no line of a log."""
    try:
        values = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not _is_number(values.get("step")) or not all(map(_is_number, values.values())):
        return None
    if values["step"] != values["step"] // 1 or not 0 <= values["step"] <= LAST_STEP:
        return None
    step = int(values["step"])
    return {"step": step} | {name: value for name, value in values.items() if name != "step" and math.isfinite(value)}


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max
