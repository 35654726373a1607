"""The order in which a data set is drawn: endless, seeded, the same for any number of processes, and resumable.

All epochs, each a fresh permutation, form one infinite stream of draws. Global batch k is the k-th part of
`global_batch_size` draws of that stream, and every process takes an equal share of each part. A batch may therefore
begin in one epoch and end in the next (or, for a data set smaller than the batch, span several), and every image is
drawn exactly once per epoch. The whole state is one number: the draws that have been consumed.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from alight.runtime.errors import InputError
from alight.runtime.seeding import random_stream


class EpochIndex(int):
    """An index that remembers the epoch in which it was drawn, and is otherwise an ordinary int.

    Augmentation needs the epoch, which prefetching worker processes and batches that span two epochs could otherwise
    confuse. Data sets without augmentation can ignore it.
    """

    epoch: int

    def __new__(cls, index: int, epoch: int = 0) -> "EpochIndex":  # noqa: D102
        self = super().__new__(cls, index)
        self.epoch = epoch
        return self


def epoch_of(index: int) -> int:
    """The epoch in which an index was drawn; 0 for an ordinary int."""
    return getattr(index, "epoch", 0)


class ResumableSampler(Sampler[list[int]]):
    """Endless batches of indices for one process; pass it to a `DataLoader` as `batch_sampler`.

    Iterating advances the position, so a `DataLoader` with worker processes, which reads ahead, spoils it: use
    `ResumableLoader`, which counts a batch when it is handed out.

    Args:
        num_samples: size of the data set.
        global_batch_size: draws per optimizer step over all processes; it may change between save and load.
        seed: of the permutations.
        rank: index of this process.
        world_size: number of processes; it may change between save and load.
        shuffle: draw a fresh permutation in every epoch, else go through the data set in its order.

    Raises:
        InputError: a number is out of range, or the batch cannot be divided evenly between the processes.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        if num_samples < 1:
            raise InputError("The data set is empty; give it images first.")
        if global_batch_size < 1 or world_size < 1 or not 0 <= rank < world_size:
            raise InputError(
                f"Sampling needs a positive batch and a rank below the world size, but got a global batch of "
                f"{global_batch_size}, rank {rank} and world size {world_size}."
            )
        if global_batch_size % world_size:
            raise InputError(
                f"A global batch of {global_batch_size} cannot be divided evenly between {world_size} processes; "
                f"choose a global_batch_size that is a multiple of {world_size}."
            )
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self._consumed = 0  # draws of the stream, over all processes
        self._orders: dict[int, torch.Tensor] = {}  # epoch -> its permutation, of the current epoch only

    @property
    def local_batch_size(self) -> int:
        """Draws per optimizer step of this process."""
        return self.global_batch_size // self.world_size

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return self._consumed // self.num_samples

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            start = self._consumed + self.rank * self.local_batch_size
            batch: list[int] = list(self._draws(start, start + self.local_batch_size))
            self.advance()
            yield batch

    def advance(self, global_batches: int = 1) -> None:
        """Advance by whole global batches without drawing them."""
        self._consumed += global_batches * self.global_batch_size

    def state_dict(self) -> dict[str, Any]:
        """The exact position, the same in every process, and what it refers to."""
        epoch, position = divmod(self._consumed, self.num_samples)
        return {
            "epoch": epoch,
            "position": position,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "shuffle": self.shuffle,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            InputError: the state belongs to another order: other data, another seed, or shuffled differently.
        """
        for name in ("num_samples", "seed", "shuffle"):
            if state[name] != getattr(self, name):
                raise InputError(
                    f"The checkpoint's sampler has {name}={state[name]}, but this run has {getattr(self, name)}, so "
                    "its position is not valid here; resume with the same data and seed, or start a new run from the "
                    "checkpoint's weights."
                )
        self._consumed = state["epoch"] * self.num_samples + state["position"]

    def _draws(self, start: int, stop: int) -> Iterator[EpochIndex]:
        """Draws start..stop of the infinite stream."""
        for epoch in range(start // self.num_samples, (stop - 1) // self.num_samples + 1):
            first = epoch * self.num_samples
            drawn = self._order(epoch)[max(start - first, 0) : stop - first]
            yield from (EpochIndex(index, epoch) for index in drawn.tolist())

    def _order(self, epoch: int) -> torch.Tensor:
        if not self.shuffle:
            return torch.arange(self.num_samples)
        if epoch not in self._orders:
            stream = random_stream(self.seed, "order", epoch)
            self._orders = {epoch: torch.randperm(self.num_samples, generator=stream)}
        return self._orders[epoch]


class ResumableLoader:
    """Endless (micro-)batches of a data set whose position is exact, however far its workers read ahead.

    ```python
    sampler = ResumableSampler(len(dataset), global_batch_size=256, seed=0)
    batches = iter(ResumableLoader(dataset, sampler, num_workers=8))
    images, labels = next(batches)
    checkpoint = sampler.state_dict()  # counts the batches that were handed out, not those in the workers' queues
    ```

    Args:
        dataset: a map-style data set of `sampler.num_samples` items.
        sampler: its order; moved on as the last micro-batch of each global batch is handed out.
        micro_batch_size: the process's share of a global batch is divided into micro-batches of at most this size, for
            gradient accumulation; None = one micro-batch.
        num_workers: processes that read ahead; 0 = no reading ahead.
        pin_memory: as in `DataLoader`, for faster copies to an accelerator.
        collate_fn: as in `DataLoader`.

    Raises:
        InputError: the sampler is for a data set of another size, or `micro_batch_size` is not positive.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: ResumableSampler,
        micro_batch_size: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        items = len(dataset)  # type: ignore[arg-type]  # torch declares no length, but map-style data sets have one
        if items != sampler.num_samples:
            raise InputError(
                f"The sampler draws from {sampler.num_samples:,} items, but the data set has {items:,}; make the "
                "sampler with num_samples=len(dataset)."
            )
        if micro_batch_size is not None and micro_batch_size < 1:
            raise InputError(
                f"micro_batch_size is {micro_batch_size}; it must be positive, or None for whole batches."
            )
        self.dataset = dataset
        self.sampler = sampler
        self.micro_batch_size = micro_batch_size or sampler.local_batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.collate_fn = collate_fn

    @property
    def micro_batches(self) -> int:
        """Micro-batches per global batch."""
        return -(-self.sampler.local_batch_size // self.micro_batch_size)

    def __iter__(self) -> Iterator[Any]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=self._read_ahead(),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            collate_fn=self.collate_fn,
            generator=random_stream(self.sampler.seed, "workers"),  # instead of the global one
        )
        for count, batch in enumerate(loader, start=1):
            if count % self.micro_batches == 0:
                self.sampler.advance()
            yield batch

    def _read_ahead(self) -> Iterator[list[int]]:
        for batch in copy.copy(self.sampler):
            for start in range(0, len(batch), self.micro_batch_size):
                yield batch[start : start + self.micro_batch_size]
