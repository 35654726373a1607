"""The tokenizer without a trained encoder: a frozen vision transformer, and another one that decodes its features.

A representation autoencoder (RAE, Zheng et al. 2025, arXiv 2510.11690): the encoder stays as its own training left it,
so that nothing has to tie latents to it, and latents are as wide as its features.
"""

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from diffusers import AutoencoderRAE, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder
from torch import Tensor, nn

from alight.models.feature_statistics import FeatureStatistics
from alight.models.foundation import FoundationModel, repeated_blocks
from alight.models.foundation_catalogue import IMAGENET_MEAN, IMAGENET_STD
from alight.models.frozen_encoder import (
    build_backbone,
    describe_backbone,
    diffusers_type,
    plain_configuration,
    rename_as_today,
    require_patch_grid,
    siglip_encoder,
    take_weights,
)
from alight.models.pretrained import LAYERS_LIMIT
from alight.models.tokenizer import CertainLatents
from alight.runtime.errors import InputError

ACTIVATIONS = 8  # in memory at once at most, as wide as the widest layer


class RepresentationAutoencoder(FeatureStatistics, AutoencoderRAE):
    """A frozen vision transformer whose patch features are the latents, and a vision transformer that decodes them.

    The decoder, the folder format and the configuration are those of diffusers' `AutoencoderRAE`, and published
    folders of it open here and give the same latents. It knows three encoders, each with fixed handling of images:
    DINOv2 with registers, SigLIP2 and MAE. A tokenizer that was built here from such a DINOv2 or MAE opens in
    diffusers, too. Any other vision transformer of `transformers` is described by `encoder_config`, handles images as
    `FoundationModel` does, and opens in this package alone. The weights of the encoder are in the folder.

    *Raw latents* are the features; where a folder normalises every feature at every position by itself, as published
    ones do, they are the features so normalised, with mean 0 and std 1 as their statistics.

    Args:
        encoder_type, encoder_hidden_size, encoder_patch_size, encoder_num_hidden_layers: of diffusers' encoder.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads, decoder_intermediate_size: sizes
            of the decoder.
        patch_size: image pixels per latent position, along one side.
        encoder_input_size: pixels along a side of the images that the encoder gets.
        image_size: of the images that are decoded, always `patch_size` times the side of the latent grid.
        num_channels: of images.
        encoder_norm_mean, encoder_norm_std: per channel, of pixels in [0, 1]; None = ImageNet's.
        latents_mean, latents_std: of features, (C, 1, 1) or, of every position by itself, (C, h, w).
        noise_tau: of diffusers; heeded in its own training alone.
        reshape_to_2d: True; others cannot be used here.
        use_encoder_loss: of diffusers; not heeded.
        scaling_factor: that normalised latents are multiplied with.
        encoder_config: of an encoder that diffusers does not know; with it, the first four say nothing but its width.
        channel_mean, channel_std: statistics on top of those of every position.
        latent_channels, sample_size: the width of the encoder and the image size, under the names of other tokenizers.
    """

    has_frozen_encoder = True

    @register_to_config
    def __init__(
        self,
        encoder_type: str = "dinov2",
        encoder_hidden_size: int = 768,
        encoder_patch_size: int = 14,
        encoder_num_hidden_layers: int = 12,
        decoder_hidden_size: int = 512,
        decoder_num_hidden_layers: int = 8,
        decoder_num_attention_heads: int = 16,
        decoder_intermediate_size: int = 2048,
        patch_size: int = 16,
        encoder_input_size: int = 224,
        image_size: int | None = None,
        num_channels: int = 3,
        encoder_norm_mean: list | None = None,
        encoder_norm_std: list | None = None,
        latents_mean: list | None = None,
        latents_std: list | None = None,
        noise_tau: float = 0.0,
        reshape_to_2d: bool = True,
        use_encoder_loss: bool = False,
        scaling_factor: float = 1.0,
        encoder_config: dict[str, Any] | None = None,
        channel_mean: list | None = None,
        channel_std: list | None = None,
        latent_channels: int | None = None,
        sample_size: int | None = None,
    ) -> None:
        side = encoder_input_size // encoder_patch_size
        sizes = {"decoder_hidden_size": decoder_hidden_size, "decoder_num_hidden_layers": decoder_num_hidden_layers}
        sizes |= {"decoder_num_attention_heads": decoder_num_attention_heads, "patch_size": patch_size}
        sizes |= {"decoder_intermediate_size": decoder_intermediate_size, "num_channels": num_channels}
        sizes |= {"image_size": image_size or patch_size * side}
        if encoder_config is None and encoder_type != "siglip2":  # which diffusers cannot build
            super().__init__(
                encoder_type=encoder_type,
                encoder_hidden_size=encoder_hidden_size,
                encoder_patch_size=encoder_patch_size,
                encoder_num_hidden_layers=encoder_num_hidden_layers,
                encoder_input_size=encoder_input_size,
                encoder_norm_mean=encoder_norm_mean,
                encoder_norm_std=encoder_norm_std,
                latents_mean=latents_mean,
                latents_std=latents_std,
                noise_tau=noise_tau,
                reshape_to_2d=reshape_to_2d,
                use_encoder_loss=use_encoder_loss,
                scaling_factor=scaling_factor,
                **sizes,
            )
        else:
            ModelMixin.__init__(self)
            mean, std = tuple(encoder_norm_mean or IMAGENET_MEAN), tuple(encoder_norm_std or IMAGENET_STD)
            if encoder_config is None:
                self.encoder = siglip_encoder(encoder_hidden_size, encoder_patch_size, encoder_num_hidden_layers)
            else:
                self.encoder = FoundationModel(build_backbone(encoder_config), mean, std, name="the encoder")
            self.decoder = RAEDecoder(hidden_size=encoder_hidden_size, num_patches=side**2, **sizes)
            self._keep_normalisation(mean, std, latents_mean, latents_std, encoder_input_size)
        self.register_to_config(latent_channels=encoder_hidden_size, sample_size=self.decoder.image_size)

    @classmethod
    def build(
        cls,
        foundation: FoundationModel,
        image_size: int = 256,
        patch_size: int = 16,
        hidden_size: int = 512,
        num_layers: int = 8,
        num_heads: int = 16,
    ) -> "RepresentationAutoencoder":
        """A tokenizer whose decoder is freshly initialised.

        Args:
            foundation: the encoder; it is copied.
            image_size: pixels along a side.
            patch_size: image pixels per latent position, along one side.
            hidden_size: width of the decoder.
            num_layers: of the decoder.
            num_heads: of the decoder's attention.

        Raises:
            InputError: the encoder has no patch for each latent position, or cannot be stored.
        """
        side = require_patch_grid(foundation, image_size, patch_size)
        sizes: dict[str, Any] = {
            "encoder_hidden_size": foundation.feature_dim,
            "encoder_patch_size": foundation.patch_size,
            "encoder_num_hidden_layers": len(foundation.blocks),
            "encoder_input_size": side * foundation.patch_size,
            "encoder_norm_mean": foundation.mean.flatten().tolist(),
            "encoder_norm_std": foundation.std.flatten().tolist(),
            "decoder_hidden_size": hidden_size,
            "decoder_num_hidden_layers": num_layers,
            "decoder_num_attention_heads": num_heads,
            "decoder_intermediate_size": 4 * hidden_size,
            "patch_size": patch_size,
            "image_size": image_size,
        }
        described = describe_backbone(foundation)
        if (encoder_type := diffusers_type(foundation, sizes)) is not None:
            model = cls(encoder_type=encoder_type, **sizes)
            take_weights(model.encoder, foundation.backbone)
        else:
            model = cls(encoder_config=described, **sizes)
            take_weights(model.encoder.backbone, foundation.backbone)
        return model

    @classmethod
    def _fetch(cls, origin: Any, subfolder: str | None, dtype: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
        """Load a model of the hub without the meta device, on which buffers outside the file would stay."""
        return super()._fetch(origin, subfolder, dtype, {**options, "low_cpu_mem_usage": False})

    @classmethod
    def check_before_building(cls, config: Mapping[str, Any], weights: Mapping[str, Tensor], source: Any) -> None:
        """Refuse a number of layers that no network has, and an encoder of its own without a description.

        Raises:
            InputError: names the field.
        """
        encoder = config.get("encoder_config")
        if encoder is None and any(name.startswith("encoder.backbone.") for name in weights):
            raise InputError(
                f"{source} lacks encoder_config, which describes the encoder whose weights are there. Restore the "
                "file that was saved with the weights."
            )
        nested = encoder if isinstance(encoder, dict) else {}
        layers = [
            (name, value) for name, value in (*config.items(), *nested.items()) if name.endswith("hidden_layers")
        ]
        for name, value in layers:
            if isinstance(value, int) and value > LAYERS_LIMIT:
                raise InputError(
                    f"{source} has {name} {value}, more than the limit of {LAYERS_LIMIT}. Restore the file that was "
                    "saved with the weights."
                )

    def to_json_string(self) -> str:
        """The configuration; where diffusers knows the encoder, under its name there and with the fields it knows."""
        text = super().to_json_string()
        return text if self.config.encoder_config is not None else plain_configuration(text, type(self).__name__)

    def train(self, mode: bool = True) -> "RepresentationAutoencoder":
        """Switch the decoder; the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the latents."""
        side = int(sqrt(self.decoder.num_patches))
        return side, side

    @property
    def downsampling_factor(self) -> int:
        """Image pixels per latent position, along one side."""
        return int(self.config.patch_size)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of encoder and decoder, which do almost all of the work."""
        return [*repeated_blocks(self.encoder), *self.decoder.decoder_layers]

    @property
    def encoding_parts(self) -> list[nn.Module]:
        """The networks that latents depend on."""
        return [self.encoder]

    @property
    def last_decoder_layer(self) -> nn.Parameter:
        """The linear map from tokens to pixels, where the adversarial gradient is measured."""
        return self.decoder.decoder_pred.weight

    def posterior(self, images: Tensor) -> CertainLatents:
        """The raw latents, as a distribution without width.

        Args:
            images: (B, 3, H, W) in [-1, 1], of the image size of the tokenizer.

        Raises:
            InputError: if the size does not fit.
        """
        side = self.config.sample_size
        if images.ndim != 4 or tuple(images.shape[2:]) != (side, side):
            raise InputError(
                f"Images of shape {tuple(images.shape)} do not fit this tokenizer: its decoder is made for images of "
                f"{side} x {side} pixels alone. Crop or resize them."
            )
        with torch.no_grad():
            parts = [self._raw_latents(part) for part in images.to(self.dtype).split(self._at_once(images, 1))]
        return CertainLatents(parts[0] if len(parts) == 1 else torch.cat(parts))

    def encode_raw_latents(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images in [-1, 1] to raw latents (B, C, h, w); there is nothing random about them."""
        return self.posterior(images).mean

    def decode_raw_latents(self, raw_latents: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) to images (B, 3, H, W), nominally in [-1, 1].

        Raises:
            InputError: they are on another grid.
        """
        if tuple(raw_latents.shape[2:]) != self.grid:
            raise InputError(
                f"Latents of shape {tuple(raw_latents.shape)} do not fit this tokenizer, whose decoder knows the "
                f"positions of a grid of {self.grid[0]} x {self.grid[1]} alone."
            )
        slices = raw_latents.to(self.dtype).split(self._at_once(raw_latents, self.downsampling_factor))
        parts = [self._images(part) for part in slices]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def bytes_per_image(self, pixels: int) -> int:
        """Memory that the activations of an image with so many pixels take at their most, without gradients."""
        config, tokens = self.config, pixels // self.downsampling_factor**2 + 1
        widest = 4 * max(config.encoder_hidden_size, config.decoder_hidden_size)
        return 4 * (ACTIVATIONS * tokens * widest + 2 * config.decoder_num_attention_heads * tokens**2)

    def _encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Normalised latents of images in [0, 1], as diffusers' `encode` gives them."""
        if self.config.encoder_config is None and self.config.encoder_type != "siglip2":
            return super()._encode(x, generator)
        return self._normalize_latents(self._features(2 * x - 1)) * self.config.scaling_factor

    def _features(self, images: Tensor) -> Tensor:
        """Features (B, C, h, w) of images in [-1, 1]."""
        if self.config.encoder_config is not None:
            return self.encoder(images, self.grid)
        pixels = self._resize_and_normalize(0.5 * images + 0.5)
        if self.config.encoder_type == "siglip2":
            tokens = self.encoder(pixels, interpolate_pos_encoding=True).last_hidden_state  # (B, N, C)
        else:
            patch = (self.config.encoder_patch_size,) if self.config.encoder_type == "mae" else ()
            tokens = self._encoder_forward_fn(self.encoder, pixels, *patch)
        return tokens.transpose(1, 2).unflatten(2, self.grid)

    def _raw_latents(self, images: Tensor) -> Tensor:
        features = self._features(images)
        if not self.normalises_positions:
            return features
        return self._normalize_latents(features) * self.config.scaling_factor

    def _images(self, raw_latents: Tensor) -> Tensor:
        features = raw_latents
        if self.normalises_positions:
            features = self._denormalize_latents(raw_latents / self.config.scaling_factor)
        patches = self.decoder(features.flatten(2).transpose(1, 2)).logits  # (B, N, p * p * 3)
        return 2 * self._denormalize_image(self.decoder.unpatchify(patches)) - 1

    def _fix_state_dict_keys_on_load(self, state_dict: dict[str, Tensor]) -> None:
        """Take weights under the names that earlier versions of `transformers` had."""
        state_dict.pop("decoder.decoder_pos_embed", None)  # computed; some published files hold it
        own = self.config.encoder_config is not None
        backbone, prefix = (self.encoder.backbone, "encoder.backbone.") if own else (self.encoder, "encoder.")
        rename_as_today(state_dict, backbone, prefix)
        super()._fix_state_dict_keys_on_load(state_dict)
