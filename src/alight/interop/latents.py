"""Published statistics of latents: the file `latents_stats.pt` beside the shards, in and back out."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from alight.interop.torch_file import read_torch_file, write_torch_file
from alight.runtime.errors import InputError

STATISTICS_FILE = "latents_stats.pt"
MAX_CHANNELS = 100_000


class LatentsStatistics(NamedTuple):
    """Mean and standard deviation of raw latents per channel, each (C,) in float32."""

    mean: Tensor
    std: Tensor


def load_latents_statistics(path: str | Path) -> LatentsStatistics:
    """Read a published `latents_stats.pt`.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        InputError: the file is missing, damaged or of another kind, or its numbers cannot normalise anything.
    """
    path = Path(path)
    path = path / STATISTICS_FILE if path.is_dir() else path
    contents = read_torch_file(path)
    found = [contents.get(name) for name in ("mean", "std")] if isinstance(contents, dict) else []
    sound = [value for value in found if isinstance(value, Tensor) and 0 < value.numel() <= MAX_CHANNELS]
    tensors = [value.flatten().float() for value in sound if value.layout == torch.strided and not value.is_complex()]
    if len(tensors) != 2 or tensors[0].shape != tensors[1].shape:
        raise InputError(
            f"{path} holds no statistics of latents, which are two tensors, mean and std, with one number per "
            f"channel. Give the {STATISTICS_FILE} that belongs to the latents."
        )
    mean, std = tensors
    if not (mean.isfinite() & std.isfinite() & (std > 0)).all():
        raise InputError(
            f"{path} holds statistics that are not finite, or a std that is not positive. Get the file again, or "
            "leave it out where there are latents: it is then computed from them."
        )
    return LatentsStatistics(mean, std)


def export_latents_statistics(mean: Tensor, std: Tensor, path: str | Path) -> None:
    """Write statistics of shape (C,) each as the published code reads them: (1, C, 1, 1)."""
    statistics = {"mean": mean, "std": std}
    write_torch_file({name: value.float().cpu().view(1, -1, 1, 1) for name, value in statistics.items()}, path)
