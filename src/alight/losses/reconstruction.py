"""What a good reconstruction costs: absolute error (with LPIPS on top) and the KL term of the latent.

Reductions follow the published objective: sums over an image, means over the batch. The weight of the KL term
(1e-6) only means something under this rule.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class ReconstructionTerms(NamedTuple):
    """The reconstruction objective and its readable parts."""

    objective: Tensor  # sum over the image of |x - r| (+ LPIPS per element), mean over the batch
    l1_per_pixel: Tensor  # mean absolute error per element, for the log


def reconstruction_loss(
    reconstructions: Tensor,
    images: Tensor,
    l1_weight: float = 1.0,
    perceptual: Tensor | None = None,
    perceptual_weight: float = 1.0,
) -> ReconstructionTerms:
    """Absolute error plus perceptual distance, as the tokenizer minimises it (paper, section 3.2, L_rec).

    The perceptual distance of an image is added to each of its elements before the sum, so it counts C*H*W times.

    Args:
        reconstructions: (B, C, H, W), nominally in [-1, 1].
        images: same shape, in [-1, 1].
        l1_weight: of the absolute error.
        perceptual: LPIPS per image, any shape that broadcasts from (B, 1, 1, 1); None = off.
        perceptual_weight: of the perceptual distance.

    Returns:
        The scalar objective and the mean absolute error.
    """
    absolute = (images - reconstructions).abs()  # (B, C, H, W)
    per_element = l1_weight * absolute
    if perceptual is not None:
        per_element = per_element + perceptual_weight * perceptual
    return ReconstructionTerms(per_element.sum() / images.shape[0], absolute.detach().mean())


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of the diagonal Gaussian posterior from the standard normal.

    1/2 sum(mean^2 + var - 1 - log var), summed over an image's latent and averaged over the batch
    (Kingma and Welling 2014, appendix B).

    Args:
        mean: (B, C, h, w).
        logvar: natural logarithm of the variance, same shape.
    """
    return 0.5 * torch.sum(mean.square() + logvar.exp() - 1.0 - logvar) / mean.shape[0]
