"""Conversion of images in [-1, 1] to 8-bit pixels and back.

The rule moves scores in their third digit, so every stage that writes, shows or measures pixels uses this file.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alight.runtime.errors import InputError

PixelArray = npt.NDArray[np.uint8]  # one image (H, W, C), or several (N, H, W, C)
UINT8_RULE = "clamp(127.5 x + 128, 0, 255), truncated"  # in records and reports


def to_uint8(images: Tensor) -> Tensor:
    """Quantise images from the range of the networks to 8-bit pixels, and from channels first to channels last.

    The published rule: `clamp(127.5 x + 128, 0, 255)`, truncated.  Adding 128 and truncating rounds to the nearest of
    the values that `from_uint8` gives, so 8-bit pixels survive the way there and back unchanged.

    Args:
        images: (..., C, H, W) in [-1, 1], of any floating-point type; values outside are clamped.

    Returns:
        (..., H, W, C) uint8, contiguous, on the same device.

    Raises:
        InputError: the images are not floating-point, have fewer than three dimensions, or contain NaN.
    """
    if images.ndim < 3 or not images.is_floating_point():
        raise InputError(
            f"to_uint8 takes floating-point images (..., C, H, W) in [-1, 1], but got shape {tuple(images.shape)} of "
            f"{images.dtype}; 8-bit pixels need no conversion."
        )
    if images.isnan().any():
        raise InputError(
            "The images contain NaN, which no pixel can show: the network that made them has diverged, or ran in a "
            "precision too low for it; look at its weights, or run it in float32."
        )
    if images.dtype in (torch.float16, torch.bfloat16):  # bfloat16 cannot tell 254.5 from 255
        images = images.float()
    pixels = (127.5 * images + 128).clamp(0, 255).to(torch.uint8)
    return pixels.movedim(-3, -1).contiguous()


def from_uint8(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bring 8-bit pixels to the range and the layout of the networks: `x / 127.5 - 1`, channels first.

    Args:
        images: (..., H, W, C) uint8.
        dtype: type of the result; the division is done in float32.

    Returns:
        (..., C, H, W) in [-1, 1], contiguous, on the same device.

    Raises:
        InputError: the images are not uint8 or have fewer than three dimensions.
    """
    if images.ndim < 3 or images.dtype != torch.uint8:
        raise InputError(
            f"from_uint8 takes 8-bit images (..., H, W, C), but got shape {tuple(images.shape)} of {images.dtype}."
        )
    return unit_range(images.movedim(-1, -3)).to(dtype).contiguous()


def unit_range(pixels: Tensor) -> Tensor:
    """8-bit pixels of any layout to float32 in [-1, 1]: `x / 127.5 - 1`."""
    return pixels.float() / 127.5 - 1
