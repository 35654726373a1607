"""Time the library against a plain version of the same mathematics and show one table.

alight bench                            training, sampling and reading, at the size of LightningDiT-S/1
alight bench train --precisions bf16    one of them
alight bench tokenizer                  the tokenizer's gradient, at the size of the paper's f16d32
alight bench --device cuda              on a GPU: LightningDiT-XL/1, larger batches
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from alight.config import BenchConfig
from alight.runtime.device import resolve_device
from benchmarks import cases
from benchmarks.extraction import BATCH, extraction, stored_images
from benchmarks.measure import matmul_rate, measure
from benchmarks.report import HEADER, Section, append, record, section_rows
from benchmarks.tokenizer import tokenizer_training

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Benchmark:
    """What was measured, and its record with all conditions."""

    sections: Sequence[Section]
    text: str

    def as_data(self) -> dict[str, Any]:
        """A row per contender, by the table's own headings."""
        rows = [dict(zip(HEADER, row, strict=True)) for section in self.sections for row in section_rows(section)]
        return {"rows": rows, "record": self.text}

    def __str__(self) -> str:
        return self.text


def run(config: BenchConfig) -> Benchmark:
    """Measure what the configuration names, and keep the record if it says so."""
    device = resolve_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    sections = measure_all(config, device)
    text = record(sections, device, command(config), config.rounds)
    if config.write:
        append(text)
    return Benchmark(sections, text)


def command(config: BenchConfig) -> str:
    """The command line that asks for this: whatever differs from the defaults."""
    words = ["alight", "bench"]
    changed = config.model_dump(exclude_defaults=True)
    words += changed.pop("work", ())
    for name, value in changed.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


def measure_all(config: BenchConfig, device: torch.device) -> list[Section]:
    """Measure every case that the configuration names."""
    on_gpu = device.type == "cuda"
    sections = []
    if {"train", "sample"} & set(config.work):
        name = config.preset or ("LightningDiT-XL/1" if on_gpu else "LightningDiT-S/1")
        model = cases.random_model(device, name)
        for precision in config.precisions:
            rate = matmul_rate(device, DTYPES[precision])
            if "train" in config.work:
                batch = config.train_batch or (32 if on_gpu else 8)
                setting = cases.Setting(device, precision, batch, config.compile)
                measurements = measure(cases.training(model, setting), config.rounds, device)
                sections.append(Section(f"train {name}", device, precision, batch, measurements, rate))
            if "sample" in config.work:
                batch = config.sample_batch or (32 if on_gpu else 1)
                setting = cases.Setting(device, precision, batch, config.compile)
                measurements = measure(cases.sampling(model, setting, config.sample_steps), config.rounds, device)
                sections.append(Section(f"sample {name}", device, precision, batch, measurements, rate))
    if "tokenizer" in config.work:
        for precision in config.precisions:
            setting = cases.Setting(device, precision, config.train_batch or (8 if on_gpu else 1))
            size = config.tokenizer_image_size or (256 if on_gpu else 128)
            measurements = measure(tokenizer_training(setting, size), config.rounds, device)
            sections.append(Section(f"tokenizer f16d32, {size} px", device, precision, setting.batch, measurements))
    if "read" in config.work:
        sections.append(read(config))
    if "extract" in config.work:
        with stored_images(config.images) as folder:
            measurements = measure(extraction(folder, config.images), config.rounds, torch.device("cpu"))
        sections.append(Section("extract latents, with flips", torch.device("cpu"), "fp32", BATCH, measurements))
    return sections


def read(config: BenchConfig) -> Section:
    """Measure the reading of stored latents, which is the CPU's work whatever the device."""
    batch = min(32, config.latents)
    with cases.stored_latents(config.latents) as folder:
        contenders = cases.reading(folder, batch, config.latents // batch)
        measurements = measure(contenders, config.rounds, torch.device("cpu"))
    return Section("read latents", torch.device("cpu"), "fp32", batch, measurements)
