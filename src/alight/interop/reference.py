"""Published LightningDiT checkpoints: conversion to models of this package, and back.

The trainer of the published code writes a torch file with the entries `model`, `ema`, `opt` and `config`; released
files hold fewer. The keys of `model` carry the prefix `module.` after a run on several GPUs.
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from alight.interop.latents import LatentsStatistics, export_latents_statistics, load_latents_statistics
from alight.interop.tokenizer import (
    convert_tokenizer_state_dict,
    export_tokenizer,
    infer_tokenizer_config,
    load_tokenizer,
    published_tokenizer_state_dict,
    tokenizer_from_published,
)
from alight.interop.torch_file import describe_weights, read_torch_file, select_weights, write_torch_file
from alight.interop.transformer_files import (
    auxiliary_output,
    count_blocks,
    recorded_auxiliary_block,
    recorded_head,
    recorded_learn_sigma,
    refuse_other_transformers,
)
from alight.interop.wide_head import (
    HEAD,
    implied_head,
    refuse_second_output,
    with_plain_names,
    with_published_names,
)
from alight.models.lightning_dit import LightningDiT
from alight.models.pretrained import load_strictly
from alight.options import PositionResize
from alight.runtime.errors import InputError

__all__ = [
    "LatentsStatistics",
    "WarmStart",
    "convert_tokenizer_state_dict",
    "convert_transformer_state_dict",
    "export_latents_statistics",
    "export_tokenizer",
    "export_transformer",
    "infer_tokenizer_config",
    "infer_transformer_config",
    "load_latents_statistics",
    "load_tokenizer",
    "load_transformer",
    "published_state_dict",
    "published_tokenizer_state_dict",
    "tokenizer_from_published",
    "transformer_from_published",
    "warm_start_transformer",
]

# Published name -> ours, for the parts of a key that differ; the first match in this order is taken.
TRANSFORMER_NAMES = {
    "x_embedder.proj": "patch_embed",
    "t_embedder.mlp.0": "time_embed.linear_1",
    "t_embedder.mlp.2": "time_embed.linear_2",
    "t_embedder.W": "time_embed.frequencies",  # of a wide head alone, as is the next
    "s_projector": "wide_head.condition_proj",
    "y_embedder.embedding_table": "class_embed",
    "mlp.w12": "feed_forward.gate_up",
    "mlp.w3": "feed_forward.down",
    "mlp.fc1": "feed_forward.linear_1",
    "mlp.fc2": "feed_forward.linear_2",
    "final_layer_xr.norm_final": "auxiliary_layer.norm",
    "final_layer_xr.linear": "auxiliary_layer.proj",
    "final_layer_xr.adaLN_modulation.1": "auxiliary_layer.modulation",
    "final_layer.norm_final": "output_layer.norm",
    "final_layer.linear": "output_layer.proj",
    "final_layer.adaLN_modulation.1": "output_layer.modulation",
    "adaLN_modulation.1": "modulation",
}
PATCH_WEIGHTS = ("patch_embed.weight", f"{HEAD}patch_embed.weight")
ROTARY_TABLES = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")  # here a consequence of the configuration


class WarmStart(NamedTuple):
    """The result of a warm start, in published names."""

    copied: list[str]
    partly_copied: list[str]
    kept: list[str]
    unused: list[str]


def load_transformer(
    path: str | Path,
    *,
    weights: Literal["ema", "model"] | None = None,
    sample_size: int | tuple[int, int] | None = None,
    positions: PositionResize | None = None,
    **config: Any,
) -> LightningDiT:
    """Read a published checkpoint into a model in eval mode.

    Args:
        path: a `.pt` file in the trainer's layout or with a bare state dict, or a `.safetensors` file.
        weights: the entry to take; None takes `ema` if the file has it, as published sampling does.
        sample_size: height and width of the latents; None is the file's own, assumed to be square.
        positions: treatment of a `sample_size` other than the file's, see `LightningDiT.resized`. None refuses it.
        **config: arguments of `LightningDiT` that override those of the file; `num_heads` if the file does not tell,
            `auxiliary_block` for weights with an auxiliary output (Internal Guidance), unless the file tells it, and
            `head` for a wide head (RAE) whose sizes its weights do not tell.

    Raises:
        InputError: the file is missing, damaged, unsafe or of another kind, or its weights do not fit the model.
    """
    contents = read_torch_file(path)
    state = select_weights(contents, weights, source=path)
    config.setdefault("learn_sigma", recorded_learn_sigma(contents))
    if config.get("auxiliary_block") is None:
        config["auxiliary_block"] = recorded_auxiliary_block(contents, state)
    if config.get("head") is None:
        config["head"] = recorded_head(contents)
    if sample_size is None or positions is None:
        return transformer_from_published(state, source=path, sample_size=sample_size, **config).eval()
    return transformer_from_published(state, source=path, **config).resized(sample_size, positions).eval()


def transformer_from_published(
    published: Mapping[str, Tensor], *, source: Any = "this state dict", **config: Any
) -> LightningDiT:
    """Build the model that a published state dict belongs to, and load it strictly.

    Args:
        published: tensors under their published names.
        source: what an error message names as the origin.
        **config: arguments of `LightningDiT` that override those of the state dict; None counts as not given.

    Raises:
        InputError: a weight is missing, unexpected, of another shape or not finite; or these may be the weights of a
            DiT or SiT, see `refuse_other_transformers`.
    """
    given = {name: value for name, value in config.items() if value is not None}
    published = with_plain_names(published, given.get("head"), source)
    if "learn_sigma" not in given:
        refuse_other_transformers(published, source)
    known = ("num_heads", "sample_size", "class_dropout_prob", "auxiliary_block", "head")
    hints = {name: given[name] for name in known if name in given}
    implied = infer_transformer_config(published, source=source, **hints)
    with torch.device("meta"):  # no memory and no random numbers for weights that will be replaced
        model = LightningDiT(**{**implied, **given})
    model.to_empty(device="cpu")
    model.reset_positions()
    stored_positions = published.get("pos_embed")
    if stored_positions is None:  # fixed, so that it can be computed
        published = {**published, "pos_embed": model.pos_embed.clone()}
    elif stored_positions.shape[1] != model.pos_embed.shape[1]:
        raise InputError(
            f"{source} was trained with {stored_positions.shape[1]} positions, but sample_size "
            f"{model.config.sample_size} has {model.pos_embed.shape[1]}. Leave sample_size out, or resize the "
            "positions: load_transformer(..., positions='interpolate')."
        )
    load_strictly(model, convert_transformer_state_dict(published), source)
    for prefix, own in _rotary_tables(model).items():
        stored = [published[prefix + name] for name in ROTARY_TABLES if prefix + name in published]
        if len(stored) == len(ROTARY_TABLES):
            _adopt_rotary_table(own, stored, source)
    return model


def convert_transformer_state_dict(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert published names and shapes to ours, without the rotary tables; unknown names are kept."""
    state = {}
    for name, value in with_plain_names(published).items():
        if name.removeprefix(HEAD) not in ROTARY_TABLES:
            ours = _rename(name, TRANSFORMER_NAMES)
            state[ours] = value.flatten(1) if ours in PATCH_WEIGHTS else value  # (D, C, p, p) -> (D, C p p)
    return state


