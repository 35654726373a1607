"""The tokenizer: diffusers' `AutoencoderKL` with one contract for normalised and raw latents.

images in [-1, 1] -> posterior -> raw latents -> latents (normalised per channel) -> raw latents -> images.
"""

import math
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from alight.models.latent_space import on_sphere
from alight.models.tokenizer import Tokenizer
from alight.options import LatentSpace, names_of, require_known
from alight.runtime.errors import InputError

FEATURE_MAPS = 6  # in memory at once at most, as large as the image and as wide as the wider of the two finest levels
SPACE = "latent_space"  # key of the configuration that diffusers does not have
LEAST_LOGVAR = -30.0  # to which diffusers clamps


class VAVAE(Tokenizer, AutoencoderKL):
    """A variational autoencoder whose latent space was aligned with a vision foundation model (paper, section 3).

    The network, the folder format and the configuration are those of diffusers' `AutoencoderKL`, and a folder
    written by `save_pretrained` opens there without this package; those of Stable Diffusion, Flux and others open
    here. *Latents* are normalised per channel with `latents_statistics`; what the encoder emits are *raw latents*.

        vae = VAVAE.from_pretrained("runs/tokenizer")
        latents = vae.encode_latents(images, generator=torch.Generator().manual_seed(0))
        images = vae.decode_latents(latents)

    With `latent_space` sphere in the configuration, raw latents have the root mean square 1 over the channels at each
    position, and the posterior is that point alone; `encode`, which is diffusers' own, gives them as they were before.

    Without gradients, a large batch passes an accelerator in slices, so that its activations fit into memory.
    """

    @classmethod
    def build(
        cls,
        latent_channels: int = 32,
        block_out_channels: tuple[int, ...] = (128, 128, 256, 256, 512),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        level_attention: bool = True,
        mid_block_attention: bool = True,
        sample_size: int = 256,
        latent_space: LatentSpace = "gaussian",
    ) -> "VAVAE":
        """A freshly initialised tokenizer; the defaults are the paper's f16d32 for 256-pixel images.

        Args:
            latent_channels: d of f16d32.
            block_out_channels: width per level; n levels downsample by 2**(n-1).
            layers_per_block: residual blocks per level of the encoder; the decoder has one more.
            norm_num_groups: of every group normalisation.
            level_attention: self-attention at the lowest level, on both sides.
            mid_block_attention: self-attention in the two middle blocks.
            sample_size: image size it is meant for; recorded only.
            latent_space: `gaussian`, the posterior of a variational autoencoder, or `sphere`.
        """
        plain = len(block_out_channels) - 1
        kind = "Attn" if level_attention else ""
        vae = cls(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * plain + (f"{kind}DownEncoderBlock2D",),
            up_block_types=(f"{kind}UpDecoderBlock2D",) + ("UpDecoderBlock2D",) * plain,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=1.0,
            force_upcast=False,
            mid_block_add_attention=mid_block_attention,
        )
        if latent_space != "gaussian":
            vae.register_to_config(**{SPACE: latent_space})
        return vae

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **options: Any) -> Any:
        """The network of a configuration, as in diffusers, which would warn of the one key that it does not know."""
        known = {key: value for key, value in config.items() if key != SPACE} if isinstance(config, dict) else config
        made = super().from_config(known, return_unused_kwargs=return_unused_kwargs, **options)
        if isinstance(config, dict) and SPACE in config:
            (made[0] if return_unused_kwargs else made).register_to_config(**{SPACE: config[SPACE]})
        return made

    def check_loaded(self, source: Any) -> None:
        """Refuse an unknown space of latents, and statistics that cannot normalise them.

        Raises:
            InputError: names the field.
        """
        config, channels = self.config, self.config.latent_channels
        require_known(self.latent_space, names_of(LatentSpace), f"latent_space in {source}")
        for name in ("latents_mean", "latents_std"):
            values = config.get(name)
            sound = isinstance(values, list | tuple) and len(values) == channels and all(map(_is_number, values))
            if values is not None and not (sound and (name == "latents_mean" or min(values) > 0)):
                raise InputError(
                    f"{source} has a {name} that is not {channels} finite {'positive ' * (name == 'latents_std')}"
                    "numbers, one per channel. Restore the file that was saved with the weights."
                )
        scale, shift = config.get("scaling_factor"), config.get("shift_factor")
        if not (scale is None or (_is_number(scale) and scale > 0)) or not (shift is None or _is_number(shift)):
            raise InputError(
                f"{source} has scaling_factor {scale!r} and shift_factor {shift!r}, which must be finite numbers. "
                "Restore the file that was saved with the weights."
            )

    def to_json_string(self) -> str:
        """The configuration under the name of the diffusers class, so that diffusers alone opens the folder."""
        return super().to_json_string().replace(f'"{type(self).__name__}"', '"AutoencoderKL"')

    @property
    def downsampling_factor(self) -> int:
        """Image pixels per latent position, along one side."""
        return int(2 ** (len(self.config.block_out_channels) - 1))

    @property
    def latent_space(self) -> LatentSpace:
        """`gaussian`, or `sphere`, which the configuration of the folder records."""
        found: LatentSpace = self.config.get(SPACE, "gaussian")
        return found

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of encoder and decoder, which do almost all of the work."""
        encoder, decoder = self.encoder, self.decoder
        return [*encoder.down_blocks, encoder.mid_block, decoder.mid_block, *decoder.up_blocks]

    @property
    def encoding_parts(self) -> list[nn.Module]:
        """The networks that latents depend on."""
        return [part for part in (self.encoder, self.quant_conv) if part is not None]

    @property
    def last_encoder_layer(self) -> nn.Parameter:
        """The encoder's last convolution, where the alignment gradient is measured (paper, Eq. 4)."""
        return self.encoder.conv_out.weight

    @property
    def last_decoder_layer(self) -> nn.Parameter:
        """The decoder's last convolution, where the adversarial gradient is measured."""
        return self.decoder.conv_out.weight

    def posterior(self, images: Tensor) -> DiagonalGaussianDistribution:
        """The Gaussian over raw latents, log-variance clamped to [-30, 20]; on the sphere, a point: its variance is 0.

        Args:
            images: (B, 3, H, W) in [-1, 1]; H and W multiples of the downsampling factor.

        Raises:
            InputError: if the size does not fit.
        """
        parameters = self.encoder_output(images)
        if self.latent_space == "gaussian":
            return DiagonalGaussianDistribution(parameters)
        mean = on_sphere(parameters.chunk(2, dim=1)[0])
        narrow = torch.full_like(mean, LEAST_LOGVAR)  # of what is stored; the distribution itself has no variance
        return DiagonalGaussianDistribution(torch.cat([mean, narrow], dim=1), deterministic=True)

    def encoder_output(self, images: Tensor) -> Tensor:
        """Mean and log-variance (B, 2 C, h, w) as the network gives them, before they are put on the sphere.

        Args:
            images: (B, 3, H, W) in [-1, 1]; H and W multiples of the downsampling factor.

        Raises:
            InputError: if the size does not fit.
        """
        factor = self.downsampling_factor
        if images.ndim != 4 or images.shape[2] % factor or images.shape[3] % factor:
            raise InputError(
                f"Images of shape {tuple(images.shape)} do not fit this tokenizer: it takes (B, 3, H, W) with H and W "
                f"multiples of {factor}. Crop or resize them."
            )
        slices = images.to(self.dtype).split(self._at_once(images, 1))
        parts = [self.encode(part).latent_dist.parameters for part in slices]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def encode_raw_latents(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images in [-1, 1] to raw latents (B, C, h, w): a posterior sample, or its mode without a generator."""
        posterior = self.posterior(images)
        if generator is None:
            return posterior.mode()
        noise = torch.randn(posterior.mean.shape, generator=generator, device=generator.device)
        return posterior.mean + posterior.std * noise.to(posterior.mean)

    def decode_raw_latents(self, raw_latents: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) to images (B, 3, H, W), nominally in [-1, 1]."""
        slices = raw_latents.to(self.dtype).split(self._at_once(raw_latents, self.downsampling_factor))
        parts = [self.decode(part).sample for part in slices]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def latents_statistics(self) -> tuple[Tensor, Tensor] | None:
        """Mean and std of raw latents per channel, each (C,) in float64; None if the folder records neither.

        They are `latents_mean` and `latents_std` of the configuration; else, as the folders of Stable Diffusion and
        Flux have it, `shift_factor` and 1 / `scaling_factor` for every channel alike.
        """
        config = self.config
        if config.latents_mean is not None and config.latents_std is not None:
            return torch.tensor(config.latents_mean).double(), torch.tensor(config.latents_std).double()
        shift, scale = config.shift_factor or 0.0, config.scaling_factor or 1.0
        if (shift, scale) == (0.0, 1.0):
            return None
        ones = torch.ones(config.latent_channels, dtype=torch.float64)
        return shift * ones, ones / scale

    def set_latents_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Record the per-channel statistics of raw latents, each of shape (C,), in place of any that were there.

        Raises:
            InputError: if there is not one number per channel.
        """
        self.require_channels(mean, std)
        self.register_to_config(
            latents_mean=mean.double().tolist(),
            latents_std=std.double().tolist(),
            scaling_factor=1.0,  # otherwise diffusers' pipelines would scale twice
            shift_factor=None,
        )

    def bytes_per_image(self, pixels: int) -> int:
        """Memory that the activations of an image with so many pixels take at their most, without gradients."""
        convolutions = FEATURE_MAPS * max(self.config.block_out_channels[:2]) * pixels
        attention = 2 * (pixels // self.downsampling_factor**2) ** 2  # scores, where no kernel does without them
        return 4 * (convolutions + attention)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
