"""Timing of work on one device, and the sizes of that work."""

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from alight.models.lightning_dit import LightningDiT
from alight.options import FixedPrecision
from alight.runtime.device import compile_blocks
from alight.runtime.errors import InputError
from benchmarks.device_table import Row
from benchmarks.measure import start_memory, synchronize

Network = TypeVar("Network", bound=nn.Module)
MOST_REPEATS = 50


@dataclass(frozen=True)
class Sizes:
    """Sizes of the work.

    Attributes:
        matrix: side of the matrices whose product is the ceiling.
        copied: bytes of the copy that measures the memory.
        transformer: preset and arguments of the transformer.
        train_batches: images in a training step.
        process_batch: likewise, of one process among several.
        sample_batch: images sampled at once.
        sample_steps: evaluations without guidance.
        image_size: in pixels.
        architecture: of the tokenizer.
        foundation: arguments of a DINOv2.
        autoencoder_batch: images encoded or decoded at once.
        tokenizer_batch: images in a step of the tokenizer.
        files: images that are read from disk and encoded.
        workers: processes that read them.
        rounds: timed runs.
        short_run: seconds; shorter work is repeated within a run.
        long_run: seconds; longer work is timed once.
        backend: of compilation.
    """

    matrix: int
    copied: int
    transformer: dict[str, Any]
    train_batches: tuple[int, ...]
    process_batch: int
    sample_batch: int
    sample_steps: tuple[int, ...]
    image_size: int
    architecture: dict[str, Any]
    foundation: dict[str, int]
    autoencoder_batch: int
    tokenizer_batch: int
    files: int
    workers: int
    rounds: int
    short_run: float
    long_run: float
    backend: str


PUBLISHED = Sizes(
    matrix=8192,
    copied=4 * 2**30,
    transformer={"name": "LightningDiT-XL/1"},
    train_batches=(32, 128, 256),
    process_batch=128,
    sample_batch=32,
    sample_steps=(50, 249),
    image_size=256,
    architecture={},
    foundation={"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    autoencoder_batch=32,
    tokenizer_batch=16,
    files=1024,
    workers=12,
    rounds=5,
    short_run=0.5,
    long_run=5.0,
    backend="inductor",
)
TOY = Sizes(
    matrix=64,
    copied=2**20,
    transformer={
        "name": "LightningDiT-S/1",
        "sample_size": 4,
        "in_channels": 8,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
    },  # fmt: skip
    train_batches=(2, 4),
    process_batch=2,
    sample_batch=2,
    sample_steps=(2, 3),
    image_size=32,
    architecture={"latent_channels": 8, "block_out_channels": (32, 32), "layers_per_block": 1},
    foundation={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    autoencoder_batch=2,
    tokenizer_batch=2,
    files=4,
    workers=0,
    rounds=2,
    short_run=0.01,
    long_run=0.1,
    backend="aot_eager",  # which generates no code
)


@dataclass
class DeviceMeter:
    """Times work on a device.

    Attributes:
        device: of everything.
        sizes: of the work.
        ceilings: floating-point operations per second of matrix products, by precision.
    """

    device: torch.device
    sizes: Sizes
    ceilings: dict[str, float] = field(default_factory=dict)

    def rows_of(self, part: Callable[["DeviceMeter"], Iterator[Row]]) -> Iterator[Row]:
        """The figures of a part; one that fails gives its reason, and the next part begins with free memory."""
        try:
            yield from part(self)
        except Exception as error:  # the other parts are worth having
            yield Row(part.__name__, "failed", "", remark=reason(error))
        self.clear()

    def timed(self, row: Row, work: Callable[[], object]) -> Row:
        """A row with the times of work on one batch, or with the reason for having none."""
        start_memory(self.device)
        try:
            first, seconds = self.seconds(work)
        except (torch.OutOfMemoryError, InputError) as error:  # a training step says which batch would fit
            remark = str(error) if isinstance(error, InputError) else "out of memory"
            del error  # it holds the frames that hold the memory
            self.clear()
            return replace(row, remark=remark)
        products = "tf32" if row.precision == "fp32" and "tf32" in self.ceilings else row.precision
        memory = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        return replace(row, seconds=seconds, first=first, memory=memory, ceiling=self.ceilings.get(products, 0.0))

    def seconds(self, work: Callable[[], object]) -> tuple[float, list[float]]:
        """Seconds of the first run, and of a batch in every timed run, after one more that tells its length."""
        first, once = self.once(work), self.once(work)
        if once > self.sizes.long_run:
            return first, [once]
        repeats = min(max(int(self.sizes.short_run / max(once, 1e-6)), 1), MOST_REPEATS)
        return first, [self.once(work, repeats) / repeats for _ in range(self.sizes.rounds)]

    def once(self, work: Callable[[], object], repeats: int = 1) -> float:
        """Seconds of work that is repeated so often, to its real end."""
        synchronize(self.device)
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize(self.device)
        return time.perf_counter() - started

    def clear(self) -> None:
        """Forget what was compiled, which one batch size would slow down for the next, and free the memory."""
        torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def compile(self, blocks: Iterable[nn.Module], fixed_size: bool = False) -> None:
        """Compile blocks as the package does, or in toy size without generating code."""
        compile_blocks(blocks, fixed_size=fixed_size, backend=self.sizes.backend)

    def transformer(self) -> LightningDiT:
        """A transformer all of whose weights are random, made on the device."""
        with self.device:
            model = LightningDiT.from_preset(**self.sizes.transformer)
        return randomised(model)


@torch.no_grad()
def randomised(network: Network) -> Network:
    """A network whose parameters are all random: with the gates of a fresh one, whole blocks multiply by zero."""
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    for parameter in network.parameters():
        parameter.normal_(std=0.02, generator=generator)
    return network


def precisions(meter: DeviceMeter) -> tuple[FixedPrecision, ...]:
    """The precisions that are worth measuring on a device."""
    return ("bf16", "fp32") if meter.device.type == "cuda" else ("fp32", "bf16")


def reason(error: Exception) -> str:
    """The name and the beginning of an error, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".replace("|", "/")
