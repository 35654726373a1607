"""Images dealt out to processes in batches that are the same however many processes there are.

What rounding images share with their neighbours in a batch, they then always share with the same neighbours.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from torch import Tensor
from torch.utils.data import DataLoader

from alight.data.image_dataset import ImageDataset
from alight.runtime.distributed import Processes

T = TypeVar("T")


def index_batches(indices: Sequence[int], batch_size: int) -> list[list[int]]:
    """Cut indices into batches; the last may be smaller."""
    return [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]


def share_of(batches: Sequence[T], processes: Processes) -> Sequence[T]:
    """The batches of this process: every so many-th."""
    return batches[processes.rank :: processes.world_size]


def gather_batches(results: Sequence[T], processes: Processes) -> list[T]:
    """One result per batch from every process, in the order of the batches, for all processes."""
    shares = processes.gather(list(results))
    count = sum(map(len, shares))
    return [shares[number % processes.world_size][number // processes.world_size] for number in range(count)]


def load_batches(dataset: ImageDataset, batches: Sequence[list[int]], workers: int) -> Iterator[Tensor]:
    """The pixels (B, 3, S, S) uint8 of each batch."""
    for pixels, _ in DataLoader(dataset, batch_sampler=batches, num_workers=workers):
        yield pixels
