"""The sizes and options of a LightningDiT: which fit each other, and how a latent is cut into tokens."""

from typing import Any, get_args

from torch import Tensor

from alight.models.position import Grid
from alight.options import FeedForwardKind, Norm
from alight.runtime.errors import InputError


def token_grid(sample_size: int | tuple[int, int], patch_size: int) -> Grid:
    """Height and width of a latent in tokens."""
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    if min(height, width) < 1 or height % patch_size or width % patch_size:
        raise InputError(f"A latent of {height}x{width} cannot be cut into patches of {patch_size}x{patch_size}.")
    return Grid(height // patch_size, width // patch_size)


def check_config(config: Any) -> None:
    """Refuse sizes that do not fit each other and options that do not exist."""
    for name in ("in_channels", "hidden_size", "num_layers", "num_heads", "patch_size", "num_classes"):
        if config[name] < 1:
            raise InputError(f"{name} is {config[name]}, but must be at least 1.")
    if config.hidden_size % (4 * config.num_heads):
        raise InputError(
            f"hidden_size {config.hidden_size} must be a multiple of 4 * num_heads = {4 * config.num_heads}: a head "
            "holds pairs of channels for the row and for the column."
        )
    if not 0 <= config.class_dropout_prob < 1:
        raise InputError(f"class_dropout_prob is {config.class_dropout_prob}, but must be in [0, 1).")
    for option, kind in (("norm", Norm), ("feed_forward", FeedForwardKind)):
        if config[option] not in get_args(kind):
            raise InputError(f"{option} is {config[option]!r}; choose one of {', '.join(get_args(kind))}.")
    check_auxiliary_block(config.auxiliary_block, config.num_layers)
    if config.head is not None and config.interval_embedding:
        raise InputError(
            "A transformer with a wide head has no interval embedding: its head would not be told the length of a "
            "step. Leave head or interval_embedding out."
        )


def check_auxiliary_block(block: Any, num_layers: int) -> None:
    """Refuse an auxiliary output that is not between the first and the last block; None is none at all.

    Raises:
        InputError: says which blocks there are to choose from.
    """
    if block is None:
        return
    if num_layers < 2:
        raise InputError(
            f"auxiliary_block is {block}, but an auxiliary output needs a model of at least two blocks, and this one "
            f"has {num_layers}. Leave auxiliary_block out, or take more blocks."
        )
    if isinstance(block, bool) or not isinstance(block, int) or not 1 <= block < num_layers:
        raise InputError(
            f"auxiliary_block is {block}, but must be a whole number from 1 to {num_layers - 1}: the auxiliary output "
            f"follows a block before the last of the {num_layers}."
        )


def check_inputs(x: Tensor, t: Tensor, class_labels: Tensor, expected: tuple[int, int, int]) -> None:
    """Refuse latents that are not of the expected shape (C, H, W), or another number of times or labels.

    Raises:
        InputError: names both shapes.
    """
    if x.shape[1:] != expected:
        raise InputError(
            f"This model takes latents of shape (batch, {', '.join(map(str, expected))}), not {tuple(x.shape)}; "
            "take latents of the tokenizer it was trained with, or build the model with that sample_size and "
            "in_channels."
        )
    if t.shape != x.shape[:1] or class_labels.shape != x.shape[:1]:
        raise InputError(
            f"{len(x)} latents need as many times and class labels, each of shape ({len(x)},), not "
            f"{tuple(t.shape)} and {tuple(class_labels.shape)}."
        )
