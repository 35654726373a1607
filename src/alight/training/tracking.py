"""Trackers: a training run's scalars and pictures go into its folder, and to other places on request.

All places are told the same things at the same moments. What a run tells after a checkpoint it tells again when it
goes on from there, so each place forgets what is later than the step at which it is opened.
"""

import importlib
import json
import re
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from PIL import Image

from alight.config import TrainingConfig
from alight.runtime.errors import InputError
from alight.runtime.files import explained_disk_errors, write_text
from alight.runtime.pixels import PixelArray
from alight.runtime.reading import read_bytes
from alight.runtime.run_log import LOG_FILE, read_log

TENSORBOARD_FOLDER, WANDB_FILE = "tensorboard", "wandb-run-id.txt"


class Tracker(Protocol):
    """A place where a run can be watched."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Show some finite numbers, at a step."""

    def picture(self, name: str, step: int, picture: PixelArray) -> None:
        """Show a picture, one of a series of that name."""

    def close(self) -> None:
        """Give up threads, processes and files; nothing is shown any more."""


def require_packages(training: TrainingConfig) -> None:
    """Find out before any work starts whether the run can be watched where it was asked for.

    Raises:
        InputError: names the package that is missing and how to get it.
    """
    wanted = {"tensorboard": training.tensorboard, "wandb": training.wandb_project is not None}
    for package, option in (("tensorboard", "training.tensorboard"), ("wandb", "training.wandb_project")):
        try:
            if wanted[package]:
                importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"{option} needs the package {package}, which cannot be imported ({error}). Install it with "
                f"pip install 'alight[{package}]', or leave {option} out."
            ) from error


def open_trackers(
    folder: Path, training: TrainingConfig, config: Mapping[str, Any], start_step: int, stack: ExitStack
) -> list[Tracker]:
    """All places where a run is to be watched; the stack closes them.

    Raises:
        InputError: a place cannot be written or reached.
    """
    trackers: list[Tracker] = []
    with explained_disk_errors(folder):
        trackers.append(FolderTracker(folder, start_step))
        if training.tensorboard:
            trackers.append(TensorBoardTracker(folder, start_step))
            stack.callback(_close, trackers[-1], folder)
        if training.wandb_project is not None:
            trackers.append(WandbTracker(folder, start_step, training.wandb_project, config))
            stack.callback(_close, trackers[-1], folder)
    return trackers


def _close(tracker: Tracker, folder: Path) -> None:
    with explained_disk_errors(folder):  # closing writes what was held back
        tracker.close()


class FolderTracker:
    """`log.jsonl`, a line per logged step; pictures as `<name>/step-XXXXXXXX.png`, the last also as `<name>.png`."""

    def __init__(self, folder: Path, start_step: int) -> None:
        self.folder = folder
        kept = [line for line in read_log(folder) if line["step"] <= start_step]
        write_text(folder / LOG_FILE, "".join(json.dumps(line) + "\n" for line in kept))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
            digits = {name: float(f"{value:.7g}") for name, value in values.items()}  # as many as float32 has
            file.write(json.dumps({"step": step, **digits}) + "\n")

    def picture(self, name: str, step: int, picture: PixelArray) -> None:
        """Write the files; those of a step which is taken again are replaced."""
        path = self.folder / name / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        for place in (path, self.folder / f"{name}.png"):
            Image.fromarray(picture).save(place)

    def close(self) -> None:
        """Nothing is open."""


class TensorBoardTracker:
    """Event files in `tensorboard/`, for `tensorboard --logdir`; a run that goes on hides the steps it takes again.

    TensorBoard reads the files in the order of their names, which begin with the second they were made in, so a file
    that hides part of another must not share its second.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        events = folder / TENSORBOARD_FOLDER
        while any(path.name.startswith(f"events.out.tfevents.{int(time.time()):010d}") for path in events.glob("*")):
            time.sleep(0.05)
        self._writer = SummaryWriter(events, purge_step=start_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve, on the disk at once."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, name: str, step: int, picture: PixelArray) -> None:
        """Add a picture to the series."""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """End the thread that writes."""
        self._writer.close()


class WandbTracker:
    """A run of Weights & Biases, the same one when training goes on; `WANDB_MODE=offline` keeps it on this machine.

    Weights & Biases takes no step twice. What is told again changes nothing there, and would not: steps that are taken
    again give the same numbers.
    """

    def __init__(self, folder: Path, start_step: int, project: str, config: Mapping[str, Any]) -> None:
        import wandb

        known = folder / WANDB_FILE
        run_id = (_read_run_id(known) if start_step else None) or uuid4().hex
        try:
            self._run = wandb.init(
                project=project,
                id=run_id,
                resume="allow",
                name=str(config.get("output", folder)),
                config=dict(config),
                allow_val_change=True,  # of where results go
                dir=folder,
            )
        except wandb.Error as error:
            raise InputError(
                f"Weights & Biases cannot be reached ({' '.join(str(error).split())}). Log in with 'wandb login', set "
                "the environment variable WANDB_MODE to offline, or leave training.wandb_project out."
            ) from error
        self._image = wandb.Image
        write_text(known, run_id + "\n")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        self._run.log(dict(values), step=step)

    def picture(self, name: str, step: int, picture: PixelArray) -> None:
        """Add a picture to the series."""
        self._run.log({name: self._image(picture)}, step=step)

    def close(self) -> None:
        """Send what is left, and end the process that sends."""
        self._run.finish()


def _read_run_id(path: Path) -> str | None:
    """The name of the run at Weights & Biases; None where the file is missing or damaged."""
    text = read_bytes(path, 1000) if path.exists() else b""
    return text.decode("ascii").strip() if re.fullmatch(rb"[0-9a-zA-Z_-]{1,64}\s*", text) else None