def published_state_dict(model: LightningDiT) -> dict[str, Tensor]:
    """The model's tensors under their published names, in published order and shapes; weights share its memory.

    Those of a wide head are in the layout of RAE, in an order of our own, and its output layer is a negated copy.

    Raises:
        InputError: the model has an interval embedding, or a wide head and an auxiliary output, for which there is no
            published layout.
    """
    if model.has_interval_embedding:
        raise InputError(
            "The published layout has no interval embedding, which this transformer has (average velocities). Keep it "
            "in the folder format of this package."
        )
    names = {ours: published for published, ours in TRANSFORMER_NAMES.items()}
    patch = model.config.patch_size
    published = {}
    for ours, value in model.state_dict().items():
        if ours in PATCH_WEIGHTS:
            value = value.unflatten(1, (-1, patch, patch))  # (D, C p p) -> (D, C, p, p)
        published[_rename(ours, names)] = value
        if ours == "class_embed.weight":  # the tables' place in the published order
            for prefix, table in _rotary_tables(model).items():
                parts = () if table is None else table.repeat_interleave(2, dim=1).unbind(-1)  # (N, K) each
                published |= {prefix + name: part for name, part in zip(ROTARY_TABLES, parts, strict=False)}
    if model.wide_head is None:
        return published
    refuse_second_output(model.has_auxiliary_output)
    return with_published_names(published, len(model.blocks))


