"""LightningDiT written down plainly: the equations one by one, in eager PyTorch, with none of the library's shortcuts.

It is what the library is timed against, and a second implementation to check it with. Every parameter bears the name
it has in the library, so the weights come across with `load_state_dict`. The final model of the paper only (SwiGLU,
RMSNorm, rotary positions, adaLN with shift).

Legend: B batch, N tokens, D model width, H heads, K = D / H.
"""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alight.models.embeddings import patchify, unpatchify
from alight.models.lightning_dit import LightningDiT


class RMSNorm(nn.Module):
    """Division by the root mean square in float32, operation by operation, and a learned scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return normed.type_as(x) * self.weight


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift all tokens of a sample alike."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def rotate_half(x: Tensor) -> Tensor:
    """(a, b) to (-b, a) for each channel pair."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((-odd, even), dim=-1).flatten(-2)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Mix tokens (B, N, D); `cos` and `sin` are (N, K), each angle twice."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, K) each
        query = query * cos + rotate_half(query) * sin
        key = key * cos + rotate_half(key) * sin
        mixed = F.scaled_dot_product_attention(query.to(value.dtype), key.to(value.dtype), value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class SwiGLU(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """One transformer block."""

    def __init__(self, width: int, num_heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attn = Attention(width, num_heads)
        self.feed_forward = SwiGLU(width, inner)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attention, then the feed-forward network."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(F.silu(condition)).chunk(6, dim=-1)
        x = x + gate_1.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_1, scale_1), cos, sin)
        return x + gate_2.unsqueeze(1) * self.feed_forward(modulate(self.norm2(x), shift_2, scale_2))


class TimeEmbedding(nn.Module):
    """256 cosines and sines of the time, then a two-layer network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(256, width), nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) to (B, D)."""
        frequencies = torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float32) / 128).to(t.device)
        angles = t[:, None].float() * frequencies
        return self.linear_2(F.silu(self.linear_1(torch.cat((angles.cos(), angles.sin()), dim=-1))))


class OutputLayer(nn.Module):
    """Norm, modulation, and a linear map to patches."""

    def __init__(self, width: int, patch_width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.proj = nn.Linear(width, patch_width)
        self.modulation = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, N, D) to (B, N, p p C)."""
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=-1)
        return self.proj(modulate(self.norm(x), shift, scale))


class PlainLightningDiT(nn.Module):
    """The same function of the same weights as the given model.

    Args:
        model: of the paper's final architecture; its weights are copied.
    """

    def __init__(self, model: LightningDiT) -> None:
        super().__init__()
        width, heads, self.patch_size = model.config.hidden_size, model.config.num_heads, model.config.patch_size
        self.grid = model.grid
        inner = int(2 / 3 * int(width * model.config.mlp_ratio))
        self.patch_embed = nn.Linear(model.patch_embed.in_features, width)
        self.time_embed = TimeEmbedding(width)
        self.class_embed = nn.Embedding(model.class_embed.num_embeddings, width)
        self.blocks = nn.ModuleList(Block(width, heads, inner) for _ in model.blocks)
        self.output_layer = OutputLayer(width, model.output_layer.proj.out_features)
        self.register_buffer("pos_embed", torch.empty_like(model.pos_embed))
        self.load_state_dict(model.state_dict())
        cos, sin = model.rope_table.repeat_interleave(2, dim=1).unbind(-1)  # (N, K) each
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.to(model.pos_embed.device)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        """Velocity (B, C, H, W) of noisy latents at times (B,) for labels (B,)."""
        tokens = self.patch_embed(patchify(x, self.patch_size)) + self.pos_embed
        condition = self.time_embed(t) + self.class_embed(class_labels)
        for block in self.blocks:
            tokens = block(tokens, condition, self.cos, self.sin)
        return unpatchify(self.output_layer(tokens, condition), self.patch_size, self.grid)


def logit_normal_times(batch: int, rng: np.random.Generator) -> Tensor:
    """Training times (B,), drawn by NumPy and moved over."""
    return torch.as_tensor(1 / (1 + np.exp(-rng.standard_normal(batch))), dtype=torch.float32)


def loss(model: nn.Module, x_1: Tensor, x_0: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
    """Mean squared error plus one minus the cosine over the channels, of the velocity."""
    time = t[:, None, None, None]
    x_t, target = time * x_1 + (1 - time) * x_0, x_1 - x_0
    velocity = model(x_t, t, class_labels)
    mse = ((velocity - target) ** 2).mean(dim=(1, 2, 3))
    cosine = (1 - F.cosine_similarity(velocity, target, dim=1)).mean(dim=(1, 2))
    return mse.mean() + cosine.mean()


class PlainEMA:
    """The moving average of the weights, one parameter after the other."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average in the current weights."""
        for shadow, parameter in zip(self.model.parameters(), model.parameters(), strict=True):
            shadow.mul_(self.decay).add_(parameter, alpha=1 - self.decay)


@torch.no_grad()
def sample(
    model: nn.Module,
    noise: Tensor,
    class_labels: Tensor,
    null_label: int,
    times: Sequence[float],
    guidance_scale: float,
    guidance_start: float,
) -> Tensor:
    """Euler's method on a doubled state: conditional and null rows at every step, whether guidance is on or not."""
    state = torch.cat([noise, noise])
    labels = torch.cat([class_labels, torch.full_like(class_labels, null_label)])
    for t, t_next in pairwise(times):
        conditional, null = model(state, torch.full((len(state),), t, device=state.device), labels).float().chunk(2)
        guided = null + guidance_scale * (conditional - null) if t >= guidance_start else conditional
        state = state + (t_next - t) * torch.cat([guided, guided])
    return state.chunk(2)[0]
