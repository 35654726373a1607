"""The bookkeeping around a training loop: resuming, progress, log, checkpoints, interrupts.

with TrainingRun(folder, config, {"model": model, "optimizer": optimizer}) as run:
    for step in run.steps():
        ...
        run.log(loss=loss)
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from alight.artifacts import differences, explained_disk_errors
from alight.config import TrainingConfig
from alight.runtime.console import log, progress_bar
from alight.runtime.errors import InputError
from alight.runtime.interrupt import deferred_interrupt
from alight.training.checkpoint import load_latest_checkpoint, save_checkpoint

LOG_FILE = "log.jsonl"


class Stateful(Protocol):
    """What a checkpoint can hold: models, optimizers, averages."""

    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...  # noqa: D102


class TrainingRun:
    """One training run in one folder, which can be interrupted at any moment and goes on where it stopped.

    Args:
        folder: for checkpoints and `log.jsonl`.
        config: the resolved configuration of the job, as plain data; a resumed run must have the same.
        training: its length and intervals.
        state: everything that a checkpoint must hold, by name.
        description: what the progress bar says.

    Raises:
        InputError: if the folder holds a run of another configuration, or checkpoints that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        training: TrainingConfig,
        state: Mapping[str, Stateful],
        description: str,
    ) -> None:
        self.folder, self.config, self.training, self.state = folder, dict(config), training, state
        self.description = description
        self.start_step, self._seconds_before = 0, 0.0
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()
        self._resume()
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._interrupted = self._stack.enter_context(deferred_interrupt())
        bar = progress_bar(
            desc=self.description, total=self.training.steps, initial=self.start_step, unit="step", smoothing=0.1
        )
        self._bar = self._stack.enter_context(bar)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def seconds(self) -> float:
        """Time spent in this run so far, over all its interruptions."""
        return self._seconds_before + time.perf_counter() - self._started

    def steps(self) -> Iterator[int]:
        """The steps that are left, counted from 0; saves when one is due, at the end, and when interrupted."""
        for step in range(self.start_step, self.training.steps):
            yield step
            done = step + 1
            self._bar.update()
            if done % self.training.log_every == 0 or done == self.training.steps:
                self._write_log(done)
            interrupted = self._interrupted()
            if interrupted or done % self.training.checkpoint_every == 0 or done == self.training.steps:
                self._save(done)
            if interrupted and done < self.training.steps:
                log.info("Stopped after step %d of %d; run the same command to go on.", done, self.training.steps)
                raise KeyboardInterrupt

    def log(self, **values: Tensor | float | None) -> None:
        """Average scalars until the next line of the log; nothing is copied from the device before that."""
        for name, value in values.items():
            if value is not None:
                scalar = value.detach().float() if isinstance(value, Tensor) else torch.tensor(float(value))
                self._sums[name] = self._sums[name] + scalar if name in self._sums else scalar
                self._counts[name] += 1

    def _write_log(self, step: int) -> None:
        means = {name: float(value) / self._counts[name] for name, value in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        loss = means.get("loss", 0.0)
        if not math.isfinite(loss):
            raise InputError(
                f"The loss is not finite after step {step}; nothing of it was saved. The last good checkpoint is in "
                f"{self.folder}. Lower optimizer.lr, set optimizer.max_grad_norm to 1.0, or train in fp32."
            )
        self._bar.set_postfix({"loss": f"{loss:.4g}"}, refresh=False)
        line = {"step": step, "seconds": round(self.seconds, 2)} | means
        with explained_disk_errors(self.folder), (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self, step: int) -> None:
        state = {name: item.state_dict() for name, item in self.state.items()}
        save_checkpoint(
            self.folder,
            step,
            {"state": state, "config": self.config, "seconds": self.seconds},
            keep=self.training.keep_checkpoints,
        )

    def _resume(self) -> None:
        with explained_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint, damaged = load_latest_checkpoint(self.folder)
        for path in damaged:
            log.warning("The checkpoint %s is damaged and was passed over.", path)
        if checkpoint is None:
            (self.folder / LOG_FILE).unlink(missing_ok=True)
            return
        changed = differences(checkpoint["config"], self.config)
        if changed:
            raise InputError(
                f"{self.folder} holds a run that was started with another configuration ({'; '.join(changed[:4])}). "
                "Choose another --output, restore the configuration, or delete that folder to start anew."
            )
        for name, item in self.state.items():
            item.load_state_dict(checkpoint["state"][name])
        self.start_step, self._seconds_before = checkpoint["step"], checkpoint["seconds"]
        self._forget_log_after(self.start_step)
        if self.start_step < self.training.steps:
            log.info("%s: going on from step %d of %d.", self.description, self.start_step, self.training.steps)

    def _forget_log_after(self, step: int) -> None:
        """Drop lines of steps that will be taken again."""
        kept = [line for line in read_log(self.folder) if line["step"] <= step]
        with explained_disk_errors(self.folder):
            (self.folder / LOG_FILE).write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log, oldest first; a line cut off by a crash is left out."""
    path = folder / LOG_FILE
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
