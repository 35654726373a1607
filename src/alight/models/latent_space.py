"""The sphere that the latents of a tokenizer may lie on (GAE, Liu et al., arXiv 2603.10365)."""

import torch
from torch import Tensor

SMALLEST_SQUARE = 1e-12  # below this mean square a vector counts as zero, and gets no gradient by its length


def on_sphere(latents: Tensor) -> Tensor:
    """Divide the vector at each position by the root mean square over its channels: z / rms(z).

    The length becomes sqrt(C), and every channel of size one on average, as without the sphere.

    Args:
        latents: (B, C, h, w).

    Returns:
        The same shape, in float32 or wider: a narrow type would leave the sphere in its third digit.
    """
    wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
    return wide * wide.square().mean(dim=1, keepdim=True).clamp_min(SMALLEST_SQUARE).rsqrt()
