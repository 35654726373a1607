"""The interface of every tokenizer: images to latents and back, and the statistics that normalise latents.

A tokenizer is `VAVAE`, a variational autoencoder, or `RepresentationAutoencoder`, a frozen encoder with a decoder.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alight.models.pretrained import StrictlyLoaded
from alight.options import LatentSpace
from alight.runtime.errors import InputError
from alight.runtime.slices import images_at_once

MEAN_LIMIT, SIZE_LIMIT = 1.0, 3.0  # of normalised latents of many images: largest mean, largest factor from size 1


@dataclass(frozen=True)
class CertainLatents:
    """The posterior of an encoder that is a function: all of its mass at one place.

    Attributes:
        mean: (B, C, h, w).
    """

    mean: Tensor
    deterministic = True

    @property
    def std(self) -> Tensor:
        """Zero everywhere."""
        return torch.zeros_like(self.mean)

    @property
    def logvar(self) -> Tensor:
        """Minus infinity everywhere; (0.5 * logvar).exp() is 0."""
        return self.mean.new_tensor(-torch.inf).expand_as(self.mean)

    def mode(self) -> Tensor:
        """The latents."""
        return self.mean


class Tokenizer(StrictlyLoaded):
    """A diffusers model between images in [-1, 1] and latents (B, C, h, w), with one contract for both kinds of them.

    *Latents* are normalised per channel with `latents_statistics`; what the encoder emits are *raw latents*. Its
    `config` has `latent_channels`, and `sample_size`: the image size that it is meant for.
    """

    has_frozen_encoder = False  # its latents are exact features of a fixed network; the decoder alone is trained

    @property
    def latent_space(self) -> LatentSpace:
        """`gaussian`, where nothing confines raw latents, or `sphere`."""
        return "gaussian"

    @property
    @abstractmethod
    def downsampling_factor(self) -> int:
        """Image pixels per latent position, along one side."""

    @property
    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The blocks of encoder and decoder, which do almost all of the work."""

    @property
    @abstractmethod
    def encoding_parts(self) -> list[nn.Module]:
        """The networks that latents depend on."""

    @property
    @abstractmethod
    def last_decoder_layer(self) -> nn.Parameter:
        """The decoder's last layer, where the adversarial gradient is measured."""

    @property
    @abstractmethod
    def latents_statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean and std of raw latents per channel, each (C,) in float64; None if the folder records neither."""

    @abstractmethod
    def set_latents_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Record the per-channel statistics of raw latents, each of shape (C,), in place of any that were there."""

    @abstractmethod
    def posterior(self, images: Tensor) -> Any:
        """The distribution of raw latents of images in [-1, 1]: `mean`, `std` and `logvar`, (B, C, h, w) each."""

    @abstractmethod
    def encode_raw_latents(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images in [-1, 1] to raw latents (B, C, h, w): a posterior sample, or its mode without a generator."""

    @abstractmethod
    def decode_raw_latents(self, raw_latents: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) to images (B, 3, H, W), nominally in [-1, 1]."""

    @abstractmethod
    def bytes_per_image(self, pixels: int) -> int:
        """Memory that the activations of an image with so many pixels take at their most, without gradients."""

    def encode_latents(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images in [-1, 1] to normalised latents: a posterior sample, or its mode without a generator."""
        return self.normalize(self.encode_raw_latents(images, generator))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) to images (B, 3, H, W), nominally in [-1, 1]."""
        return self.decode_raw_latents(self.denormalize(latents))

    def normalize(self, raw_latents: Tensor) -> Tensor:
        """(raw - mean) / std, per channel."""
        mean, std = self._statistics(raw_latents)
        return (raw_latents - mean) / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """Latents * std + mean, per channel."""
        mean, std = self._statistics(latents)
        return latents * std + mean

    @property
    def has_latents_statistics(self) -> bool:
        """Tell if latents can be normalised."""
        return self.latents_statistics is not None

    @torch.no_grad()
    def check_latents_statistics(self, raw_latents: Tensor) -> None:
        """Refuse recorded statistics that are grossly unlike the latents of real images.

        Normalised latents have mean 0 and, about it, size 1. Allowed is a mean of up to 1 and a size from 1/3 to 3,
        as root mean squares over the channels. A few images are not like all of them, so the bounds widen by the
        factor 1 + 2 / sqrt(B), and size is taken about 0, which a plain image without detail has, too.

        Args:
            raw_latents: (B, C, h, w), of a batch of the images that are going to be used.

        Raises:
            InputError: the statistics are those of another tokenizer or of other images, or there are none.
        """
        latents = self.normalize(raw_latents.cpu().double())  # MPS has no float64
        mean = latents.mean(dim=(0, 2, 3)).square().mean().sqrt().item()
        size = latents.square().mean().sqrt().item()
        slack = 1 + 2 / len(raw_latents) ** 0.5
        if not (mean <= MEAN_LIMIT * slack and 1 / (SIZE_LIMIT * slack) <= size <= SIZE_LIMIT * slack):
            raise InputError(
                "The statistics recorded with this tokenizer do not fit these images: normalised latents should have "
                f"mean 0 and size 1, but {len(raw_latents)} images give {mean:.3g} and {size:.3g}. Either the images "
                "are unlike those it was trained on: measure new statistics with 'alight latents extract --statistics "
                "data'; or the statistics belong to another tokenizer, or the normalisation was left out or applied "
                "twice."
            )

    def require_channels(self, mean: Tensor, std: Tensor) -> None:
        """Refuse statistics that have not one number per channel of the latents.

        Raises:
            InputError: names both shapes.
        """
        channels = self.config.latent_channels
        if mean.shape != (channels,) or std.shape != (channels,):
            raise InputError(
                f"Statistics of shape {tuple(mean.shape)} and {tuple(std.shape)} do not fit latents of {channels} "
                "channels. Give those that were measured with this tokenizer."
            )

    def _at_once(self, batch: Tensor, factor: int) -> int:
        """Images (or latents, whose sides are `factor` times as long in pixels) that pass the network together."""
        if torch.is_grad_enabled():
            return len(batch)
        pixels = batch.shape[2] * batch.shape[3] * factor**2
        return images_at_once(batch.device, self.bytes_per_image(pixels), len(batch))

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if (statistics := self.latents_statistics) is None:
            raise InputError(
                "This tokenizer has no latents_mean and latents_std, so latents cannot be normalised. Extract latents "
                "with 'alight latents extract --statistics data', or call set_latents_statistics."
            )
        mean, std = (value.to(like.dtype).to(like.device).view(1, -1, 1, 1) for value in statistics)
        return mean, std
