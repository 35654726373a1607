"""Published VA-VAE checkpoints: conversion to tokenizers of this package, and back.

Released files hold only the network. The published trainer's files also hold the losses' networks, the foundation
model and the projection to its features, which loading ignores.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alight.interop.torch_file import describe_weights, read_torch_file, select_weights, write_torch_file
from alight.models.pretrained import load_strictly
from alight.models.vavae import VAVAE
from alight.runtime.errors import InputError

# Published parts of a dotted name -> ours, replaced in this order. Decoder levels also count the other way round.
TOKENIZER_NAMES = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1": "mid_block.attentions.0",
    "down": "down_blocks",
    "up": "up_blocks",
    "block": "resnets",
    "attn": "attentions",
    "downsample": "downsamplers.0",
    "upsample": "upsamplers.0",
    "nin_shortcut": "conv_shortcut",
    "norm_out": "conv_norm_out",
    "norm": "group_norm",  # of an attention, as the following
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
# The order of the published network's parts; numbers count upwards.
PUBLISHED_ORDER = (
    *("encoder", "decoder", "quant_conv", "post_quant_conv"),
    *("conv_in", "down", "mid", "up", "norm_out", "conv_out"),
    *("block", "attn", "downsample", "upsample", "block_1", "attn_1", "block_2"),
    *("norm1", "conv1", "norm2", "conv2", "nin_shortcut", "conv"),
    *("norm", "q", "k", "v", "proj_out", "weight", "bias"),
)
TRAINING_ONLY = ("loss.", "foundation_model.", "linear_proj.")
NORM_NUM_GROUPS = 32  # of every published network; not visible in its weights
ATTENTION_CELLS = 16  # side of the grid on which the published network attends, for its nominal image size


def load_tokenizer(path: str | Path) -> VAVAE:
    """Read a published VA-VAE checkpoint into a tokenizer in eval mode.

    The file holds no statistics of latents; `load_latents_statistics` reads theirs, for `set_latents_statistics`.

    Args:
        path: a torch file with a state dict, bare or under `state_dict`, or a `.safetensors` file.

    Raises:
        InputError: the file is missing, damaged, unsafe or of another kind, or its network has no counterpart here.
    """
    return tokenizer_from_published(select_weights(read_torch_file(path), source=path), source=path).eval()


def tokenizer_from_published(published: Mapping[str, Tensor], *, source: Any = "this state dict") -> VAVAE:
    """Build the tokenizer that a published state dict belongs to, and load it strictly.

    Raises:
        InputError: a weight is missing, unexpected, of another shape or not finite.
    """
    config = infer_tokenizer_config(published, source=source)
    with torch.device("meta"):  # no memory and no random numbers for weights that will be replaced
        vae = VAVAE(**config)
    vae.to_empty(device="cpu")
    load_strictly(vae, convert_tokenizer_state_dict(published), source)
    return vae


def infer_tokenizer_config(published: Mapping[str, Tensor], *, source: Any = "this state dict") -> dict[str, Any]:
    """The arguments of `VAVAE` that a published state dict implies.

    Raises:
        InputError: this is not a VA-VAE, or its latent is wider or narrower than the network's own.
    """

    def size(name: str, axis: int = 0) -> int:
        if name not in published or published[name].dim() != 4:
            raise InputError(
                f"{source} is not a checkpoint of a VA-VAE: it has no {name!r} with 4 axes. "
                f"{describe_weights(published)}"
            )
        return int(published[name].shape[axis])

    size("encoder.down.0.block.0.conv1.weight")
    channels, embedded = size("post_quant_conv.weight"), size("post_quant_conv.weight", axis=1)
    if channels != embedded or size("quant_conv.weight", axis=1) != 2 * channels:
        raise InputError(
            f"{source} has latents of {embedded} channels between an encoder and a decoder made for {channels}; "
            "diffusers' AutoencoderKL, and so this package, has one number for both. Only checkpoints whose embed_dim "
            "equals z_channels can be converted."
        )
    levels = _indices(published, r"encoder\.down\.(\d+)\.")
    widths = tuple(size(f"encoder.down.{level}.block.0.conv1.weight") for level in levels)
    if any(width % NORM_NUM_GROUPS for width in widths):
        raise InputError(
            f"{source} has levels of {', '.join(map(str, widths))} channels, but the published network normalises "
            f"{NORM_NUM_GROUPS} groups of them; it was made by other code, or is damaged."
        )
    encoder_attention = _indices(published, r"encoder\.down\.(\d+)\.attn\.")
    decoder_attention = _indices(published, r"decoder\.up\.(\d+)\.attn\.")
    return {
        "in_channels": size("encoder.conv_in.weight", axis=1),
        "out_channels": size("decoder.conv_out.weight"),
        "down_block_types": tuple(f"{_attn(level in encoder_attention)}DownEncoderBlock2D" for level in levels),
        "up_block_types": tuple(f"{_attn(level in decoder_attention)}UpDecoderBlock2D" for level in reversed(levels)),
        "block_out_channels": widths,
        "layers_per_block": len(_indices(published, r"encoder\.down\.0\.block\.(\d+)\.")),
        "latent_channels": channels,
        "norm_num_groups": NORM_NUM_GROUPS,
        "sample_size": ATTENTION_CELLS * 2 ** min(encoder_attention, default=4),
        "scaling_factor": 1.0,
        "force_upcast": False,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in published,
    }


def convert_tokenizer_state_dict(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert published names and shapes to ours, without tensors for training only; unknown names are kept.

    A checkpoint trained without a variational posterior encodes to means alone, and the published code appends a
    log-variance of one. Here `quant_conv` does: it gets rows of zeros with a bias of one.
    """
    top_level = max(_indices(published, r"decoder\.up\.(\d+)\."), default=0)
    state = {}
    for name, value in published.items():
        if not name.startswith(TRAINING_ONLY):
            ours = _reverse_levels(_replace_parts(name, TOKENIZER_NAMES), top_level)
            is_matrix = ".attentions." in ours and value.dim() == 4
            state[ours] = value.flatten(1) if is_matrix else value  # (C, C, 1, 1) -> (C, C)
    weight, bias = state.get("quant_conv.weight"), state.get("quant_conv.bias")
    if weight is not None and bias is not None and weight.dim() == 4 and weight.shape[1] == 2 * weight.shape[0]:
        state["quant_conv.weight"] = torch.cat([weight, torch.zeros_like(weight)])  # (z, 2z, 1, 1) -> (2z, 2z, 1, 1)
        state["quant_conv.bias"] = torch.cat([bias, torch.ones_like(bias)])  # (z,) -> (2z,)
    return state


