"""Pictures of latents: single channels, and the first three principal components."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NEGATIVE, ZERO, POSITIVE = (43, 92, 138), (252, 251, 248), (180, 100, 30)  # the colours of the report
EXTREME = 2.0  # normalised latents have standard deviation 1; beyond two of them the colour is full
CLIPPED = 0.01  # share of the values at either end of a PCA picture that are drawn as the end


def channel_maps(latents: Tensor) -> NDArray[np.uint8]:
    """Each channel of latents (C, h, w) as a picture (C, h, w, 3) uint8: blue below its mean, orange above."""
    values = (latents.float().cpu().numpy() / EXTREME).clip(-1, 1)[..., None]  # (C, h, w, 1)
    zero, low, high = (np.array(colour, dtype=np.float64) for colour in (ZERO, NEGATIVE, POSITIVE))
    colours = np.where(values < 0, zero + (low - zero) * -values, zero + (high - zero) * values)
    return colours.round().astype(np.uint8)


def pca_pictures(grids: Tensor) -> NDArray[np.uint8]:
    """The first three principal components of the vectors in some grids, as red, green and blue.

    The components are common to all grids, so equal colours mean similar vectors in all pictures.

    Args:
        grids: (B, D, h, w).

    Returns:
        (B, h, w, 3) uint8.
    """
    batch, _, height, width = grids.shape
    vectors = grids.movedim(1, -1).flatten(0, 2).cpu().double()  # (B h w, D)
    vectors = vectors - vectors.mean(dim=0)
    directions = torch.linalg.svd(vectors, full_matrices=False).Vh[:3]  # (at most 3, D)
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    components = vectors @ (directions * largest.sign()).T  # the sign is arbitrary: make the largest entry positive
    low, high = components.quantile(CLIPPED, dim=0), components.quantile(1 - CLIPPED, dim=0)
    unit = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    shown = torch.full((len(unit), 3), 0.5, dtype=torch.float64)
    shown[:, : unit.shape[1]] = unit
    return (255 * shown).round().to(torch.uint8).view(batch, height, width, 3).numpy()
