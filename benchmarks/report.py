"""One table for people and for RESULTS.md, with everything a figure depends on beside it."""

import importlib.metadata
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.measure import Measurement

RESULTS = Path(__file__).with_name("RESULTS.md")
HEADER = (
    "work",
    "device",
    "dtype",
    "batch",
    "contender",
    "img/s",
    "speed-up (range)",
    "speed-up in CPU time",
    "over plain compiled",
    "CPU s",
    "extra memory",
    "of matmul rate",
)


@dataclass(frozen=True)
class Section:
    """The measurements of one case, and what they were made with.

    Attributes:
        work: what was done.
        device: where.
        precision: fp32 or bf16.
        batch: images per run, or per read.
        measurements: of contenders that ran interleaved, the one to compare with first.
        matmul_rate: floating-point operations per second of a large matrix product; None where it does not matter.
    """

    work: str
    device: torch.device
    precision: str
    batch: int
    measurements: Sequence[Measurement]
    matmul_rate: float | None = None


def table(sections: Sequence[Section]) -> str:
    """All sections as one Markdown table."""
    return markdown([HEADER, *(row for section in sections for row in section_rows(section))])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table, the first of them as its heading, the columns aligned to be read as plain text too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def section_rows(section: Section) -> list[tuple[str, ...]]:
    """One row per contender."""
    plain = section.measurements[0]
    return [
        (
            section.work,
            section.device.type,
            section.precision,
            str(section.batch),
            measurement.name,
            three_digits(measurement.images_per_second),
            "1" if measurement is plain else spread(measurement.speedup_over(plain).wall),
            "1" if measurement is plain else spread(measurement.speedup_over(plain).cpu),
            over_plain_compiled(measurement, section.measurements),
            three_digits(measurement.cpu_seconds),
            "" if measurement.memory is None else f"{measurement.memory / 2**20:.0f} MiB",
            share_of_rate(measurement, section.matmul_rate),
        )
        for measurement in section.measurements
    ]


def over_plain_compiled(measurement: Measurement, measurements: Sequence[Measurement]) -> str:
    """For the library compiled: its speed-up over the plain version compiled."""
    rivals = {m.name: m for m in measurements}
    if measurement.name != "alight, compiled":
        return ""
    return spread(measurement.speedup_over(rivals["plain, compiled"]).wall)


def three_digits(number: float) -> str:
    """At least three significant digits, never an exponent."""
    return f"{number:.0f}" if number >= 1000 else f"{number:#.3g}".removesuffix(".")


def spread(ratios: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def share_of_rate(measurement: Measurement, matmul_rate: float | None) -> str:
    """The floating-point operations per second, as a share of what a large matrix product reached."""
    if matmul_rate is None or not measurement.flops:
        return ""
    return f"{measurement.flops / measurement.seconds / matmul_rate:.0%}"


def device_name(device: torch.device) -> str:
    """What the maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def commit() -> str:
    """The commit that was measured, marked if files differ from it."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=RESULTS.parent, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def record(sections: Sequence[Section], device: torch.device, command: str, rounds: int) -> str:
    """A dated section for RESULTS.md: the table and its conditions."""
    rates = {section.precision: section.matmul_rate for section in sections if section.matmul_rate}
    conditions = [
        f"- Device: {device_name(device)}, {torch.get_num_threads()} threads; torch {torch.__version__}, "
        f"alight {importlib.metadata.version('alight')}, Python {platform.python_version()}",
        f"- Commit: {commit()}",
        f"- Command: `{command}`",
        f"- {rounds} interleaved rounds; img/s and CPU s are medians, a speed-up is the median of the ratios within a "
        "round, with their range",
    ]
    if hasattr(os, "getloadavg"):
        conditions.append(
            f"- Load average of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        )
    if rates:
        measured = ", ".join(f"{rate / 1e9:.0f} ({precision})" for precision, rate in rates.items())
        conditions.append(f"- Matrix products on this device, just before: {measured} GFLOP/s")
    heading = f"## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return "\n".join([heading, "", *conditions, "", table(sections), ""])


def append(text: str, path: Path = RESULTS) -> None:
    """Add a section to the results file."""
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + text)
