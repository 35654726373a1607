"""The bookkeeping around a training loop: resuming, progress, checkpoints, interrupts, gradients gone wrong.

with TrainingRun(folder, config, training, {"model": model, "optimizer": optimizer}, "transformer") as run:
    for step in run.steps():
        ...
        run.log(loss=loss)
        run.check(optimizer_step(optimizer, lr, max_grad_norm))
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from alight.artifacts import differences, library_versions
from alight.config import TrainingConfig
from alight.runtime.console import log, progress_bar
from alight.runtime.device import warn_of_slow_precision
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.files import explained_disk_errors
from alight.runtime.interrupt import Interrupted, deferred_interrupt
from alight.runtime.pixels import PixelArray
from alight.training.background_writer import BackgroundWriter
from alight.training.checkpoint import remove_leftovers
from alight.training.ema import warn_of_long_average
from alight.training.finite import FiniteCheck
from alight.training.inputs import require_same_inputs
from alight.training.longer import is_longer, length_note, of_length
from alight.training.meter import Averages, Meter
from alight.training.parallel import group_for_checkpoints
from alight.training.resuming import Newest, choose_newest, restore_newest
from alight.training.tracking import Tracker, open_trackers, require_packages

ALONE = Processes(0, 1, torch.device("cpu"))

Listener = Callable[[int, Mapping[str, float]], None]


class Stateful(Protocol):
    """An object with state for checkpoints: a model, an optimizer, an average."""

    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...  # noqa: D102


class TrainingRun:
    """One training run in one folder, which can be interrupted at any moment and goes on where it stopped.

    Several processes that train together each hold one; the first of them writes.

    Args:
        folder: for checkpoints, `log.jsonl` and pictures.
        config: the resolved configuration of the job, as plain data; a resumed run must have the same.
        training: its length and intervals, and where it can be watched.
        state: everything that a checkpoint must hold, by name.
        description: what the progress bar says.
        processes: that share the work.
        listener: told the step and the scalars of every line of the log.
        dataset_size: images in an epoch; None = unknown.
        flops_per_image: floating-point operations to learn from one image; None = unknown.
        inputs: hashes of what the run is made from, by name; a resumed run must have the same.
        artifact: plain data that every checkpoint carries for `open_snapshot`.

    Attributes:
        start_step: how many steps have been taken before.
        meter: of the speed.

    Raises:
        InputError: if the folder holds a run of another configuration, of other inputs, of more steps, or checkpoints
            that cannot be used; or if the run is to be watched where it cannot be.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        training: TrainingConfig,
        state: Mapping[str, Stateful],
        description: str,
        processes: Processes = ALONE,
        listener: Listener | None = None,
        dataset_size: int | None = None,
        flops_per_image: float | None = None,
        inputs: Mapping[str, str] | None = None,
        artifact: Mapping[str, Any] | None = None,
    ) -> None:
        require_packages(training)
        self.folder, self.config, self.training, self.state = folder, dict(config), training, state
        self.description, self.processes, self.listener = description, processes, listener
        self.start_step, self._seconds_before, self._non_finite_before = 0, 0.0, 0
        self._versions = library_versions()
        self._recorded = {"inputs": dict(inputs or {}), "artifact": dict(artifact or {})}
        self._non_finite = 0  # since this start, which is what the limit is for
        self._averages = Averages()
        self._trackers: list[Tracker] = []  # of the process that writes
        self._finite = FiniteCheck()
        self._group = group_for_checkpoints(state.values())  # of processes that each write their part
        self._writer = BackgroundWriter(
            folder, training.keep_checkpoints, training.keep_every, self._group, training.save_at
        )
        with ExitStack() as stack:  # what was opened is closed where opening the rest fails
            stack.callback(self._writer.close)
            with explained_disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            if processes.is_main:
                remove_leftovers(folder)
            if processes.is_main and "ema" in state:
                warn_of_long_average(training, description)
            self._resume()
            if processes.is_main and self.start_step < training.steps:
                warn_of_slow_precision(processes.device, training.precision)
            if processes.is_main:
                self._trackers = open_trackers(folder, training, config, self.start_step, stack)
            self.meter = Meter(training, processes, self.start_step, dataset_size, flops_per_image)
            self._stack = stack.pop_all()
        self._started = time.perf_counter()

    def __enter__(self) -> Self:
        self._signal = self._stack.enter_context(deferred_interrupt())
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
            done, last = step + 1, step + 1 == self.training.steps
            if last and not self._finite.last():
                self._act_on_non_finite()
            self._bar.update()
            if done % self.training.log_every == 0 or last:
                self._write_log(done)
            signal = self.processes.largest(self._signal())
            if signal or last or done % self.training.checkpoint_every == 0 or done in self.training.save_at:
                self._save(done)
            if signal and not last:
                self._writer.wait()
                self.processes.barrier()  # a launcher ends all processes when the first one leaves
                log.info("Stopped after step %d of %d; run the same command to go on.", done, self.training.steps)
                raise Interrupted(signal, agreed=True)
        self._writer.wait()
        if self.processes.is_main:
            for picture in sorted(self.folder.glob("*.png")):
                log.info("%s: %s at the end: %s", self.description, picture.stem, picture)
        self.processes.barrier()  # nobody goes on before the last checkpoint is there

    def log(self, **values: Tensor | float | None) -> None:
        """Average scalars until the next line of the log; nothing is copied from the device before that."""
        for name, value in values.items():
            if value is not None:
                self._averages.add(name, value)

    def picture(self, name: str, step: int, picture: PixelArray) -> None:
        """Show a picture, of a series with that name, wherever the scalars go; the main process's alone counts."""
        with explained_disk_errors(self.folder):
            for tracker in self._trackers:
                tracker.picture(name, step, picture)

    def check(self, *grad_norms: Tensor) -> None:
        """Act on a gradient that is not finite, which `optimizer_step` has not applied: stop, skip or roll back.

        To be called once in a step. On an accelerator the answer is read one step late, so that it never waits for the
        host.

        Args:
            *grad_norms: of every optimizer that has taken the step.

        Raises:
            InputError: where the policy is to stop, or there were too many of them.
        """
        if not self._finite.next(torch.stack(grad_norms)):
            self._act_on_non_finite()

    def _act_on_non_finite(self) -> None:
        self._non_finite += 1
        policy, limit = self.training.on_non_finite, self.training.max_non_finite
        if policy == "stop" or self._non_finite >= limit:
            again = f" for the {self._non_finite}. time" if self._non_finite > 1 else ""
            newest, _ = self._newest()
            kept = f"the last good checkpoint is in {self.folder}" if newest is not None else "nothing was saved yet"
            raise InputError(
                f"The gradient is not finite{again}. It was not applied, and {kept}. Lower the learning rate "
                "(optimizer.lr), set optimizer.max_grad_norm to 1.0, train in fp32, or go on without such steps by "
                "training.on_non_finite skip or rollback."
            )
        if policy == "rollback":
            newest, _ = self._newest()
            if newest is not None:
                restore_newest(self.state, newest, self.folder, self.processes, self._group)
        log.warning(
            "%s: a gradient that is not finite was not applied (%d so far)%s.",
            self.description,
            self._non_finite,
            "; weights and optimizer are those of the last checkpoint again" if policy == "rollback" else "",
        )

    def _write_log(self, step: int) -> None:
        means = self._averages.take(self.processes)
        figures = self.meter.read(step)
        shown = {"loss": f"{means.get('loss', math.nan):.4g}", "img/s": f"{figures['images_per_second']:.3g}"}
        self._bar.set_postfix(shown, refresh=False)
        if not self.processes.is_main:
            return
        non_finite = self._non_finite_before + self._non_finite
        values = {"seconds": self.seconds, **means, **figures, "non_finite": non_finite}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        with explained_disk_errors(self.folder):
            for tracker in self._trackers:
                tracker.scalars(step, finite)
        if self.listener is not None:
            self.listener(step, values)

    def _save(self, step: int) -> None:
        state = {name: item.state_dict() for name, item in self.state.items()}  # not copied yet
        if self.processes.is_main or self._group is not None:
            non_finite = self._non_finite_before + self._non_finite
            progress = {"config": self.config, "seconds": self.seconds, "non_finite": non_finite}
            progress |= {"versions": self._versions, "planned_steps": self.training.steps, **self._recorded}
            self._writer.save(step, {"state": state, **progress})

    def _newest(self) -> tuple[Newest | None, list[Path]]:
        """The newest checkpoint that is whole, the same for all processes, after what is being written is there."""
        self._writer.wait()
        self.processes.barrier()
        return choose_newest(self.folder, self.processes)

    def _resume(self) -> None:
        newest, damaged = self._newest()
        if damaged and newest is None:
            names = ", ".join(str(path.relative_to(self.folder)) for path in damaged)
            raise InputError(
                f"All checkpoints in {self.folder} are damaged ({names}). Restore one of them with its checksums, or "
                "delete that folder to start again."
            )
        for path in damaged:
            log.warning("The checkpoint %s is damaged and was passed over.", path)
        if newest is None:
            return
        checkpoint = newest.content
        self._require_same_run(checkpoint)
        restore_newest(self.state, newest, self.folder, self.processes, self._group)
        other = differences(checkpoint.get("versions", self._versions), self._versions)
        if other:
            log.warning(
                "%s: the run was begun with other versions (%s). It goes on, but its numbers may differ in their last "
                "digits from those of a run that never changed them.",
                self.description,
                "; ".join(other),
            )
        self.start_step, self._seconds_before = checkpoint["step"], checkpoint["seconds"]
        self._non_finite_before = checkpoint["non_finite"]
        if self.start_step < self.training.steps:
            log.info("%s: going on from step %d of %d.", self.description, self.start_step, self.training.steps)
            planned = checkpoint.get("planned_steps", self.training.steps)
            if planned < self.training.steps:
                steps = self.start_step, planned, self.training.steps
                log.info("%s: %s", self.description, length_note(checkpoint["config"], self.config, *steps))

    def _require_same_run(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another configuration, of other inputs, or of more steps than are wanted."""
        was, now = checkpoint["config"], self.config
        if changed := differences(was, of_length(now, was)):
            raise InputError(
                f"{self.folder} holds a run that was started with another configuration ({'; '.join(changed[:4])}). "
                "Choose another --output, restore the configuration, or delete that folder to start again."
            )
        is_longer(now, was, self.folder)  # or equal, or it refuses
        if checkpoint["step"] > self.training.steps:
            raise InputError(
                f"{self.folder} holds a checkpoint of step {checkpoint['step']}, more than the {self.training.steps} "
                "steps of this run. Give at least as many, or choose another --output for a shorter run."
            )
        require_same_inputs(checkpoint.get("inputs", {}), self._recorded["inputs"], self.folder)
