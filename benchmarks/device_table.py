"""Figures of one device: the rows that its parts measure, and their record with all conditions."""

import platform
import statistics
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from benchmarks.report import commit, device_name, markdown, three_digits

HEADER = (
    "work",
    "contender",
    "precision",
    "batch",
    "ms",
    "img/s (range)",
    "TFLOP/s",
    "of ceiling",
    "peak memory",
    "first run",
    "remark",
)
TERA, GIBI = 1e12, 2**30


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes:
        work: that was done.
        contender: the way in which it was done.
        precision: of it.
        batch: images at once; 0 where there are none.
        seconds: of every timed run of a batch; empty where it could not be measured.
        flops: of the matrix products in a run; 0 where that is beside the point.
        ceiling: floating-point operations per second of a large matrix product in this precision.
        memory: peak in bytes, with weights and optimizer; None where the device does not say.
        first: seconds of the first run, which chooses kernels and compiles.
        remark: anything else, such as a difference, or the reason for having no figure.
    """

    work: str
    contender: str
    precision: str
    batch: int = 0
    seconds: Sequence[float] = ()
    flops: float = 0.0
    ceiling: float = 0.0
    memory: int | None = None
    first: float | None = None
    remark: str = ""

    @property
    def median(self) -> float:
        """Median of the timed runs, in seconds."""
        return statistics.median(self.seconds)

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        timed, rate = bool(self.seconds), self.flops / self.median if self.seconds else 0.0
        return (
            self.work,
            self.contender,
            self.precision,
            str(self.batch or ""),
            three_digits(1000 * self.median) if timed else "",
            self.images_per_second() if timed and self.batch else "",
            three_digits(rate / TERA) if rate else "",
            f"{rate / self.ceiling:.0%}" if rate and self.ceiling else "",
            f"{self.memory / GIBI:.1f} GiB" if self.memory else "",
            f"{self.first:.1f} s" if self.first is not None else "",
            self.remark,
        )

    def images_per_second(self) -> str:
        """Median and range."""
        rates = [self.batch / seconds for seconds in self.seconds]
        low, middle, high = (three_digits(rate) for rate in (min(rates), statistics.median(rates), max(rates)))
        return f"{middle} ({low}-{high})"


def table(rows: Sequence[Row]) -> str:
    """All rows as one Markdown table."""
    return markdown([HEADER, *(row.cells() for row in rows)])


def record(rows: Sequence[Row], device: torch.device, command: str, remarks: Sequence[str] = ()) -> str:
    """A dated section for RESULTS.md: the table and its conditions."""
    conditions = [
        f"- Device: {device_name(device)}{described(device)}; torch {torch.__version__}, Python "
        f"{platform.python_version()}",
        f"- Commit: {commit()}",
        f"- Command: `{command}`",
        "- ms is the median of the timed runs of a batch, after the first run and one more; TFLOP/s counts the matrix "
        "products alone (three forward passes for a training step), and their ceiling is the fastest matrix product "
        "of random numbers in the same precision; peak memory includes weights and optimizer",
        *(f"- {remark}" for remark in remarks),
    ]
    heading = f"## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, one device"
    return "\n".join([heading, "", *conditions, "", table(rows), ""])


def described(device: torch.device) -> str:
    """Memory, CUDA version and driver of a GPU; nothing for a CPU."""
    if device.type != "cuda":
        return f", {torch.get_num_threads()} threads"
    memory = torch.cuda.get_device_properties(device).total_memory / GIBI
    driver = "unknown"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.CalledProcessError):
        driver = subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()[0]
    return f", {memory:.0f} GiB, CUDA {torch.version.cuda}, driver {driver}"
