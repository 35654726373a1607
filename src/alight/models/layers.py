"""A transformer block and its parts: attention, feed-forward networks, normalisation and modulation.

Legend: B batch, N tokens, D model width, H heads, K = D / H head width, M inner width of the feed-forward network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alight.models.position import rotate
from alight.options import FeedForwardKind, Norm

NORM_EPS = 1e-6


class RMSNorm(nn.RMSNorm):
    """Division by the root mean square over the channels, then a learned scale (arXiv 1910.07467).

    The mean is taken in float32 whatever the dtype of the input, and the result has the input's dtype.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of `x`."""
        # One dtype for both keeps the fused kernel in reach under autocast, where x is narrow and the weight wide.
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def head_norm(kind: Norm, head_width: int) -> nn.Module:
    """The norm of queries and keys, over the channels of one head."""
    return RMSNorm(head_width, eps=NORM_EPS) if kind == "rms_norm" else nn.LayerNorm(head_width)


class AdaptiveNorm(nn.Module):
    """Normalise tokens, then scale and shift them by time and class (adaLN, arXiv 2212.09748).

    RMSNorm has a learned scale itself. It is multiplied into the modulation per sample instead of per token, which
    saves a pass over the tokens forward and a sum backward, for the same result.
    """

    def __init__(self, kind: Norm, width: int) -> None:
        super().__init__()
        self.width = (width,)
        self.weight = nn.Parameter(torch.ones(width)) if kind == "rms_norm" else None

    def reset_parameters(self) -> None:
        """Reset the learned scale to one."""
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
        """Modulate tokens x (B, N, D) with `shift` and `scale`, both (B, D) or (B, N, D); no shift means zero."""
        factor = 1 + scale  # (B, D)
        if self.weight is None:
            x = F.layer_norm(x, self.width, eps=NORM_EPS)
        else:
            x = F.rms_norm(x, self.width, eps=NORM_EPS)
            factor = factor * self.weight
        if shift is None:
            return x * per_token(factor)
        return torch.addcmul(per_token(shift), x, per_token(factor))  # (B, N, D)


def per_token(modulation: Tensor) -> Tensor:
    """A modulation of samples (B, D) as one that holds for all tokens (B, 1, D); one of tokens (B, N, D) as it is."""
    return modulation if modulation.ndim == 3 else modulation[:, None]


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of every token to every token.

    Args:
        query: (B, N, H, K), like `key` and `value`.
        key: (B, N, H, K).
        value: (B, N, H, K).

    Returns:
        (B, N, H K), heads side by side.
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (B, H, N, K)
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # The CPU's fused kernel has slow products for this dtype: up to 8 times as long, forward and backward.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, H, N, N)
        mixed = scores.softmax(dim=-1) @ value
    else:
        mixed = F.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).flatten(2)  # (B, N, H K)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions and, as an option, normalised queries and keys."""

    def __init__(self, hidden_size: int, num_heads: int, norm: Norm, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_width = hidden_size // num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.q_norm = head_norm(norm, head_width) if qk_norm else None
        self.k_norm = head_norm(norm, head_width) if qk_norm else None
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        """Mix the tokens of `x` (B, N, D)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)  # (B, N, H, K) each
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        return self.proj(attention(query, key, value))


class SwiGLU(nn.Module):
    """Gated feed-forward network, down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden_size, 2 * inner_size)
        self.down = nn.Linear(inner_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of `x` (B, N, D) by itself."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # (B, N, M) each
        return self.down(F.silu(gate) * up)


class GELUFeedForward(nn.Module):
    """Two layers with a GELU between them (its tanh form), the feed-forward network of DiT."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(hidden_size, inner_size)
        self.linear_2 = nn.Linear(inner_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of `x` (B, N, D) by itself."""
        return self.linear_2(F.gelu(self.linear_1(x), approximate="tanh"))  # (B, N, M) inside


def make_feed_forward(kind: FeedForwardKind, hidden_size: int, mlp_ratio: float) -> nn.Module:
    """A feed-forward network; the gated one is narrower by 2/3, so that both have about the same number of weights."""
    inner_size = int(hidden_size * mlp_ratio)
    if kind == "swiglu":
        return SwiGLU(hidden_size, int(2 / 3 * inner_size))
    return GELUFeedForward(hidden_size, inner_size)


class LightningDiTBlock(nn.Module):
    """Attention and feed-forward network, each normalised, modulated by time and class, and gated (adaLN-zero)."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mlp_ratio: float,
        norm: Norm,
        feed_forward: FeedForwardKind,
        qk_norm: bool,
        adaln_shift: bool,
    ) -> None:
        super().__init__()
        self.norm1 = AdaptiveNorm(norm, hidden_size)
        self.norm2 = AdaptiveNorm(norm, hidden_size)
        self.attn = Attention(hidden_size, num_heads, norm, qk_norm)
        self.feed_forward = make_feed_forward(feed_forward, hidden_size, mlp_ratio)
        self.adaln_shift = adaln_shift
        self.modulation = nn.Linear(hidden_size, (6 if adaln_shift else 4) * hidden_size)

    def forward(self, x: Tensor, condition: Tensor, rotary: Tensor | None) -> Tensor:
        """One block.

        Args:
            x: tokens (B, N, D).
            condition: silu of the embedded time and class (B, D), or of a condition of each token (B, N, D).
            rotary: the tokens' rotary table, or None for a model without.
        """
        shift_1 = shift_2 = None
        if self.adaln_shift:
            shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(condition).chunk(6, dim=-1)
        else:
            scale_1, gate_1, scale_2, gate_2 = self.modulation(condition).chunk(4, dim=-1)
        x = torch.addcmul(x, per_token(gate_1), self.attn(self.norm1(x, shift_1, scale_1), rotary))
        return torch.addcmul(x, per_token(gate_2), self.feed_forward(self.norm2(x, shift_2, scale_2)))


class OutputLayer(nn.Module):
    """Tokens to patches: norm, modulation and a linear map. Its modulation always has a shift."""

    def __init__(self, hidden_size: int, patch_width: int, norm: Norm) -> None:
        super().__init__()
        self.norm = AdaptiveNorm(norm, hidden_size)
        self.proj = nn.Linear(hidden_size, patch_width)
        self.modulation = nn.Linear(hidden_size, 2 * hidden_size)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map tokens (B, N, D) to patches (B, N, p p C); the condition is (B, D), or (B, N, D) of each token."""
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return self.proj(self.norm(x, shift, scale))
