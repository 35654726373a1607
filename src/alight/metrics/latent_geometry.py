"""The neighbourhoods of a latent space: what lies close together, and what a small step changes.

Three properties that go with easy generation (PAE: relations as in a foundation model, continuity, semantics), and
the points halfway between latents. Latents are normalised, (N, C, h, w).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from alight.metrics.manifold import squared_distances
from alight.runtime.errors import InputError

Interpolation = Literal["spherical", "linear"]
SMALLEST = 1e-12  # of a length or variance that is divided by


def gram_agreement(latents: Tensor, features: Tensor) -> Tensor:
    """Correlation of the similarities between positions in the latents and in the features of the same images.

    Both have a matrix of cosines between the positions of an image, and the figure is the Pearson correlation of the
    entries above the diagonals: 1 where the two agree up to scale and offset, whatever the channels are.

    Args:
        latents: (B, C, h, w).
        features: (B, F, h, w), on the same grid of at least three positions.

    Returns:
        (B,) in [-1, 1]; 0 where all similarities of an image are equal.

    Raises:
        InputError: the grids differ, or are too small.
    """
    if latents.ndim != 4 or features.ndim != 4 or latents.shape[2:] != features.shape[2:]:
        raise InputError(
            f"Similarities are compared on one grid, not of latents {tuple(latents.shape)} and features "
            f"{tuple(features.shape)}."
        )
    count = latents.shape[2] * latents.shape[3]
    if count < 3:
        raise InputError(f"Similarities between positions need a grid of at least three, not of {count}.")
    rows, columns = torch.triu_indices(count, count, offset=1, device=latents.device)
    pairs = []
    for values in (latents, features):
        unit = F.normalize(values.float().flatten(2), dim=1)  # (B, C, n)
        similarities = (unit.transpose(1, 2) @ unit)[:, rows, columns]  # (B, n (n - 1) / 2)
        pairs.append(similarities - similarities.mean(1, keepdim=True))
    own, other = pairs
    lengths = own.norm(dim=1) * other.norm(dim=1)
    return torch.where(lengths > SMALLEST, (own * other).sum(1) / lengths.clamp(min=SMALLEST), 0.0)


def neighbour_hits(latents: Tensor, labels: Tensor) -> Tensor:
    """Tell of every image if the latent nearest to its own, averaged over positions, has the same label.

    Args:
        latents: (N, C, h, w), at least two.
        labels: (N,).

    Returns:
        (N,) bool; the mean is the leave-one-out accuracy of the nearest neighbour.
    """
    if latents.ndim != 4 or len(latents) < 2 or labels.shape != (len(latents),):
        raise InputError(
            f"Neighbours need at least two latents with a label each, not {tuple(latents.shape)} and "
            f"{tuple(labels.shape)}."
        )
    pooled = latents.float().mean((2, 3))
    nearest = []
    for numbers in torch.arange(len(pooled)).split(1_000):
        distances = squared_distances(pooled[numbers], pooled)
        distances[torch.arange(len(numbers)), numbers] = torch.inf
        nearest.append(distances.argmin(1))
    return labels[torch.cat(nearest)] == labels


def perturbed(latents: Tensor, size: float, noise: Tensor) -> Tensor:
    """Latents moved by noise of a size relative to their own root mean square, image by image.

    Args:
        latents: (B, C, h, w).
        size: of the step, relative to the latent; more than 0.
        noise: standard normal, of the same shape.
    """
    scale = latents.square().mean((1, 2, 3), keepdim=True).sqrt()
    return latents + size * scale * noise


def decoder_drift(changes: Tensor, spreads: Tensor) -> float:
    """The change of decoded images by a step of their latents, relative to the spread of the images.

    Args:
        changes: (N,) squared change of each image.
        spreads: (N,) squared distance of each image from the mean image.

    Returns:
        The root of the ratio of the sums. An isometric decoder of latents of unit variance gives the step's size.
    """
    return float((changes.double().sum() / spreads.double().sum().clamp(min=SMALLEST)).sqrt())


def midpoints(first: Tensor, second: Tensor, interpolation: Interpolation = "spherical") -> Tensor:
    """The points halfway between latents.

    Args:
        first: (B, C, h, w).
        second: likewise.
        interpolation: "spherical", half the angle between the two whole latents and the mean of their lengths, or
            "linear", their mean, which is shorter than latents are by about the root of two.
    """
    if interpolation == "linear":
        return (first + second) / 2
    lengths = [each.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for each in (first, second)]
    between = first / lengths[0].clamp(min=SMALLEST) + second / lengths[1].clamp(min=SMALLEST)
    length = between.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp(min=SMALLEST)
    return between / length * (lengths[0] + lengths[1]) / 2
