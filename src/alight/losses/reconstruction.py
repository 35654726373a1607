"""Reconstruction losses: absolute error (with LPIPS on top) and the KL term of the latent.

Two reductions: `sum` over an image and mean over the batch, which the published weight of the KL term (1e-6) belongs
to, or the plain `mean` over all elements.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from alight.options import Reduction


class ReconstructionTerms(NamedTuple):
    """The reconstruction objective and its readable parts."""

    objective: Tensor  # what is minimised
    unweighted: Tensor  # the same without sample weights: the reference of adaptive weights
    l1_per_pixel: Tensor  # mean absolute error per element, for the log


def reconstruction_loss(
    reconstructions: Tensor,
    images: Tensor,
    l1_weight: float = 1.0,
    perceptual: Tensor | None = None,
    perceptual_weight: float = 1.0,
    logvar: float | Tensor = 0.0,
    reduction: Reduction = "sum",
    sample_weights: Tensor | None = None,
) -> ReconstructionTerms:
    """Absolute error plus perceptual distance, as the tokenizer minimises it (paper, section 3.2, L_rec).

    The error of an element is e = l1_weight |x - r| + perceptual_weight LPIPS, with the distance of the whole image in
    each of its elements, so under `sum` it counts C*H*W times. The sum is a negative log-likelihood up to a constant:
    e / exp(logvar) + logvar per element. The plain mean knows no such variance.

    Args:
        reconstructions: (B, C, H, W), nominally in [-1, 1].
        images: same shape, in [-1, 1].
        l1_weight: of the absolute error.
        perceptual: LPIPS per image (B, 1, 1, 1); None = off.
        perceptual_weight: of the perceptual distance.
        logvar: log-variance of an element, under `sum` only; gradient flows to a tensor.
        reduction: over an image, `sum` or `mean`; over the batch it is always the mean.
        sample_weights: of the images, (B, 1, 1, 1); None = 1.

    Returns:
        The scalar objective with and without sample weights, and the mean absolute error.
    """
    absolute = (images - reconstructions).abs()  # (B, C, H, W)
    error = l1_weight * absolute.flatten(1).mean(1)  # (B,), per element
    if perceptual is not None:
        error = error + perceptual_weight * perceptual.flatten()
    if reduction == "sum":
        variance = logvar.exp() if isinstance(logvar, Tensor) else math.exp(logvar)
        error = images[0].numel() * (error / variance + logvar)
    weighted = error if sample_weights is None else sample_weights.flatten() * error
    return ReconstructionTerms(weighted.mean(), error.mean(), absolute.detach().mean())


def kl_loss(mean: Tensor, logvar: Tensor, reduction: Reduction = "sum") -> Tensor:
    """KL divergence of the diagonal Gaussian posterior from the standard normal (paper, section 3.2, L_kl).

    `sum`: 1/2 sum(mean^2 + var - 1 - log var) over an image's latent, averaged over the batch (Kingma and Welling
    2014, appendix B). `mean`: the average of mean^2 + var - 1 - log var over all elements, without the 1/2.

    Args:
        mean: (B, C, h, w).
        logvar: natural logarithm of the variance, same shape.
        reduction: `sum` or `mean`.
    """
    divergence = mean.square() + logvar.exp() - 1.0 - logvar
    return divergence.mean() if reduction == "mean" else 0.5 * torch.sum(divergence) / mean.shape[0]
