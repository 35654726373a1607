"""Projectors from a tokenizer's latents to the features that they are aligned with, for training only.

Legend: B batch, C channels of the latent, D width of the features, h x w positions, N = h w, W width of attention.
"""

import torch
from torch import Tensor, nn

from alight.models.layers import GELUFeedForward, attention
from alight.models.position import Grid, rotary_table, rotate
from alight.options import LatentProjectorKind

HEAD_WIDTH = 32
MLP_RATIO = 4
NORM_EPS = 1e-6


class LatentBlock(nn.Module):
    """A transformer block over the grid of latents: z + attention(norm(z)), then the same with an MLP.

    The residual stream keeps the C channels of the latent, and attention and MLP are wider inside. Rotary positions
    tell queries and keys where they are, on a grid of any size.

    Args:
        latent_channels: C.
        width: W, a multiple of 32, the width of a head; the MLP has 4 W units.
    """

    def __init__(self, latent_channels: int, width: int) -> None:
        super().__init__()
        self.num_heads = width // HEAD_WIDTH
        self.norm_1 = nn.LayerNorm(latent_channels, eps=NORM_EPS)
        self.qkv = nn.Linear(latent_channels, 3 * width)
        self.proj = nn.Linear(width, latent_channels)
        self.norm_2 = nn.LayerNorm(latent_channels, eps=NORM_EPS)
        self.feed_forward = GELUFeedForward(latent_channels, MLP_RATIO * width)
        self._tables: dict[tuple[Grid, torch.device], Tensor] = {}

    def forward(self, latents: Tensor) -> Tensor:
        """Mix latents (B, C, h, w) over their positions, to the same shape."""
        grid = Grid(latents.shape[2], latents.shape[3])
        x = latents.flatten(2).transpose(1, 2)  # (B, N, C)
        x = x + self._attend(self.norm_1(x), grid)
        x = x + self.feed_forward(self.norm_2(x))
        return x.transpose(1, 2).unflatten(2, grid)

    def _attend(self, x: Tensor, grid: Grid) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # (B, N, heads, 32) each
        if (grid, x.device) not in self._tables:  # a copy to a device in every step would wait for it
            self._tables[grid, x.device] = rotary_table(HEAD_WIDTH, grid).to(x.device)
        rotary = self._tables[grid, x.device]
        return self.proj(attention(rotate(query, rotary), rotate(key, rotary), value))


class BlockProjector(nn.Module):
    """A transformer block and then a 1x1 convolution without bias, in place of the convolution alone.

    Send-VAE (Page et al., arXiv 2601.05823) aligns through such a mapper, so that latents need not be linear in the
    features. Its sizes and its positions are this project's own choice. With a block that adds nothing it is the
    linear projector.

    Args:
        latent_channels: C.
        feature_dim: D.
        width: of attention in the block.
    """

    def __init__(self, latent_channels: int, feature_dim: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(latent_channels, feature_dim, 1, bias=False)
        self.block = LatentBlock(latent_channels, width)

    def forward(self, latents: Tensor) -> Tensor:
        """Project latents (B, C, h, w) to (B, D, h, w)."""
        projected: Tensor = self.linear(self.block(latents))
        return projected


def make_latent_projector(kind: LatentProjectorKind, inputs: int, outputs: int, width: int = 256) -> nn.Module:
    """Build a projector with fresh weights.

    Args:
        kind: "linear", a 1x1 convolution without bias as published, or "block", a transformer block before it.
        inputs: channels of what is projected.
        outputs: channels of the other side.
        width: of attention in the block.
    """
    if kind == "block":
        return BlockProjector(inputs, outputs, width)
    return nn.Conv2d(inputs, outputs, 1, bias=False)
