"""Interleaved timing: every round runs each contender once, and only runs of the same round are compared.

Machines drift: other programs come and go, clocks change. A ratio within a round hardly notices, a ratio of two
averages does. CPU seconds stand beside wall seconds, because waiting for a busy core costs wall time alone.
"""

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Contender:
    """One way to do a piece of work.

    Attributes:
        name: in the table.
        run: does the work once.
        images: how many images a run makes, learns from or reads.
        flops: of its matrix products in a run; 0 where that is beside the point.
    """

    name: str
    run: Callable[[], object]
    images: int
    flops: float = 0.0


@dataclass(frozen=True)
class Run:
    """What one run cost; `memory` is the peak above what was there before it, in bytes, None where it is unknown."""

    seconds: float
    cpu_seconds: float
    memory: int | None


@dataclass
class Measurement:
    """All runs of one contender, in the order of the rounds; it does not keep the contender's memory alive."""

    name: str
    images: int
    flops: float
    runs: list[Run] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median wall time of a run."""
        return statistics.median(run.seconds for run in self.runs)

    @property
    def cpu_seconds(self) -> float:
        """Median processor time of a run, of all threads together."""
        return statistics.median(run.cpu_seconds for run in self.runs)

    @property
    def images_per_second(self) -> float:
        """By the median wall time."""
        return self.images / self.seconds

    @property
    def memory(self) -> int | None:
        """The largest peak of a run."""
        peaks = [run.memory for run in self.runs if run.memory is not None]
        return max(peaks, default=None)

    def speedup_over(self, other: "Measurement") -> "Speedup":
        """How many times as fast as another contender of the same rounds."""
        pairs = list(zip(other.runs, self.runs, strict=True))
        return Speedup(
            wall=[theirs.seconds / own.seconds for theirs, own in pairs],
            cpu=[theirs.cpu_seconds / own.cpu_seconds for theirs, own in pairs],
        )


@dataclass(frozen=True)
class Speedup:
    """Ratios of wall and of processor time, one per round."""

    wall: Sequence[float]
    cpu: Sequence[float]


def measure(contenders: Sequence[Contender], rounds: int, device: torch.device) -> list[Measurement]:
    """Run all contenders in turn, `rounds` times, after one run each that is not counted."""
    measurements = [Measurement(contender.name, contender.images, contender.flops) for contender in contenders]
    for contender in contenders:
        contender.run()  # caches fill, compilers compile
    for _ in range(rounds):
        for contender, measurement in zip(contenders, measurements, strict=True):
            measurement.runs.append(timed(contender.run, device))
    return measurements


def timed(run: Callable[[], object], device: torch.device) -> Run:
    """Time one run to its real end, past what the device still has in its queue."""
    synchronize(device)
    before = start_memory(device)
    cpu_start, start = time.process_time(), time.perf_counter()
    run()
    synchronize(device)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    after = peak_memory(device)
    return Run(seconds, cpu_seconds, None if before is None or after is None else max(after - before, 0))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start_memory(device: torch.device) -> int | None:
    """Forget earlier peaks; the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)  # give back what earlier runs freed, or this one would seem to need nothing
    try:
        (PROCESS / "clear_refs").write_text("5")  # Linux: the peak of the resident set starts anew
    except OSError:
        return None
    return resident("VmRSS")


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use since `start_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident("VmHWM")


def resident(entry: str) -> int | None:
    """A figure of the process's memory from Linux's status page, in bytes."""
    try:
        lines = (PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(entry + ":")), None)


def matmul_rate(device: torch.device, dtype: torch.dtype, repeats: int = 9) -> float:
    """Floating-point operations per second of a large matrix product: the best of a few, what the device can do."""
    rows, inner, columns = (8192, 8192, 8192) if device.type == "cuda" else (1024, 1024, 2048)
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(inner, columns, device=device).to(dtype)
    contender = Contender("matrix product", lambda: a @ b, images=1)
    best = min(run.seconds for run in measure([contender], repeats, device)[0].runs)
    return 2 * rows * inner * columns / best
