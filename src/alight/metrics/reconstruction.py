"""Distances between images and their reconstructions: PSNR, SSIM and LPIPS, with the conventions of the paper."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from alight.runtime.errors import InputError
from alight.runtime.pixels import to_uint8

PEAK = 255  # of an 8-bit pixel
DATA_RANGE = 2  # of images in [-1, 1]
WINDOW_SIZE, WINDOW_SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of 8-bit images, 10 log10(255^2 / MSE), one value per image.

    Args:
        a: (B, H, W, C) uint8.
        b: the same; the ratio is symmetric.

    Returns:
        (B,) dB, float64 on the CPU; infinite where the two images are identical.

    Raises:
        InputError: the images are not uint8, or differ in shape.
    """
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.shape != b.shape or a.ndim != 4:
        raise InputError(
            f"PSNR is taken on pairs of 8-bit images (B, H, W, C), but got {tuple(a.shape)} of {a.dtype} and "
            f"{tuple(b.shape)} of {b.dtype}; images in [-1, 1] go through `to_uint8`."
        )
    squares = (a.int() - b.int()).square().sum(dim=(1, 2, 3))  # of integers, hence exact in any order
    return 10 * torch.log10(PEAK**2 * a.shape[1:].numel() / squares.cpu().double())


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, equation 13), one value per image.

    Gaussian window of 11 x 11 pixels with sigma 1.5, borders reflected, mean over all pixels and channels; the
    images are clamped to [-1, 1], so the data range is 2.

    Args:
        a: (B, C, H, W) in [-1, 1], floating-point.
        b: the same; the similarity is symmetric.

    Returns:
        (B,), at most 1, in the type and on the device of the images.

    Raises:
        InputError: the shapes differ, or the images are smaller than the window.
    """
    if a.shape != b.shape or a.ndim != 4 or not (a.is_floating_point() and b.is_floating_point()):
        raise InputError(
            "SSIM is taken on pairs of floating-point images (B, C, H, W) in [-1, 1], but got "
            f"{tuple(a.shape)} of {a.dtype} and {tuple(b.shape)} of {b.dtype}."
        )
    if min(a.shape[-2:]) < WINDOW_SIZE:
        raise InputError(
            f"SSIM looks through a window of {WINDOW_SIZE}x{WINDOW_SIZE} pixels, and images of "
            f"{a.shape[-2]}x{a.shape[-1]} are smaller than that; use larger images, or PSNR alone."
        )
    a, b = a.clamp(-1, 1), b.clamp(-1, 1)
    mean_a, mean_b = _local_mean(a), _local_mean(b)
    variance_a = (_local_mean(a * a) - mean_a**2).clamp(min=0)
    variance_b = (_local_mean(b * b) - mean_b**2).clamp(min=0)
    covariance = _local_mean(a * b) - mean_a * mean_b

    c1, c2 = (K1 * DATA_RANGE) ** 2, (K2 * DATA_RANGE) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    contrast_structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * contrast_structure).mean(dim=(1, 2, 3))


def _local_mean(images: Tensor) -> Tensor:
    """Mean under the Gaussian window around each pixel: two passes, since the window is separable."""
    radius = WINDOW_SIZE // 2
    bell = [math.exp(-0.5 * (offset / WINDOW_SIGMA) ** 2) for offset in range(-radius, radius + 1)]
    weights = [value / sum(bell) for value in bell]
    height, width = images.shape[-2:]
    zero = images.new_zeros(())
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect")
    # Sums of shifted images: a convolution may run in TF32, which has too few digits for the variances.
    columns = sum((weight * padded[..., k : k + height, :] for k, weight in enumerate(weights)), start=zero)
    return sum((weight * columns[..., k : k + width] for k, weight in enumerate(weights)), start=zero)


Distance = Callable[[Tensor, Tensor], Tensor]
"""LPIPS or the like: two batches of images in [-1, 1] to one number per pair, of any shape with B elements."""


def image_scores(reconstructions: Tensor, images: Tensor, lpips: Distance | None = None) -> dict[str, Tensor]:
    """The scores of every image by itself, which depend on no other image of the batch.

    Args:
        reconstructions: (B, C, H, W); PSNR and SSIM clamp what lies outside [-1, 1], LPIPS sees it.
        images: (B, C, H, W) in [-1, 1].
        lpips: the network, called as lpips(reconstructions, images).

    Returns:
        `psnr` on 8-bit pixels in dB, `ssim` and, with its network, `lpips`; each (B,) float64 on the CPU.

    Raises:
        InputError: the shapes differ, the images leave [-1, 1], something is NaN, or the images are smaller than the
            window of SSIM.
    """
    if images.numel() and images.abs().max() > 1 + 1e-3:
        raise InputError(
            f"Images are expected in [-1, 1], but reach {images.abs().max():.3g}; 8-bit images go through "
            "`from_uint8`."
        )
    scores = {
        "ssim": ssim(reconstructions.float(), images.float()),  # first: it refuses pairs of unequal shape
        "psnr": psnr(to_uint8(reconstructions), to_uint8(images)),
    }
    if lpips is not None:
        scores["lpips"] = lpips(reconstructions, images).flatten()
    return {name: scores[name].cpu().double() for name in ("psnr", "ssim", "lpips") if name in scores}


@dataclass(frozen=True)
class ReconstructionScores:
    """Reconstruction quality over `n` images.

    Attributes:
        psnr: mean of the images' PSNR in dB, on 8-bit pixels; infinite as soon as one image is reproduced exactly.
        ssim: mean of the images' SSIM.
        n: number of images.
        n_identical: number of images that were reproduced exactly.
        lpips: mean of the images' LPIPS, None if it was not measured.
    """

    psnr: float
    ssim: float
    n: int
    n_identical: int
    lpips: float | None = None


class ReconstructionMetrics:
    """Gather reconstruction scores batch by batch; every image weighs the same, in batches of any size.

    Usage:
        metrics = ReconstructionMetrics()
        for images in batches:
            metrics.update(reconstruct(images), images)
        scores = metrics.compute()
    """

    def __init__(self, lpips: Distance | None = None) -> None:
        self._lpips = lpips
        self._batches: list[dict[str, Tensor]] = []

    def update(self, reconstructions: Tensor, images: Tensor) -> None:
        """Take in one batch; see `image_scores`."""
        self._batches.append(image_scores(reconstructions, images, self._lpips))

    def merge(self, other: "ReconstructionMetrics") -> None:
        """Take in what another process has gathered."""
        self._batches += other._batches

    def compute(self) -> ReconstructionScores:
        """The means so far.

        Raises:
            InputError: no image has been given.
        """
        if not sum(len(batch["psnr"]) for batch in self._batches):
            raise InputError("There are no reconstructions to score; the image set is empty.")
        scores = {name: torch.cat([batch[name] for batch in self._batches]) for name in self._batches[0]}
        means = {name: values.mean().item() for name, values in scores.items()}
        return ReconstructionScores(**means, n=len(scores["psnr"]), n_identical=int(scores["psnr"].isinf().sum()))
