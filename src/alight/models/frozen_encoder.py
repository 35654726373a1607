"""A vision transformer as the encoder of a tokenizer: fitted to its grid, stored with it, built again from there."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderRAE
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, SiglipVisionConfig, SiglipVisionModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from alight.models.foundation import FoundationModel
from alight.models.foundation_loading import quiet_transformers
from alight.runtime.errors import InputError

FAMILY = "model_type"  # of a configuration of `transformers`
_OF_A_FILE = ("id2label", "label2id", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
DIFFUSERS_CLASS = "AutoencoderRAE"
OWN_FIELDS = ("encoder_config", "channel_mean", "channel_std", "latent_channels", "sample_size")
DIFFUSERS_TYPES = {"dinov2_with_registers": "dinov2", "vit_mae": "mae"}  # family -> its name in `AutoencoderRAE`
HEAD_WIDTH = 64  # of every encoder there
SIGLIP_SIZE = 256  # pixels along a side of its images there
POOLER = "pooler"  # a head for the class token, which no feature depends on
_OF_TRAINING = ("mask_ratio", "norm_pix_loss", "initializer_range")


def describe_backbone(foundation: FoundationModel) -> dict[str, Any]:
    """The configuration that the network of a foundation model is built from, as JSON has it.

    Raises:
        InputError: it is no model of `transformers`.
    """
    config: Any = foundation.backbone.config
    if not hasattr(config, "to_json_string"):
        raise InputError(
            f"'{foundation.name}' cannot become the encoder of a tokenizer, which is stored with its encoder: only "
            "models of transformers can be stored. Give a folder or hub id of transformers, such as "
            "facebook/dinov2-with-registers-base."
        )
    described: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in described.items() if name not in _OF_A_FILE}


def build_backbone(described: dict[str, Any]) -> nn.Module:
    """The network of that configuration, with random weights."""
    settings = dict(described)
    with quiet_transformers():
        model: nn.Module = AutoModel.from_config(AutoConfig.for_model(settings.pop(FAMILY), **settings))
    return model


def siglip_encoder(hidden_size: int, patch_size: int, num_layers: int) -> nn.Module:
    """The SigLIP2 encoder of `AutoencoderRAE`, which diffusers 0.42 cannot build with the models of transformers 5."""
    config = SiglipVisionConfig(
        hidden_size=hidden_size,
        patch_size=patch_size,
        image_size=SIGLIP_SIZE,
        num_attention_heads=hidden_size // HEAD_WIDTH,
        num_hidden_layers=num_layers,
    )
    model = SiglipVisionModel(config)
    model.post_layernorm.weight = model.post_layernorm.bias = None  # as there: the last norm is not affine
    return model.requires_grad_(False)


def take_weights(backbone: nn.Module, given: nn.Module) -> None:
    """Copy the weights that features depend on; a pooler, which may be random, becomes zero.

    Raises:
        InputError: the networks differ.
    """
    weights, own = given.state_dict(), backbone.state_dict()
    missing = [name for name in own if POOLER not in name and name not in weights]
    if missing or any(own[name].shape != weights[name].shape for name in own if POOLER not in name):
        raise InputError(
            f"The encoder cannot be built again from its configuration ({type(given).__name__}, "
            f"{', '.join(missing[:3]) or 'other shapes'}), so it cannot be stored. Give another foundation model."
        )
    for name, value in own.items():
        if POOLER in name:
            value.zero_()
        else:
            value.copy_(weights[name])


def same_network(one: Any, other: Any) -> bool:
    """Tell if two vision transformers differ in nothing but their weights; heads and training are not compared."""
    configs = [json.loads(each.config.to_json_string(use_diff=False)) for each in (one, other)]
    first, second = ({name: value for name, value in each.items() if _counts(name)} for each in configs)
    return first == second


def _counts(name: str) -> bool:
    return name not in (*_OF_A_FILE, *_OF_TRAINING) and not name.startswith(("decoder_", "out_", "stage_"))


def rename_as_today(weights: dict[str, Tensor], backbone: Any, prefix: str) -> None:
    """Give weights of the encoder, in place, the names that the installed `transformers` has for them.

    Files hold the names of the version that wrote them; `transformers` knows what became of each.
    """
    own = backbone.state_dict()
    known = [each for each in get_model_conversion_mapping(backbone) if isinstance(each, WeightRenaming)]
    for name in [name for name in weights if name.startswith(prefix)]:
        stored = name.removeprefix(prefix)
        today, _ = rename_source_key(stored, known, [], backbone.base_model_prefix, own)
        if stored not in own and today in own:
            weights[f"{prefix}{today}"] = weights.pop(name)


def require_patch_grid(foundation: FoundationModel, image_size: int, patch_size: int) -> int:
    """The side of the latent grid, where the encoder has a patch for each of its positions.

    Raises:
        InputError: it has not.
    """
    side, rest = divmod(image_size, patch_size)
    if rest or not side:
        raise InputError(
            f"Images of {image_size} pixels do not divide into latent positions of {patch_size} pixels. Set "
            "frozen_encoder.patch_size, or images.size."
        )
    plan = foundation.describe((side, side), (image_size, image_size))
    if plan.resamples_features:
        height = plan.patch_grid[0]
        fitting = f"frozen_encoder.patch_size {image_size // height}" if image_size % height == 0 else "images.size"
        raise InputError(
            f"The frozen encoder '{foundation.name}' takes images of {plan.input_size[0]} pixels alone and gives "
            f"{height} x {height} features of them, but images of {image_size} pixels with {patch_size} pixels per "
            f"latent have {side} x {side} positions. Latents are the features themselves, so the grids must be equal: "
            f"set {fitting}, or take an encoder for any size, such as DINOv2."
        )
    return side


def diffusers_type(foundation: FoundationModel, sizes: Mapping[str, Any]) -> str | None:
    """The name by which `AutoencoderRAE` builds exactly this encoder from these sizes; None if it does not."""
    name = DIFFUSERS_TYPES.get(foundation.family)
    config: Any = foundation.backbone.config
    if name is None or foundation.feature_dim != HEAD_WIDTH * config.num_attention_heads:
        return None
    with torch.device("meta"):
        built = AutoencoderRAE(encoder_type=name, **sizes).encoder
    return name if same_network(foundation.backbone, built) else None


def plain_configuration(text: str, own_name: str) -> str:
    """A configuration in JSON under the name of diffusers' class, without the fields that it does not know."""
    values = json.loads(text.replace(f'"{own_name}"', f'"{DIFFUSERS_CLASS}"'))
    kept = {
        name: value
        for name, value in values.items()
        if name not in OWN_FIELDS or name.startswith("channel_") and value
    }
    return json.dumps(kept, indent=2, sort_keys=True) + "\n"
