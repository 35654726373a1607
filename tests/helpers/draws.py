"""Random numbers that every run of the tests draws again."""

import torch


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of the CPU that begins with a seed."""
    return torch.Generator().manual_seed(seed)
