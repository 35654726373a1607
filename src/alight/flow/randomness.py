"""Random numbers as an argument: every draw of this package names its generator.

A single `torch.Generator` draws the whole batch. A sequence of generators, one per row, draws each row on its own, so
that sample *i* depends on seed *i* alone and not on the batch it happens to be in.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alight.runtime.errors import InputError

Generators = torch.Generator | Sequence[torch.Generator] | None


def standard_normal(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Independent N(0, 1) numbers of the given shape (rows first), on `device`."""
    return _draw(torch.randn, shape, generator, device, dtype)


def uniform(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Independent numbers, uniform in [0, 1), of the given shape (rows first), on `device`."""
    return _draw(torch.rand, shape, generator, device, dtype)


def rademacher(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Independent fair signs, -1 or +1, of the given shape (rows first), on `device`."""
    return torch.where(uniform(shape, generator, device, dtype) < 0.5, -1.0, 1.0).to(dtype)


def _draw(
    sampler: Callable[..., Tensor],
    shape: Sequence[int],
    generator: Generators,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    """Draws where the generator lives (a CPU generator gives the same numbers on every device), then moves."""
    if generator is None:
        return sampler(tuple(shape), device=device, dtype=dtype)
    if isinstance(generator, torch.Generator):
        return sampler(tuple(shape), generator=generator, device=generator.device, dtype=dtype).to(device)
    if len(generator) != shape[0]:
        raise InputError(
            f"{len(generator)} generators were given for {shape[0]} samples. "
            "Give one generator for the batch, or one per sample."
        )
    rows = [sampler(tuple(shape[1:]), generator=g, device=g.device, dtype=dtype).to(device) for g in generator]
    return torch.stack(rows)
