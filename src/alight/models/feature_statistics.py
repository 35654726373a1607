"""Statistics of the features that a frozen encoder gives, per channel or at every position, in diffusers' fields."""

from abc import abstractmethod
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from alight.models.tokenizer import Tokenizer
from alight.runtime.errors import InputError

STD_MARGIN = 1e-5  # that diffusers adds to `latents_std`


class FeatureStatistics(Tokenizer):
    """The part of `RepresentationAutoencoder` that normalises its latents.

    Statistics per channel are `latents_mean` and `latents_std` of shape (C, 1, 1). Where a folder has them of shape
    (C, h, w), features so normalised are the raw latents, and `channel_mean` and `channel_std` come on top.
    """

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Height and width of the latents."""

    def _keep_normalisation(self, mean: Any, std: Any, latents_mean: Any, latents_std: Any, size: int) -> None:
        """Register what diffusers' methods use, as its own constructor does."""
        self.register_buffer("encoder_mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("encoder_std", torch.tensor(std).view(1, -1, 1, 1))
        self.register_buffer("_latents_mean", torch.zeros(1) if latents_mean is None else torch.tensor(latents_mean))
        self.register_buffer("_latents_std", torch.ones(1) if latents_std is None else torch.tensor(latents_std))
        self.encoder_input_size, self.reshape_to_2d, self.use_slicing = size, True, False

    def check_loaded(self, source: Any) -> None:
        """Refuse statistics of latents that cannot normalise them, or that are others than those in the weights.

        Raises:
            InputError: names the field.
        """
        config, channels = self.config, self.config.latent_channels
        restore = "Restore the file that was saved with the weights."
        for name, positive in (("latents_mean", False), ("latents_std", True)):
            buffer = getattr(self, f"_{name}")
            grids = [(channels, 1, 1), (channels, *self.grid)]
            if (
                config[name] is not None
                and tuple(buffer.shape) not in grids
                or positive
                and not bool((buffer > 0).all())
            ):
                raise InputError(f"{source} has a {name} that does not fit {channels} channels. {restore}")
            if config[name] is not None and not torch.allclose(buffer, torch.tensor(config[name]), 1e-2, 1e-3):
                raise InputError(f"{source} has another {name} than the weights beside it. {restore}")
        for name in ("channel_mean", "channel_std"):
            values = config[name]
            if values is not None and (len(values) != channels or not all(map(isfinite, values))):
                raise InputError(f"{source} has a {name} that is not {channels} finite numbers. {restore}")
        if config.sample_size != self.downsampling_factor * self.grid[0]:
            raise InputError(f"{source} has an image_size that is not its latent grid times patch_size. {restore}")
        if not config.reshape_to_2d or not (isfinite(config.scaling_factor) and config.scaling_factor > 0):
            raise InputError(
                f"{source} has reshape_to_2d {config.reshape_to_2d} and scaling_factor {config.scaling_factor}; used "
                f"can be latents on a grid, and a positive factor. {restore}"
            )

    @property
    def normalises_positions(self) -> bool:
        """Tell if the folder has statistics of every position by itself."""
        return self._latents_mean.ndim > 0 and max(self._latents_mean.shape[1:], default=1) > 1

    @property
    def latents_statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean and std of raw latents per channel, each (C,) in float64; None if the folder records neither."""
        config, ones = self.config, torch.ones(self.config.latent_channels, dtype=torch.float64)
        if self.normalises_positions:
            mean, std = config.channel_mean, config.channel_std
            return (torch.tensor(mean).double(), torch.tensor(std).double()) if mean and std else (0 * ones, ones)
        if config.latents_mean is None and config.latents_std is None:
            return None if config.scaling_factor == 1 else (0 * ones, ones / config.scaling_factor)
        mean = torch.tensor(config.latents_mean or 0.0, dtype=torch.float64).flatten()
        std = torch.tensor(config.latents_std or 1.0, dtype=torch.float64).flatten()
        return mean * ones, (std + STD_MARGIN) * ones / config.scaling_factor

    def set_latents_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Record the per-channel statistics of raw latents, each of shape (C,), in place of any that were there.

        Raises:
            InputError: if there is not one number per channel.
        """
        self.require_channels(mean, std)
        if self.normalises_positions:
            identity = not mean.any() and bool((std == 1).all())
            values = (None, None) if identity else (mean.double().tolist(), std.double().tolist())
            self.register_to_config(channel_mean=values[0], channel_std=values[1])
        else:
            self._record(mean.view(-1, 1, 1), std.view(-1, 1, 1))

    def normalise_positions(self, mean: Tensor, std: Tensor) -> None:
        """Take features normalised at every position by itself for the raw latents, as the published folders do.

        Args:
            mean: of features, (C, h, w).
            std: likewise.
        """
        self._record(mean, std)
        self.register_to_config(channel_mean=None, channel_std=None)

    def _record(self, mean: Tensor, std: Tensor) -> None:
        grids = mean.double(), (std.double() - STD_MARGIN).clamp_min(STD_MARGIN)
        self.register_to_config(latents_mean=grids[0].tolist(), latents_std=grids[1].tolist(), scaling_factor=1.0)
        self._latents_mean, self._latents_std = (grid.to(self.encoder_mean) for grid in grids)
