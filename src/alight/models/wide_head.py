"""A wide head: the last blocks of a transformer at a width of their own (DDT, 2504.05741; RAE, arXiv 2510.11690).

The output layer of a transformer of width D maps every token to its n = p p C numbers, so that its outputs lie in D
dimensions. Noise has all n, which a latent with more channels than D can therefore not be separated from. A few blocks
of a width above n at the end are enough; everything before may stay narrow.

Legend: B batch, N tokens, C latent channels, p patch size, D width of the transformer, W width of the head.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alight.models.layers import LightningDiTBlock
from alight.models.position import Grid, rotary_table
from alight.options import suggestion
from alight.runtime.errors import InputError

MOST_LAYERS, LARGEST_WIDTH = 1_000, 65_536  # more are misprints


class HeadSizes(NamedTuple):
    """The size of a wide head; 2 blocks of width 2048 as published."""

    num_layers: int
    hidden_size: int
    num_heads: int


def head_sizes(head: Any) -> HeadSizes:
    """Read the sizes of a wide head from the arguments of a model.

    Args:
        head: a mapping with the keys `num_layers`, `hidden_size` and `num_heads`.

    Raises:
        InputError: a size is missing, unknown or impossible, or the width cannot be divided among the attention heads.
    """
    names = HeadSizes._fields
    if not isinstance(head, Mapping) or set(head) != set(names):
        given = head if isinstance(head, Mapping) else {}
        unknown = next((name for name in given if name not in names), None)
        meant = "" if unknown is None else suggestion(str(unknown), names, cutoff=0.6)
        raise InputError(f"head is {head!r}, but must be null, or give {', '.join(names)} and nothing else.{meant}")
    for name, most in zip(names, (MOST_LAYERS, LARGEST_WIDTH, LARGEST_WIDTH), strict=True):
        value = head[name]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise InputError(f"head.{name} is {value!r}, but must be a whole number from 1 to {most:,}.")
    sizes = HeadSizes(**head)
    if sizes.hidden_size % (4 * sizes.num_heads):
        raise InputError(
            f"head.hidden_size {sizes.hidden_size} must be a multiple of 4 * head.num_heads = {4 * sizes.num_heads}: "
            "an attention head holds pairs of channels for the row and for the column."
        )
    return sizes


class WideHead(nn.Module):
    """Blocks over an embedding of the noisy latent of their own, modulated token by token by the transformer's tokens.

    The embedding gets no fixed positions, as published; queries and keys are rotated.

    Args:
        sizes: of the head.
        patch_width: numbers per token n, p p C.
        condition_width: width D of the transformer.
        num_tokens: N.
        rope: rotate queries and keys.
        block: the arguments of a `LightningDiTBlock` after its two sizes.
    """

    rope_table: Tensor | None
    _gradient_checkpointing_func: Callable[..., Tensor]  # set by diffusers

    def __init__(
        self, sizes: HeadSizes, patch_width: int, condition_width: int, num_tokens: int, rope: bool, *block: Any
    ) -> None:
        super().__init__()
        self.sizes, self.gradient_checkpointing, width = sizes, False, sizes.hidden_size
        self.patch_embed = nn.Linear(patch_width, width)
        self.condition_proj = nn.Linear(condition_width, width) if condition_width != width else None
        self.blocks = nn.ModuleList(LightningDiTBlock(width, sizes.num_heads, *block) for _ in range(sizes.num_layers))
        table = torch.empty(num_tokens, width // sizes.num_heads // 2, 2) if rope else None  # (N, K / 2, 2)
        self.register_buffer("rope_table", table, persistent=False)

    def reset_positions(self, grid: Grid, trained_grid: Grid) -> None:
        """Compute the angles again, see `LightningDiT.reset_positions`."""
        if self.rope_table is not None:
            head_width = self.sizes.hidden_size // self.sizes.num_heads
            self.rope_table.copy_(rotary_table(head_width, grid, trained_grid))

    def forward(self, patches: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Everything between the transformer's last block and the output layer.

        Args:
            patches: the noisy latent in tokens, (B, N, C p p).
            condition: silu of the transformer's tokens and its embedded time, (B, N, D).

        Returns:
            The tokens and what modulates the output layer, both (B, N, W).
        """
        wide = self.patch_embed.weight.dtype  # also of the residual stream, under autocast too
        tokens = self.patch_embed(patches.to(wide)).to(wide)
        if self.condition_proj is not None:
            condition = self.condition_proj(condition)
        condition = F.silu(condition)  # a second time, as published
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._gradient_checkpointing_func(block, tokens, condition, self.rope_table)
            else:
                tokens = block(tokens, condition, self.rope_table)
        return tokens, condition
