"""Alignment of a transformer's hidden tokens with stored features while it is trained (REPA, iREPA).

The projector is trained with the transformer and lies in its checkpoints, but is no part of the finished transformer.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from alight.config import RepresentationConfig
from alight.losses import spatial_norm, token_alignment_loss
from alight.models.lightning_dit import LightningDiT
from alight.models.position import Grid
from alight.models.token_projector import make_token_projector
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.seeding import seeded_initialisation
from alight.training.parallel import replicate, shard


class TappedForward:
    """A transformer's forward pass that keeps the tokens after a block.

    Args:
        forward: a LightningDiT, perhaps wrapped for several processes, perhaps asked for its auxiliary velocity.
        block: number of blocks after which the tokens are kept.

    Attributes:
        tokens: (B, N, D), after a call.
    """

    def __init__(self, forward: Callable[..., Any], block: int) -> None:
        self._forward, self._block = forward, block

    def __call__(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Any:
        """The velocity, or the pair of velocities."""
        *velocities, tapped = self._forward(x, t, class_labels, at=(self._block,))
        self.tokens: Tensor = tapped[self._block]
        return velocities[0] if len(velocities) == 1 else tuple(velocities)


class TokenAlignment:
    """The projector and the loss that it enters.

    Args:
        config: weight, block, and treatment of the features.
        projector: from tokens to the width of the features.
        grid: of the tokens.

    Attributes:
        forward: the module to call, so that gradients are averaged over the processes.
    """

    def __init__(self, config: RepresentationConfig, projector: nn.Module, grid: Grid) -> None:
        self.config, self.projector, self.grid, self.forward = config, projector, grid, projector

    @property
    def weight(self) -> float:
        """Factor of the loss."""
        return self.config.weight

    @property
    def block(self) -> int:
        """Number of blocks after which tokens are aligned."""
        return self.config.block

    def distribute(self, processes: Processes, sharded: bool) -> None:
        """Lay the projector out over the processes; call it before the optimizer is made."""
        if sharded:
            shard(self.projector, (), processes)
        self.forward = replicate(self.projector, processes)

    def loss(self, tokens: Tensor, features: Tensor) -> Tensor:
        """The mean of -cos between projected tokens and features, in float32 and in [-1, 1].

        Args:
            tokens: (B, N, D).
            features: (B, E, h, w); on another grid than the tokens they are resampled bilinearly, with antialiasing.
        """
        targets = self.targets(features)
        return token_alignment_loss(self.forward(tokens).float(), targets)

    def targets(self, features: Tensor) -> Tensor:
        """Features (B, E, h, w) as the tokens (B, N, E) meet them, in float32."""
        features = features.float()
        if features.shape[2:] != tuple(self.grid):
            features = F.interpolate(features, size=tuple(self.grid), mode="bilinear", antialias=True)
        targets = features.flatten(2).transpose(1, 2)  # (B, N, E)
        return targets if self.config.spatial_norm is None else spatial_norm(targets, self.config.spatial_norm)


def build_token_alignment(
    config: RepresentationConfig, model: LightningDiT, feature_dim: int, seed: int
) -> TokenAlignment:
    """Build the projector from the seed, without touching the random numbers of the transformer.

    Raises:
        InputError: the transformer has no such block, or a single token, over which nothing can be normalised.
    """
    layers = len(model.blocks)
    if not 1 <= config.block <= layers:
        raise InputError(
            f"representation.block is {config.block}, but the transformer has only {layers} blocks. Give a number "
            f"from 1 to {layers}; the authors align after 8 of 28."
        )
    if config.spatial_norm is not None and model.grid.height * model.grid.width < 2:
        raise InputError(
            "representation.spatial_norm needs several tokens per image, and these latents are a single one. Leave it "
            "out, or train on larger latents."
        )
    with seeded_initialisation(seed, "projector"):
        projector = make_token_projector(
            config.projector,
            model.config.hidden_size,
            feature_dim,
            model.grid,
            config.hidden_size,
            config.kernel_size,
        )
    return TokenAlignment(config, projector, model.grid)
