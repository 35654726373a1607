"""Checkpoints: everything that a run needs to go on as if it had never stopped, written atomically.

Random numbers are drawn from streams of (seed, step), and the order of the data follows from the step as well, so
the step is all the randomness there is to save.
"""

import os
import re
from pathlib import Path
from typing import Any

import torch

from alight.artifacts import explained_disk_errors

_NAME = re.compile(r"step-(\d{8})\.pt")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lies."""
    return folder / f"step-{step:08d}.pt"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files of all checkpoints, oldest first."""
    matches = [(match, path) for path in folder.glob("step-*.pt") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match.group(1)), path) for match, path in matches)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint under a temporary name, rename it, and remove all but the newest `keep`.

    Raises:
        InputError: if the disk is full or the folder cannot be written; older checkpoints stay.
    """
    path = checkpoint_path(folder, step)
    temporary = path.with_suffix(".writing")
    with explained_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                torch.save({"step": step, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    for _, old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load_latest_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, list[Path]]:
    """The newest checkpoint that can be read, on the CPU.

    Returns:
        The state (None if there is none), and the newer files that turned out to be damaged.
    """
    damaged: list[Path] = []
    for _, path in reversed(list_checkpoints(folder)):
        try:
            return torch.load(path, map_location="cpu", weights_only=True), damaged
        except Exception:  # torch raises many kinds for a damaged file; the caller reports each of them
            damaged.append(path)
    return None, damaged
