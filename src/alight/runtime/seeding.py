"""Randomness as an argument: independent streams derived from one seed and a name.

A stream is a function of (seed, names) alone. A training step draws from the stream of its step number, a sample
from that of its own seed, so that resuming, batch size, world size and order change nothing.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *stream: int | str) -> int:
    """A 63-bit seed for the named stream; different names give statistically independent streams."""
    text = "/".join(str(part) for part in (seed, *stream))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def random_stream(seed: int, *stream: int | str) -> torch.Generator:
    """A CPU generator for the named stream. Drawing on the CPU gives the same numbers on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, *stream))


def noise_of_seeds(seeds: list[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise, row i from `seeds[i]` alone, whatever the batch it is drawn in.

    Returns:
        A float32 tensor of shape (len(seeds), *shape) on the CPU.
    """
    return torch.stack([torch.randn(shape, generator=random_stream(seed, "noise")) for seed in seeds])


def noise_of_batch(images: slice, shape: tuple[int, ...], seed: int, *stream: int | str) -> torch.Tensor:
    """Standard normal noise for some images of a batch, the i-th from (stream, i) alone, however it is divided.

    Returns:
        A float32 tensor of shape (number of images, *shape) on the CPU.
    """
    return noise_of_seeds([derive_seed(seed, *stream, image) for image in range(images.start, images.stop)], shape)


@contextmanager
def seeded_initialisation(seed: int, *stream: int | str) -> Iterator[None]:
    """Build modules reproducibly: torch's initialisers only know the global generator, so borrow and restore it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, *stream))
        yield
