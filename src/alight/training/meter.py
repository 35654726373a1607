"""Figures for every line of the log: scalars averaged since the line before, and the speed of training."""

import functools
import time
from collections import Counter

import torch
from torch import Tensor

from alight.config import TrainingConfig
from alight.runtime.distributed import Processes
from alight.runtime.hardware import matrix_product_rate, resident_set

_measured_rate = functools.cache(matrix_product_rate)  # it takes a part of a second


class Averages:
    """Scalars summed where they are, so that no step waits for the device; only reading the means does."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, name: str, value: Tensor | float) -> None:
        """Take in one value of a scalar."""
        scalar = value.detach().float() if isinstance(value, Tensor) else torch.tensor(float(value))
        self._sums[name] = self._sums[name] + scalar if name in self._sums else scalar
        self._counts[name] += 1

    def take(self, processes: Processes) -> dict[str, float]:
        """The means since the last time, over all processes, each of which must ask."""
        names = sorted(self._sums)
        if not names:
            return {}
        values = torch.stack([self._sums[name].to(processes.device) / self._counts[name] for name in names])
        self._sums.clear()
        self._counts.clear()
        return dict(zip(names, processes.average(values).tolist(), strict=True))


class Meter:
    """Progress and speed of training from one line of the log to the next.

    Args:
        training: its batch and precision.
        processes: that share the work.
        start_step: where it begins.
        dataset_size: images in an epoch; None = unknown.
        flops_per_image: floating-point operations to learn from one image; None = unknown.

    Attributes:
        flops_per_image: may change while training goes on.
    """

    def __init__(
        self,
        training: TrainingConfig,
        processes: Processes,
        start_step: int = 0,
        dataset_size: int | None = None,
        flops_per_image: float | None = None,
    ) -> None:
        self.flops_per_image = flops_per_image
        self._training, self._processes, self._dataset_size = training, processes, dataset_size
        if flops_per_image is not None and processes.is_main and start_step < training.steps:
            self._rate = _measured_rate(processes.device, training.precision) * processes.world_size
        self._time, self._step = time.perf_counter(), start_step

    def read(self, step: int) -> dict[str, float]:
        """The figures after a number of steps.

        Returns:
            `images_per_second`, of all processes together; `memory_gib`, the most that was allocated on an
            accelerator, else what the process occupies; and where they are known, `epoch`, which counts parts of it,
            too, and `mfu` (main process): operations per second, as a share of the machine's rate of matrix products.
        """
        batch, now = self._training.global_batch_size, time.perf_counter()
        speed = (step - self._step) * batch / max(now - self._time, 1e-9)
        self._time, self._step = now, step
        figures = {"images_per_second": speed, "memory_gib": memory(self._processes.device) / 2**30}
        if self._dataset_size is not None:
            figures["epoch"] = step * batch / self._dataset_size
        if self.flops_per_image is not None and self._processes.is_main:
            figures["mfu"] = speed * self.flops_per_image / self._rate
        return figures


def memory(device: torch.device) -> int:
    """Bytes: the peak of what was allocated on a CUDA device; elsewhere what this process occupies now."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_set()
