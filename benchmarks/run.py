"""Time the library against a plain version of the same mathematics and show one table.

python -m benchmarks                            training, sampling and reading, at the size of LightningDiT-S/1
python -m benchmarks train --precisions bf16    one of them
python -m benchmarks tokenizer                  the tokenizer's gradient, at the size of the paper's f16d32
python -m benchmarks --device cuda              on a GPU: LightningDiT-XL/1, larger batches
"""

import shlex
import sys
from dataclasses import dataclass
from typing import Literal

import torch
import tyro

from alight.runtime.device import resolve_device
from alight.runtime.errors import InputError
from benchmarks import cases
from benchmarks.measure import matmul_rate, measure
from benchmarks.report import Section, append, record
from benchmarks.tokenizer import tokenizer_training

Work = Literal["train", "sample", "read", "tokenizer"]
Precision = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """What to time, and how often."""

    work: tyro.conf.Positional[tuple[Work, ...]] = ("train", "sample", "read")  # what to time
    device: str = "cpu"  # cpu, cuda or cuda:N
    preset: str | None = None  # size of the model; by default S/1 on a CPU and XL/1 on a GPU
    precisions: tuple[Precision, ...] = ("fp32", "bf16")  # one table section each
    train_batch: int | None = None  # by default 8 on a CPU and 32 on a GPU
    sample_batch: int | None = None  # by default 1 on a CPU and 32 on a GPU
    sample_steps: int = 49  # model calls; 49 is what the published code calls 50 steps
    rounds: int = 5  # timed runs of each contender, interleaved
    compile: bool = False  # with compiled blocks too; the first run of each takes about a minute
    threads: int | None = None  # of the CPU; by default torch's choice
    tokenizer_image_size: int | None = None  # by default 128 on a CPU and 256 on a GPU
    latents: int = 4096  # how many the reading benchmark stores in a temporary folder, 32 KiB each
    write: bool = False  # append the table to benchmarks/RESULTS.md


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    try:
        if min(options.rounds, options.latents, options.sample_steps) < 1:
            raise InputError("There must be at least one round, one latent and one step.")
        device = resolve_device(options.device)
        if options.threads:
            torch.set_num_threads(options.threads)
        sections = run(options, device)
    except InputError as error:
        sys.exit(f"benchmarks: {error}")
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    text = record(sections, device, command, options.rounds)
    sys.stdout.write(text)
    if options.write:
        append(text)


def run(options: Options, device: torch.device) -> list[Section]:
    """Measure every case that the options name."""
    on_gpu = device.type == "cuda"
    sections = []
    if {"train", "sample"} & set(options.work):
        name = options.preset or ("LightningDiT-XL/1" if on_gpu else "LightningDiT-S/1")
        model = cases.random_model(device, name)
        for precision in options.precisions:
            rate = matmul_rate(device, DTYPES[precision])
            if "train" in options.work:
                batch = options.train_batch or (32 if on_gpu else 8)
                setting = cases.Setting(device, precision, batch, options.compile)
                measurements = measure(cases.training(model, setting), options.rounds, device)
                sections.append(Section(f"train {name}", device, precision, batch, measurements, rate))
            if "sample" in options.work:
                batch = options.sample_batch or (32 if on_gpu else 1)
                setting = cases.Setting(device, precision, batch, options.compile)
                measurements = measure(cases.sampling(model, setting, options.sample_steps), options.rounds, device)
                sections.append(Section(f"sample {name}", device, precision, batch, measurements, rate))
    if "tokenizer" in options.work:
        for precision in options.precisions:
            setting = cases.Setting(device, precision, options.train_batch or (8 if on_gpu else 1))
            size = options.tokenizer_image_size or (256 if on_gpu else 128)
            measurements = measure(tokenizer_training(setting, size), options.rounds, device)
            sections.append(Section(f"tokenizer f16d32, {size} px", device, precision, setting.batch, measurements))
    if "read" in options.work:
        sections.append(read(options))
    return sections


def read(options: Options) -> Section:
    """Measure the reading of stored latents, which is the CPU's work whatever the device."""
    batch = min(32, options.latents)
    with cases.stored_latents(options.latents) as folder:
        contenders = cases.reading(folder, batch, options.latents // batch)
        measurements = measure(contenders, options.rounds, torch.device("cpu"))
    return Section("read latents", torch.device("cpu"), "fp32", batch, measurements)


if __name__ == "__main__":
    main()