def export_transformer(model: LightningDiT, path: str | Path) -> None:
    """Write a model as a published checkpoint, which the published sampling script and `load_transformer` read.

    The entries `ema` and `model` are the same weights; `config` holds the arguments of `LightningDiT`. The file is
    written atomically.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in published_state_dict(model).items()}
    write_torch_file({"model": weights, "ema": weights, "config": {"model": model.arguments}}, path)


def warm_start_transformer(
    model: LightningDiT, published: Mapping[str, Tensor], shared_channels: int = 16
) -> WarmStart:
    """Start a model from a checkpoint of other shapes, in place, by the rule of the published trainer.

    Tensors of equal shape are copied. A patch projection for another number of latent channels becomes zero except
    for the first `shared_channels` input channels, which are copied. Everything else keeps its value.

    Args:
        model: the model to be trained.
        published: tensors under their published names.
        shared_channels: input channels that both latents have in common.

    Raises:
        InputError: the model has a wide head, which the published trainer does not know.
    """
    if model.wide_head is not None:
        raise InputError("The published warm start knows no wide head; start such a model with init_from.")
    done = WarmStart([], [], [], [])
    own = published_state_dict(model)
    with torch.no_grad():
        for name, target in own.items():
            source = published.get(name)
            if name in ROTARY_TABLES:
                continue
            if source is not None and source.shape == target.shape:
                target.copy_(source)
                done.copied.append(name)
            elif source is not None and name == "x_embedder.proj.weight" and _same_but_channels(source, target):
                shared = min(shared_channels, source.shape[1], target.shape[1])
                target.zero_()[:, :shared] = source[:, :shared].to(target)
                done.partly_copied.append(name)
            else:
                done.kept.append(name)
    done.unused.extend(name for name in published if name not in own)
    return done


def _shape_of(published: Mapping[str, Tensor], name: str, axes: int = 2, *, source: Any) -> tuple[int, ...]:
    """The shape of a tensor that every checkpoint of a LightningDiT has."""
    if name in published and published[name].dim() == axes:
        return tuple(published[name].shape)
    if "x_embedder.proj.weight" in published and "blocks.0.attn.qkv.weight" in published:
        has = f"{published[name].dim()} axes instead of {axes}" if name in published else "is missing"
        raise InputError(
            f"{source} is an incomplete checkpoint of a LightningDiT: its {name!r} {has}. Get a complete one."
        )
    raise InputError(
        f"{source} is not a checkpoint of a LightningDiT: it has no {name!r} with {axes} axes. "
        f"{describe_weights(published)}"
    )


def infer_transformer_config(
    published: Mapping[str, Tensor],
    *,
    num_heads: int | None = None,
    sample_size: int | tuple[int, int] | None = None,
    class_dropout_prob: float = 0.1,
    auxiliary_block: int | None = None,
    head: Mapping[str, int] | None = None,
    source: Any = "this state dict",
) -> dict[str, Any]:
    """The arguments of `LightningDiT` that a published state dict implies.

    Args:
        published: tensors under their published names.
        num_heads: required if neither rotary tables nor query norms tell the width of a head.
        sample_size: required if the latents are not square.
        class_dropout_prob: 0 = there is no null class, and each row of the label table is a class.
        auxiliary_block: required if there is an auxiliary output, since its weights do not tell what block it follows.
        head: sizes of a wide head, required where its weights do not tell them.
        source: what an error message names as the origin.

    Raises:
        InputError: this is not a LightningDiT, or `num_heads`, `sample_size` or `auxiliary_block` is needed or wrong.
    """
    published = with_plain_names(published, head, source)
    shape = partial(_shape_of, published, source=source)
    empty = next((name for name, value in published.items() if not value.numel()), None)
    if empty is not None:
        raise InputError(f"{source} is not a checkpoint of a LightningDiT: {empty!r} is empty. Get a complete one.")
    hidden_size, in_channels, patch_size, _ = shape("x_embedder.proj.weight", axes=4)
    gated = "blocks.0.mlp.w12.weight" in published
    inner_size = shape("blocks.0.mlp.w3.weight" if gated else "blocks.0.mlp.fc2.weight")[1]
    q_norm, table = published.get("blocks.0.attn.q_norm.weight"), published.get("feat_rope.freqs_cos")
    if sample_size is None:  # both are fixed, and either gives the number of positions
        num_tokens = (
            len(table) if table is not None and "pos_embed" not in published else shape("pos_embed", axes=3)[1]
        )
    return {
        "sample_size": sample_size or _square_size(num_tokens, patch_size, source),
        "in_channels": in_channels,
        "hidden_size": hidden_size,
        "num_layers": count_blocks(published, source),
        "num_heads": _num_heads(hidden_size, q_norm if table is None else table, source)
        if num_heads is None
        else num_heads,
        "patch_size": patch_size,
        "mlp_ratio": _mlp_ratio(hidden_size, inner_size, gated),
        "num_classes": shape("y_embedder.embedding_table.weight")[0] - (class_dropout_prob > 0),
        "class_dropout_prob": class_dropout_prob,
        "norm": "rms_norm" if "final_layer.norm_final.weight" in published else "layer_norm",
        "feed_forward": "swiglu" if gated else "gelu",
        "rope": table is not None,
        "qk_norm": q_norm is not None,
        "adaln_shift": shape("blocks.0.adaLN_modulation.1.weight")[0] == 6 * hidden_size,
        "learn_sigma": shape("final_layer.linear.weight")[0] == 2 * in_channels * patch_size**2,
        **auxiliary_output(published, auxiliary_block, source),
        **implied_head(published, head, source),
    }


def _num_heads(hidden_size: int, of_a_head: Tensor | None, source: Any) -> int:
    """The number of attention heads, from a tensor whose last axis is the width of one."""
    if of_a_head is None:
        raise InputError(
            f"{source} does not tell its number of attention heads (it has neither rotary positions nor query norms); "
            "give num_heads, unless these are weights of a SiT or DiT, which cannot be sampled as a LightningDiT."
        )
    return hidden_size // of_a_head.shape[-1]


def _square_size(num_tokens: int, patch_size: int, source: Any) -> int:
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise InputError(f"{source} has {num_tokens} positions, not a square; give sample_size=(height, width).")
    return side * patch_size


def _mlp_ratio(hidden_size: int, inner_size: int, gated: bool) -> float:
    """A ratio that gives `inner_size`: the usual 4 if it does, else one in the middle of those that do."""
    if inner_size == int((2 / 3 if gated else 1) * 4 * hidden_size):
        return 4.0
    whole_size = int(1.5 * inner_size) + 1 if gated else inner_size  # before SwiGLU's 2/3
    return (whole_size + 0.5) / hidden_size


def _same_but_channels(a: Tensor, b: Tensor) -> bool:
    return a.shape[0] == b.shape[0] and a.shape[2:] == b.shape[2:]


def _rename(name: str, names: Mapping[str, str]) -> str:
    part = next((part for part in names if part in name), None)
    return name.replace(part, names[part]) if part else name


def _rotary_tables(model: LightningDiT) -> dict[str, Tensor | None]:
    """The angles of the model, or None without, by the prefix of their published names."""
    return {"": model.rope_table} | ({} if model.wide_head is None else {HEAD: model.wide_head.rope_table})


def _adopt_rotary_table(own: Tensor | None, tables: list[Tensor], source: Any) -> None:
    """Take the stored angles, which equal the computed ones except for rounding."""
    stored = torch.stack([table[:, ::2] for table in tables], dim=-1)  # (N, K / 2, 2)
    precision = max(torch.finfo(table.dtype).eps for table in tables) if stored.is_floating_point() else 0.0
    fits = own is not None and own.shape == stored.shape
    if own is None or not fits or not torch.allclose(own, stored.to(own), rtol=0, atol=max(1e-4, precision)):
        raise InputError(
            f"{source} has rotary positions for another grid, or with another period, than this model; take its "
            "own sample_size, num_heads and rope."
        )
    if precision < 1e-4:  # angles in half precision were rounded after they were computed
        own.copy_(stored)
