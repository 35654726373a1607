"""Positions of tokens: the fixed sine-cosine embedding, and the rotary embedding of queries and keys.

Legend: N tokens = height * width in row-major order, D model width, H heads, K = D / H head width.
LightningDiT uses both at once: the first is added to the tokens, the second rotates queries and keys by angles, so
that their scalar product depends on the difference of two positions alone.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Grid(NamedTuple):
    """Height and width, counted in tokens."""

    height: int
    width: int


def grid_coordinates(grid: Grid, trained_grid: Grid | None = None) -> tuple[Tensor, Tensor]:
    """Row and column of every token, each (N,) float32 on the CPU.

    With a `trained_grid` the coordinates are stretched so that the cell centres of `grid` fall into the range which a
    model of that grid was trained on; for equal grids they are the integers 0, 1, 2, ... exactly.
    """
    rows, columns = [
        (torch.arange(size, device="cpu", dtype=torch.float32) + 0.5) * (trained / size) - 0.5
        for size, trained in zip(grid, trained_grid or grid, strict=True)
    ]
    rows, columns = torch.meshgrid(rows, columns, indexing="ij")  # (height, width) each
    return rows.flatten(), columns.flatten()  # (N,) each


def sincos_position_embedding(
    width: int, grid: Grid, trained_grid: Grid | None = None, max_period: float = 10_000.0
) -> Tensor:
    """The fixed embedding that is added to the tokens, (1, N, width) float32 on the CPU.

    The first half of the channels encodes the column, the second half the row; each half holds all sines, then all
    cosines (DiT, arXiv 2212.09748). Computed in float64.

    Args:
        width: the model width D, a multiple of four.
        grid: height and width of the latent, in tokens.
        trained_grid: see `grid_coordinates`.
        max_period: the longest wavelength divided by 2 pi.
    """
    rows, columns = grid_coordinates(grid, trained_grid)
    quarter = width // 4
    frequencies = max_period ** -(torch.arange(quarter, device="cpu", dtype=torch.float64) / quarter)
    halves = []
    for coordinate in (columns, rows):
        angles = coordinate.double()[:, None] * frequencies  # (N, D / 4)
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=-1).float()[None]  # (1, N, D)


def rotary_table(
    head_width: int, grid: Grid, trained_grid: Grid | None = None, max_period: float = 10_000.0
) -> Tensor:
    """Cosine and sine of the angles by which the rotary embedding turns queries and keys, (N, K / 2, 2) on the CPU.

    The first half of the pairs turns with the row, the second with the column; within a half, pair k turns by
    `coordinate / max_period ** (2k / (head_width / 2))` (RoPE, arXiv 2104.09864). Computed in float32 in just this
    order of operations, which reproduces the tables inside published checkpoints bit for bit.

    Args:
        head_width: channels per head K, a multiple of four.
        grid: height and width of the latent, in tokens.
        trained_grid: see `grid_coordinates`.
        max_period: the longest wavelength divided by 2 pi.
    """
    per_axis = head_width // 2
    exponents = torch.arange(0, per_axis, 2, device="cpu", dtype=torch.float32) / per_axis
    frequencies = 1.0 / max_period**exponents  # (K / 4,)
    angles = torch.cat([c[:, None] * frequencies for c in grid_coordinates(grid, trained_grid)], dim=-1)  # (N, K / 2)
    return torch.stack((angles.cos(), angles.sin()), dim=-1)  # (N, K / 2, 2)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn each channel pair (2k, 2k+1) of queries or keys by its token's angle.

    Args:
        x: (B, N, H, K).
        table: cosines and sines (N, K / 2, 2) of the same tokens.

    Returns:
        the rotated tensor, in the shape and dtype of `x`.
    """
    pairs = x.unflatten(-1, (-1, 2))  # (B, N, H, K / 2, 2)
    if torch.compiler.is_compiling() or x.device.type not in ("cpu", "cuda"):
        # Real arithmetic is what compilers fuse. Without one it passes over memory 2 to 3 times as long as below.
        cos, sin = table.to(x.dtype)[:, None].unbind(-1)  # (N, 1, K / 2) each
        real, imaginary = pairs.unbind(-1)  # (B, N, H, K / 2) each
        pairs = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    else:
        wide = torch.promote_types(x.dtype, torch.float32)  # there are no narrow complex numbers
        turn = torch.view_as_complex(table.to(wide))[:, None]  # (N, 1, K / 2)
        pairs = torch.view_as_real(torch.view_as_complex(pairs.to(wide)) * turn).to(x.dtype)
    return pairs.flatten(-2)  # (B, N, H, K)


def resample_position_embedding(embedding: Tensor, grid: Grid, new_grid: Grid) -> Tensor:
    """Bicubic resampling of a stored embedding (1, N, D) to another grid; (1, N', D), the same dtype."""
    image = embedding.float().unflatten(1, grid).permute(0, 3, 1, 2)  # (1, D, height, width)
    image = F.interpolate(image, size=new_grid, mode="bicubic", antialias=True)
    return image.flatten(2).transpose(1, 2).to(embedding.dtype)  # (1, N', D)
