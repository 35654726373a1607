"""LightningDiT: a diffusion transformer that predicts the velocity of a latent (arXiv 2501.01423, section 4).

Legend: B batch, C latent channels, (H, W) latent grid, p patch size, N = H W / p^2 tokens, D model width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from alight.models.embeddings import FourierTimeEmbedding, TimeEmbedding, drop_labels, patchify, unpatchify
from alight.models.layers import AdaptiveNorm, LightningDiTBlock, OutputLayer
from alight.models.position import resample_position_embedding, rotary_table, sincos_position_embedding
from alight.models.pretrained import StrictlyLoaded
from alight.models.sizes import check_config, check_inputs, token_grid
from alight.models.wide_head import WideHead, head_sizes
from alight.options import FeedForwardKind, Norm, PositionResize
from alight.runtime.errors import InputError


class Preset(NamedTuple):
    """The size of a model."""

    hidden_size: int
    num_layers: int
    num_heads: int
    patch_size: int


class Features(NamedTuple):
    """Hidden states of one evaluation.

    Attributes:
        tokens: (B, N, D) after the last block.
        condition: (B, D), of time and class.
        time: (B, D), the embedded time alone.
        tapped: number of blocks passed -> tokens (B, N, D), as far as they were asked for.
    """

    tokens: Tensor
    condition: Tensor
    time: Tensor
    tapped: dict[int, Tensor]


SIZES = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
    "1p0B": (1536, 24, 24),
    "1p6B": (1792, 28, 28),
}
PRESETS = {f"LightningDiT-{size}/{p}": Preset(*SIZES[size], patch_size=p) for size in SIZES for p in (1, 2)}


class LightningDiT(StrictlyLoaded, ConfigMixin):
    """The transformer of the paper: velocity of a noisy latent, given its time and its class.

    The defaults are the paper's final model (SwiGLU, RMSNorm, rotary positions, patch size 1); the other values of
    the options are its ablations and its ancestor DiT.

    ```python
    model = LightningDiT.from_preset("LightningDiT-B/1", num_classes=1000)
    x_t, t = torch.randn(2, 32, 16, 16), torch.rand(2)                      # noisy latents, t = 0 noise, t = 1 data
    labels = model.drop_labels(torch.tensor([207, 360]), generator=generator)  # in training only
    velocity = model(x_t, t, labels)                                        # (2, 32, 16, 16)
    ```

    Args:
        sample_size: height and width of the latent, one number for both or a pair.
        in_channels: channels of the latent.
        hidden_size: model width D, a multiple of four times `num_heads`.
        num_layers: number of blocks.
        num_heads: attention heads.
        patch_size: latent cells per token, along each side.
        mlp_ratio: inner width of the feed-forward network in units of D, before SwiGLU's 2/3.
        num_classes: number of classes; the index `num_classes` is the null class, "no class given".
        class_dropout_prob: how often training replaces the class by the null class. 0 builds no null class at all.
        norm: "rms_norm", or "layer_norm" (without weights).
        feed_forward: "swiglu" or "gelu".
        rope: rotate queries and keys. The fixed sine-cosine embedding is added in any case.
        qk_norm: normalise queries and keys per head; steadier long runs at some cost in quality.
        adaln_shift: whether the blocks' modulation has a shift beside scale and gate.
        learn_sigma: twice the output channels; the second half is computed and not returned, as in DiT's checkpoints.
        trained_size: the latent size whose positions the weights know, if it is another one than `sample_size`; the
            positions are then stretched to its range.
        auxiliary_block: number of blocks, from 1 to `num_layers` - 1, after which a second output layer predicts the
            velocity too, less well: the weak prediction of Internal Guidance (arXiv 2512.24176). None builds none.
        interval_embedding: whether the model is told the length of a step too, so that it can predict the average
            velocity over it (MeanFlow, arXiv 2505.13447). At first the embedding is zero.
        head: sizes of a wide head, `{"num_layers": 2, "hidden_size": 2048, "num_heads": 16}` as published, for latents
            of more channels than the model is wide (RAE, arXiv 2510.11690); see `WideHead`. Time is then embedded by
            random frequencies. None builds none.

    Raises:
        InputError: the sizes do not fit each other.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["LightningDiTBlock"]
    _repeated_blocks = ["LightningDiTBlock"]  # what compile_repeated_blocks compiles once for all

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 16,
        in_channels: int = 32,
        hidden_size: int = 1152,
        num_layers: int = 28,
        num_heads: int = 16,
        patch_size: int = 1,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        class_dropout_prob: float = 0.1,
        norm: Norm = "rms_norm",
        feed_forward: FeedForwardKind = "swiglu",
        rope: bool = True,
        qk_norm: bool = False,
        adaln_shift: bool = True,
        learn_sigma: bool = False,
        trained_size: int | tuple[int, int] | None = None,
        auxiliary_block: int | None = None,
        interval_embedding: bool = False,
        head: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        check_config(self.config)
        self.gradient_checkpointing = False
        self.grid = token_grid(sample_size, patch_size)
        self.trained_grid = token_grid(trained_size, patch_size) if trained_size else self.grid
        out_channels = in_channels * (2 if learn_sigma else 1)
        self.patch_embed = nn.Linear(in_channels * patch_size**2, hidden_size)
        self.time_embed = TimeEmbedding(hidden_size) if head is None else FourierTimeEmbedding(hidden_size)
        self.interval_embed = TimeEmbedding(hidden_size) if interval_embedding else None
        self.class_embed = nn.Embedding(num_classes + (class_dropout_prob > 0), hidden_size)
        block = mlp_ratio, norm, feed_forward, qk_norm, adaln_shift
        self.blocks = nn.ModuleList(LightningDiTBlock(hidden_size, num_heads, *block) for _ in range(num_layers))
        num_tokens, outputs = self.grid.height * self.grid.width, (patch_size**2 * out_channels, norm)
        sizes = None if head is None else head_sizes(head)
        patch = in_channels * patch_size**2
        self.wide_head = None if sizes is None else WideHead(sizes, patch, hidden_size, num_tokens, rope, *block)
        self.auxiliary_layer = None if auxiliary_block is None else OutputLayer(hidden_size, *outputs)
        self.output_layer = OutputLayer(hidden_size if sizes is None else sizes.hidden_size, *outputs)
        # Both are fixed. The added embedding is part of a checkpoint; the angles follow from the configuration.
        self.register_buffer("pos_embed", torch.empty(1, num_tokens, hidden_size))
        table = torch.empty(num_tokens, hidden_size // num_heads // 2, 2) if rope else None  # (N, K / 2, 2)
        self.register_buffer("rope_table", table, persistent=False)
        self.init_weights()

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "LightningDiT":
        """A freshly initialised model of a named size, for example "LightningDiT-XL/1".

        Args:
            name: a key of `PRESETS`: LightningDiT-{S, B, L, XL, 1p0B, 1p6B}/{1, 2}, the number being the patch size.
            **overrides: any argument of the constructor.

        Raises:
            InputError: there is no such preset.
        """
        if name not in PRESETS:
            raise InputError(f"There is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name]._asdict(), **overrides})

    @classmethod
    def check_before_building(cls, config: Mapping[str, Any], weights: Mapping[str, Tensor], source: Any) -> None:
        """Compare the computed positions with those among the weights."""
        grid, stored = token_grid(config.get("sample_size", 16), config.get("patch_size", 1)), weights.get("pos_embed")
        expected = (1, grid.height * grid.width, config.get("hidden_size", 1152))
        if stored is not None and tuple(stored.shape) != expected:
            raise InputError(
                f"{source} describes positions of the shape {expected}, but those of the weights are of another "
                f"shape, {tuple(stored.shape)}. Give weights and configuration that were saved together."
            )

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights again; then each block is the identity and the velocity exactly zero (adaLN-zero).

        An auxiliary output is not zero at first: its layer keeps the ordinary initial weights, as published.
        """
        self.reset_positions()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, AdaptiveNorm | nn.RMSNorm | nn.LayerNorm):
                module.reset_parameters()
        for embedding in (self.class_embed, self.time_embed.linear_1, self.time_embed.linear_2):
            nn.init.normal_(embedding.weight, std=0.02, generator=generator)
        if isinstance(self.time_embed, FourierTimeEmbedding):
            nn.init.normal_(self.time_embed.frequencies, generator=generator)
        if self.interval_embed is not None:
            nn.init.normal_(self.interval_embed.linear_1.weight, std=0.02, generator=generator)
            nn.init.zeros_(self.interval_embed.linear_2.weight)
        nn.init.zeros_(self.output_layer.proj.weight)
        for module in self.modules():
            if isinstance(module, LightningDiTBlock | OutputLayer) and module is not self.auxiliary_layer:
                nn.init.zeros_(module.modulation.weight)

    def reset_positions(self) -> None:
        """Compute the fixed positions again, for example after `to_empty` of a model on the meta device."""
        width, head_width = self.config.hidden_size, self.config.hidden_size // self.config.num_heads
        self.pos_embed.copy_(sincos_position_embedding(width, self.grid, self.trained_grid))
        if self.rope_table is not None:
            self.rope_table.copy_(rotary_table(head_width, self.grid, self.trained_grid))
        if self.wide_head is not None:
            self.wide_head.reset_positions(self.grid, self.trained_grid)

    def resized(self, sample_size: int | tuple[int, int], positions: PositionResize = "interpolate") -> "LightningDiT":
        """A copy with the same weights for latents of another size, usually for further training.

        Args:
            sample_size: the new height and width of the latent.
            positions: "interpolate" stretches the trained positions over the new grid; "extrapolate" keeps the
                distance of neighbours and counts on beyond the trained range.

        Raises:
            InputError: the size is not a multiple of the patch size.
        """
        trained_size = self.config.trained_size or self.config.sample_size
        stretched = positions == "interpolate"
        sizes = {"sample_size": sample_size, "trained_size": trained_size if stretched else None}
        model = type(self)(**{**self.arguments, **sizes}).to(self.pos_embed)
        state = self.state_dict()
        state["pos_embed"] = model.pos_embed
        if stretched:  # from the weights, which may differ from the formula
            state["pos_embed"] = resample_position_embedding(self.pos_embed, self.grid, model.grid)
        model.load_state_dict(state)
        return model.train(self.training)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor: the `config` without the entries of diffusers."""
        return {name: value for name, value in self.config.items() if not name.startswith("_")}

    @property
    def all_blocks(self) -> list[nn.Module]:
        """The blocks, and those of a wide head: what is compiled, and divided among processes, one by one."""
        return [*self.blocks, *([] if self.wide_head is None else self.wide_head.blocks)]

    @property
    def has_auxiliary_output(self) -> bool:
        """Tell if there is a second output after an earlier block, which Internal Guidance needs."""
        return self.auxiliary_layer is not None

    @property
    def has_interval_embedding(self) -> bool:
        """Tell if the model can predict average velocities, which sampling in few steps needs."""
        return self.interval_embed is not None

    @property
    def null_label(self) -> int:
        """The label that stands for "no class".

        Raises:
            InputError: the model was built without one.
        """
        if not self.config.class_dropout_prob:
            raise InputError(
                "This model has no null class (class_dropout_prob is 0), so it cannot predict without a class and "
                "cannot be guided; sample with guidance_scale 1, or train with class_dropout_prob 0.1."
            )
        return self.config.num_classes

    def drop_labels(
        self, class_labels: Tensor, *, generator: torch.Generator | None = None, u: Tensor | None = None
    ) -> Tensor:
        """Replace labels by the null class with probability `class_dropout_prob`; see `embeddings.drop_labels`."""
        if not self.config.class_dropout_prob:
            return class_labels
        return drop_labels(class_labels, self.config.class_dropout_prob, self.null_label, generator=generator, u=u)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        class_labels: Tensor,
        at: Sequence[int] = (),
        auxiliary: bool = False,
        until: Tensor | None = None,
    ) -> Tensor | tuple[Tensor | dict[int, Tensor], ...]:
        """The velocity x_1 - x_0 that the model expects at `x`, or its average until a later time.

        Args:
            x: noisy latents (B, C, H, W), normalised per channel.
            t: times (B,), 0 = noise, 1 = data. Solvers may look slightly beyond.
            class_labels: (B,) int64 in [0, num_classes], `num_classes` being the null class. The values are not
                checked here (that would stall an accelerator); see `embeddings.validate_class_labels`.
            at: numbers of blocks whose tokens are returned too, see `forward_features`.
            auxiliary: return the velocity of the auxiliary output too, from the same evaluation.
            until: end (B,) of the interval from t on over which the velocity is averaged, along the path that leads
                through `x`; None is t, the velocity itself. Needs an `interval_embedding`.

        Returns:
            (B, C, H, W) in the dtype of `x`. With `auxiliary` or `at` a tuple that begins with it, then holds the
            auxiliary velocity of the same shape, then the tokens (B, N, D) after each of these blocks.

        Raises:
            InputError: a shape does not fit the model, a tapped block does not exist, or the model lacks an auxiliary
                output or an interval embedding that it needs.
        """
        weak_layer = self.require_auxiliary_output() if auxiliary else None
        kept = {*at, self.config.auxiliary_block} if auxiliary else at
        features = self.forward_features(x, t, class_labels, tuple(kept), until)
        velocity = self._velocity(self.output_layer(*self._last_tokens(x, features)), x.dtype)
        if weak_layer is None:
            return (velocity, features.tapped) if at else velocity
        weak = weak_layer(features.tapped[self.config.auxiliary_block], features.condition)
        tapped = ({number: features.tapped[number] for number in at},) if at else ()
        return velocity, self._velocity(weak, x.dtype), *tapped

    def _last_tokens(self, x: Tensor, features: Features) -> tuple[Tensor, Tensor]:
        """The tokens before the output layer, and what modulates it."""
        if self.wide_head is None:
            return features.tokens, features.condition
        condition = F.silu(features.time[:, None] + features.tokens)  # (B, N, D)
        return self.wide_head(patchify(x, self.config.patch_size), condition)

    def _velocity(self, patches: Tensor, dtype: torch.dtype) -> Tensor:
        """Patches (B, N, p p C) to a velocity (B, C, H, W)."""
        velocity = unpatchify(patches, self.config.patch_size, self.grid)
        return velocity[:, : self.config.in_channels].to(dtype)

    def require_auxiliary_output(self) -> OutputLayer:
        """The layer of the auxiliary output.

        Raises:
            InputError: the model was built without one.
        """
        if self.auxiliary_layer is None:
            raise InputError(
                "Internal guidance needs a transformer with an auxiliary output, which this one does not have "
                "(auxiliary_block is null). Set internal_scale to 1, or train one with --model.auxiliary-block 8, for "
                "example."
            )
        return self.auxiliary_layer

    def require_interval_embedding(self) -> TimeEmbedding:
        """The embedding of the length of a step.

        Raises:
            InputError: the model was built without one.
        """
        if self.interval_embed is None:
            raise InputError(
                "Average velocities need a transformer with an interval embedding, which this one does not have. Take "
                "another solver than mean, or fine-tune it first: --model.interval-embedding True --flow.objective "
                "average_velocity."
            )
        return self.interval_embed

    def forward_features(
        self, x: Tensor, t: Tensor, class_labels: Tensor, at: Sequence[int] = (), until: Tensor | None = None
    ) -> Features:
        """Everything before the output layer, for auxiliary heads and losses on hidden tokens.

        Args:
            x: as in `forward`.
            t: as in `forward`.
            class_labels: as in `forward`.
            at: numbers of blocks whose tokens are kept: k means after the first k blocks, 0 the embedded patches.
            until: as in `forward`.

        Raises:
            InputError: as in `forward`.
        """
        grid, patch = self.grid, self.config.patch_size
        check_inputs(x, t, class_labels, (self.config.in_channels, grid.height * patch, grid.width * patch))
        if not set(at) <= set(range(len(self.blocks) + 1)):
            raise InputError(f"The model has {len(self.blocks)} blocks; tokens cannot be tapped at {list(at)}.")
        patches = patchify(x, self.config.patch_size).to(self.patch_embed.weight.dtype)  # (B, N, C p p)
        tokens = self.patch_embed(patches) + self.pos_embed  # (B, N, D)
        time = self.time_embed(t)  # (B, D)
        embedded = time + self.class_embed(class_labels)
        if self.interval_embed is not None or until is not None:
            embedded = embedded + self.require_interval_embedding()(
                torch.zeros_like(t) if until is None else until - t
            )
        condition = F.silu(embedded)
        if self.wide_head is not None:
            condition = F.silu(condition)  # twice, as the published models with a wide head
        tapped = {0: tokens} if 0 in at else {}
        for number, block in enumerate(self.blocks, start=1):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._gradient_checkpointing_func(block, tokens, condition, self.rope_table)
            else:
                tokens = block(tokens, condition, self.rope_table)
            if number in at:
                tapped[number] = tokens
        return Features(tokens, condition, time, tapped)
