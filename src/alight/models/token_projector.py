"""Projectors from a transformer's hidden tokens to the width of a foundation model's features, for training only.

Legend: B batch, N tokens, row by row of a grid, D width of the transformer, E width of the features.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from alight.models.position import Grid
from alight.options import TokenProjectorKind


class TokenMLP(nn.Module):
    """Three linear layers with SiLU between them, for each token alone (REPA, arXiv 2410.06940)."""

    def __init__(self, width: int, feature_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)
        self.linear_3 = nn.Linear(hidden_size, feature_dim)
        for layer in (self.linear_1, self.linear_2, self.linear_3):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project tokens (B, N, D) to (B, N, E)."""
        return self.linear_3(F.silu(self.linear_2(F.silu(self.linear_1(tokens)))))


class TokenConvolution(nn.Module):
    """A convolution over the grid of tokens, with zeros around it (iREPA, arXiv 2512.10794)."""

    def __init__(self, width: int, feature_dim: int, grid: Grid, kernel_size: int = 3) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(width, feature_dim, kernel_size, padding=kernel_size // 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project tokens (B, N, D) to (B, N, E)."""
        features = self.conv(tokens.transpose(1, 2).unflatten(2, self.grid))  # (B, E, h, w)
        return features.flatten(2).transpose(1, 2)


def make_token_projector(
    kind: TokenProjectorKind, width: int, feature_dim: int, grid: Grid, hidden_size: int = 2048, kernel_size: int = 3
) -> nn.Module:
    """Build a projector with fresh weights.

    Args:
        kind: "mlp", three layers of `hidden_size` units for each token alone, or "conv", a single convolution.
        width: D of the transformer.
        feature_dim: E of the foundation model.
        grid: of the tokens, which the convolution needs.
        hidden_size: of the multi-layer perceptron.
        kernel_size: of the convolution, odd.
    """
    if kind == "conv":
        return TokenConvolution(width, feature_dim, grid, kernel_size)
    return TokenMLP(width, feature_dim, hidden_size)