def published_tokenizer_state_dict(vae: VAVAE) -> dict[str, Tensor]:
    """The tokenizer's tensors under their published names, in published order and shapes; they share its memory.

    A `quant_conv` whose log-variance is the constant one becomes that of a checkpoint without it.

    Raises:
        InputError: the published network cannot have this configuration.
    """
    if vae.config.norm_num_groups != NORM_NUM_GROUPS or not vae.config.mid_block_add_attention:
        raise InputError(
            f"The published network has {NORM_NUM_GROUPS} groups in every normalisation and attention in its middle "
            f"blocks, but this tokenizer has norm_num_groups {vae.config.norm_num_groups} and mid_block_attention "
            f"{vae.config.mid_block_add_attention}, so the published code could not run it. Keep it in this format, "
            "or train one with those two settings."
        )
    names = {ours: published for published, ours in TOKENIZER_NAMES.items()}
    top_level = len(vae.config.block_out_channels) - 1
    published = {}
    for ours, value in vae.state_dict().items():
        is_matrix = ".attentions." in ours and value.dim() == 2
        name = _replace_parts(_reverse_levels(ours, top_level), names)
        published[name] = value[:, :, None, None] if is_matrix else value  # (C, C) -> (C, C, 1, 1)
    mean, log_variance = published["quant_conv.weight"].chunk(2)
    mean_bias, log_variance_bias = published["quant_conv.bias"].chunk(2)
    if not log_variance.any() and (log_variance_bias == 1).all():
        published |= {"quant_conv.weight": mean, "quant_conv.bias": mean_bias}
    return {name: published[name] for name in sorted(published, key=_place)}


def export_tokenizer(vae: VAVAE, path: str | Path) -> None:
    """Write a tokenizer as a published checkpoint, which the published code and `load_tokenizer` read.

    The statistics of its latents are not part of that file; see `export_latents_statistics`. It is written atomically.

    Raises:
        InputError: the published network cannot have this configuration, or the file cannot be written.
    """
    if vae.latent_space != "gaussian":
        raise InputError(
            "This tokenizer has latents on the sphere, which the published layout cannot record: whoever opened the "
            "file would decode latents that the decoder never saw. Share the folder itself instead."
        )
    state = published_tokenizer_state_dict(vae)
    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()
    }
    write_torch_file({"state_dict": weights}, path)


def _indices(published: Mapping[str, Tensor], pattern: str) -> list[int]:
    return sorted({int(match[1]) for name in published if (match := re.match(pattern, name))})


def _attn(attends: bool) -> str:
    return "Attn" if attends else ""


def _replace_parts(name: str, names: Mapping[str, str]) -> str:
    dotted = f".{name}."
    for old, new in names.items():
        dotted = dotted.replace(f".{old}.", f".{new}.")
    return dotted.strip(".")


def _reverse_levels(ours: str, top_level: int) -> str:
    """Published decoder levels count from the image, ours from the latent."""
    return re.sub(r"(?<=decoder\.up_blocks\.)\d+", lambda level: str(top_level - int(level[0])), ours)


def _place(name: str) -> list[int]:
    """The sort key of a published name."""
    return [int(part) if part.isdigit() else PUBLISHED_ORDER.index(part) for part in name.split(".")]
