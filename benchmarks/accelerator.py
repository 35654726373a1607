"""One device measured in one run: its ceilings, then training, sampling and encoding at the published sizes.

alight bench accelerator              every part, in under 15 minutes on a GPU of 80 GiB
alight bench accelerator --dry-run    every part at toy size, on any device
alight bench accelerator training     one of them
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from alight.config import BenchAcceleratorConfig
from alight.options import AcceleratorPart
from alight.runtime.console import log
from alight.runtime.device import fast_float32
from alight.runtime.distributed import own_device, used_device
from benchmarks.device_autoencoder import autoencoder, extraction, tokenizer
from benchmarks.device_ceilings import attention, ceilings
from benchmarks.device_meter import PUBLISHED, TOY, DeviceMeter
from benchmarks.device_table import HEADER, Row, record
from benchmarks.device_transformer import agreement, processes, sampling, training
from benchmarks.report import append

PARTS: dict[AcceleratorPart, Callable[[DeviceMeter], Iterator[Row]]] = {
    "ceilings": ceilings,
    "attention": attention,
    "training": training,
    "processes": processes,
    "agreement": agreement,
    "sampling": sampling,
    "autoencoder": autoencoder,
    "tokenizer": tokenizer,
    "extraction": extraction,
}


@dataclass(frozen=True)
class DeviceFigures:
    """All figures of a device, and their record with all conditions."""

    rows: list[Row]
    text: str

    def as_data(self) -> dict[str, Any]:
        """A row per figure, by the table's own headings."""
        return {"rows": [dict(zip(HEADER, row.cells(), strict=True)) for row in self.rows], "record": self.text}

    def __str__(self) -> str:
        return self.text


def run(config: BenchAcceleratorConfig) -> DeviceFigures:
    """Measure the parts that the configuration names, and keep the record if it says so."""
    started = time.monotonic()
    remarks = ["Toy sizes, to see that every part runs: no figure here means anything."] if config.dry_run else []
    with used_device(own_device(config.device)) as device, fast_float32(device):  # as every command has it
        meter = DeviceMeter(device, TOY if config.dry_run else PUBLISHED)
        rows = list(measured(config, meter, started, remarks))
    minutes = (time.monotonic() - started) / 60
    remarks.append(f"Everything took {minutes:.1f} minutes, compilation included.")
    text = record(rows, device, command(config), remarks)
    if config.write:
        append(text)
    return DeviceFigures(rows, text)


def measured(config: BenchAcceleratorConfig, meter: DeviceMeter, started: float, remarks: list[str]) -> Iterator[Row]:
    """Every figure of the parts; a part that would begin too late is named in the remarks instead."""
    for name in config.parts:
        if time.monotonic() - started > 60 * config.minutes:
            remarks.append(f"Left out for want of time: {name}.")
            continue
        for row in meter.rows_of(PARTS[name]):
            log.info("%s", " | ".join(filter(None, row.cells())))  # so that an interrupted run has shown its figures
            yield row


def command(config: BenchAcceleratorConfig) -> str:
    """The command line that asks for this."""
    words = ["alight bench accelerator"]
    if config.parts != get_args(AcceleratorPart):
        words += config.parts
    words += ["--dry-run True"] if config.dry_run else []
    return " ".join(words)
