"""Images dealt out to processes in batches that are the same for any number of processes.

The rounding of an image depends on its neighbours in the batch, and these are then always the same.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from alight.data.image_dataset import ImageDataset
from alight.runtime.console import progress_bar
from alight.runtime.distributed import Processes

T = TypeVar("T")


def index_batches(indices: Sequence[int], batch_size: int) -> list[list[int]]:
    """Cut indices into batches; the last may be smaller."""
    return [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]


def share_of(batches: Sequence[T], processes: Processes) -> Sequence[T]:
    """The batches of this process, dealt out in turn."""
    return batches[processes.rank :: processes.world_size]


def gather_batches(results: Sequence[T], processes: Processes) -> list[T]:
    """One result per batch from every process, in the order of the batches, for all processes."""
    shares = processes.gather(list(results))
    count = sum(map(len, shares))
    return [shares[number % processes.world_size][number // processes.world_size] for number in range(count)]


def contiguous_share(count: int, batch_size: int, processes: Processes) -> tuple[int, int]:
    """This process's part of `count` items, as whole batches: its first, and the one after its last."""
    batches = -(-count // batch_size)
    first, last = (batches * rank // processes.world_size for rank in (processes.rank, processes.rank + 1))
    return min(first * batch_size, count), min(last * batch_size, count)


def in_steps(start: int, stop: int, step: int) -> list[range]:
    """The numbers from `start` to `stop`, in ranges of `step`."""
    return [range(first, min(first + step, stop)) for first in range(start, stop, step)]


def evenly_spread(total: int, count: int) -> list[int]:
    """At most `count` of the numbers below `total`, from the first to the last."""
    return torch.linspace(0, total - 1, min(count, total)).round().int().tolist()


def pixel_batches(
    dataset: ImageDataset, share: tuple[int, int], batch_size: int, workers: int, desc: str
) -> Iterator[np.ndarray]:
    """The images of a share in order, (B, H, W, 3) uint8, with a progress bar."""
    numbers = [list(part) for part in in_steps(*share, batch_size)]
    bar = progress_bar(load_batches(dataset, numbers, workers), total=len(numbers), desc=desc, unit="batch")
    return (pixels.permute(0, 2, 3, 1).numpy() for pixels in bar)


def load_batches(dataset: ImageDataset, batches: Sequence[list[int]], workers: int) -> Iterator[Tensor]:
    """The pixels (B, 3, S, S) uint8 of each batch."""
    for batch in DataLoader(dataset, batch_sampler=batches, num_workers=workers):
        yield batch.image
