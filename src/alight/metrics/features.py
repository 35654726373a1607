"""Extractors that turn images into the vectors whose distributions are compared, each with a name to report."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alight.metrics.frechet import FeatureStatistics
from alight.runtime.device import full_float32
from alight.runtime.errors import InputError
from alight.runtime.pixels import PixelArray, from_uint8

PixelBatch = Tensor | PixelArray
"""A batch of images, (B, H, W, C) uint8 with one or three channels."""

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's mode "L"


class FeatureExtractor(Protocol):
    """Anything that has a name and a dimension and turns images into one feature vector each."""

    @property
    def name(self) -> str:
        """The name of the features, with all settings that change the numbers; written next to every score."""
        ...

    @property
    def dimension(self) -> int:
        """D, the length of a feature vector."""
        ...

    def __call__(self, images: PixelBatch) -> Tensor:
        """Features (B, D), floating-point, of images (B, H, W, C) uint8."""
        ...


def as_pixels(images: PixelBatch) -> Tensor:
    """Check that `images` are 8-bit images, and give them as a tensor.

    Raises:
        InputError: they are not (B, H, W, C) uint8 with one or three channels.
    """
    pixels = torch.tensor(images) if isinstance(images, np.ndarray) else images
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        raise InputError(
            "Images to be measured are (B, H, W, C) uint8 with one or three channels, but these have the shape "
            f"{tuple(pixels.shape)} and are {pixels.dtype}; images in [-1, 1] become 8-bit by `to_uint8`."
        )
    return pixels


@dataclass(frozen=True)
class GreyPixels:
    """The images themselves, averaged over boxes to `size` x `size` grey pixels in [0, 1].

    Features without a network, for small pictures such as the digits of the quickstart: a distance in them sees
    strokes and their variety, and nothing of texture or meaning.

    Raises:
        InputError: an image is smaller than `size`.
    """

    size: int = 8

    @property
    def name(self) -> str:
        """For example "grey pixels 8x8"."""
        return f"grey pixels {self.size}x{self.size}"

    @property
    def dimension(self) -> int:
        """One per pixel."""
        return self.size**2

    def __call__(self, images: PixelBatch) -> Tensor:
        """Grey pixels (B, size * size), row by row, float32 in [0, 1]."""
        pixels = as_pixels(images)
        intensity = pixels.float() / 255
        if pixels.shape[3] == 3:
            intensity = (intensity * intensity.new_tensor(LUMA)).sum(dim=-1, keepdim=True)
        return _boxes(intensity, self.size, self.name)


@dataclass(frozen=True)
class ColourPixels:
    """The images themselves, averaged over boxes to `size` x `size` colours in [0, 1]; else as `GreyPixels`.

    Raises:
        InputError: an image is smaller than `size`.
    """

    size: int = 8

    @property
    def name(self) -> str:
        """For example "colour pixels 8x8"."""
        return f"colour pixels {self.size}x{self.size}"

    @property
    def dimension(self) -> int:
        """Three per pixel."""
        return 3 * self.size**2

    def __call__(self, images: PixelBatch) -> Tensor:
        """Colours (B, 3 * size * size), float32 in [0, 1]; grey images have three equal channels."""
        pixels = as_pixels(images)
        return _boxes((pixels.float() / 255).expand(*pixels.shape[:3], 3), self.size, self.name)


def _boxes(intensity: Tensor, size: int, name: str) -> Tensor:
    """Means over boxes, of pixels (B, H, W, C): (B, C * size * size)."""
    _, height, width, _ = intensity.shape
    if min(height, width) < size:
        raise InputError(f"Images of {height}x{width} pixels are too small for {name}.")
    return F.interpolate(intensity.movedim(-1, 1), (size, size), mode="area").flatten(1)


@dataclass(frozen=True)
class ModelFeatures:
    """The features of a network, which is given from outside: metrics know no models.

        extractor = ModelFeatures("DINOv2-B/14, mean patch token", 768, lambda images: vit(images).mean(dim=1))

    Attributes:
        name: the network, its weights and the pooling.
        dimension: D.
        function: from images (B, C, H, W) float32 in [-1, 1] to features (B, D); it does its own resizing and
            normalisation.  It runs without gradients.
        device: of the input of `function`.
        network: behind the function, whose layers may then be compiled.

    Raises:
        InputError: the function's output is not (B, D).
    """

    name: str
    dimension: int
    function: Callable[[Tensor], Tensor]
    device: torch.device | str = "cpu"
    network: nn.Module = field(default_factory=nn.Module)

    @torch.no_grad()
    def __call__(self, images: PixelBatch) -> Tensor:
        """Features (B, D)."""
        pixels = as_pixels(images)
        with full_float32():  # so that a score does not depend on the device
            features = self.function(from_uint8(pixels.to(self.device)))
        if features.shape != (len(pixels), self.dimension):
            raise InputError(
                f"The features '{self.name}' have the shape {tuple(features.shape)} for {len(pixels)} images, but "
                f"({len(pixels)}, {self.dimension}) was announced: pool over tokens, or correct the dimension."
            )
        return features


def feature_statistics(extractor: FeatureExtractor, batches: Iterable[PixelBatch]) -> FeatureStatistics:
    """Mean and covariance of the features of all images, for instance of the reference set."""
    statistics = FeatureStatistics(extractor.dimension, extractor.name)
    for images in batches:
        statistics.update(extractor(images))
    return statistics


def comparable_features(
    real: Tensor | npt.NDArray[np.floating], generated: Tensor | npt.NDArray[np.floating], at_least: int = 2
) -> tuple[Tensor, Tensor]:
    """Two whole sets of features, (N, D) and (M, D), checked, as tensors on the device of the first.

    Raises:
        InputError: a set is not of that shape, is smaller than `at_least`, or has values that are not finite.
    """
    real = torch.as_tensor(real).detach()
    generated = torch.as_tensor(generated).detach().to(real.device)
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise InputError(
            "Sets of features are compared as (N, D) and (M, D), but these have the shapes "
            f"{tuple(real.shape)} and {tuple(generated.shape)}; take both with the same extractor."
        )
    if min(len(real), len(generated)) < at_least:
        raise InputError(
            f"This comparison needs at least {at_least} feature vectors of each set, but got {len(real)} real and "
            f"{len(generated)} generated ones; give more images."
        )
    if not (real.isfinite().all() and generated.isfinite().all()):
        raise InputError(
            "The features contain NaN or infinity, to which nothing has a distance; look for images that are not "
            "finite, or run the feature network in float32."
        )
    return real, generated
