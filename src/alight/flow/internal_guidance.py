"""Internal Guidance: the velocity of a model, extrapolated away from its own prediction at an earlier block.

    v = b + w (f - b) = f + (w - 1) (f - b)

with f the output of the whole model, and b that of an auxiliary output layer after a block in between (arXiv
2512.24176). Both come from one evaluation, so that guidance costs almost nothing. It acts on the model itself, before
any guidance between two evaluations: classifier-free guidance extrapolates between internally guided velocities.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from alight.flow.guidance import GuidedTimes, require_trained_guidance


class AuxiliaryModel(Protocol):
    """A model with an auxiliary output: the strong and, with `auxiliary=True`, the weak velocity of one evaluation."""

    def __call__(  # noqa: D102
        self, x: Tensor, t: Tensor, class_labels: Tensor, /, *, auxiliary: bool = False, until: Tensor | None = None
    ) -> Any: ...


@dataclass(frozen=True)
class InternalGuidance:
    """A model with an auxiliary output as an internally guided model of (x, t, class labels).

        guided = InternalGuidance(model, 1.4)                          # alone: one evaluation per step
        velocity = GuidedVelocity(guided, labels, null_labels, 1.45)   # within classifier-free guidance: two

    Args:
        model: `model(x, t, class_labels, auxiliary=True) -> (velocity, auxiliary velocity)`, such as a `LightningDiT`
            with an `auxiliary_block`. Without `auxiliary` it returns the velocity alone.
        scale: w; 1 is the model itself, bit for bit, and needs no auxiliary output.
        interval: (low, high) in model time, both ends included: guided where low <= t <= high, compared in float32.
            low = 0 and high = 1 are no bounds, since solvers may look slightly beyond, and rounding can put the last
            point of a shifted grid above 1. None guides everywhere.

    Raises:
        InputError: the interval is reversed or leaves [0, 1].
    """

    model: AuxiliaryModel
    scale: float = 1.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _ = self._times  # refuses what is no interval

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """The times at which the velocity jumps, because guidance starts or stops there."""
        return () if self.scale == 1 else self._times.breakpoints

    @cached_property
    def _times(self) -> GuidedTimes:
        return GuidedTimes.of(self.interval, "internal interval")

    def __call__(self, x: Tensor, t: Tensor, class_labels: Tensor, until: Tensor | None = None) -> Tensor:
        """The velocity at states `x` (B, C, H, W) and times `t` (B,), guided in the rows whose time is inside.

        An average velocity, with `until`, is that of the model itself and takes no guidance.
        """
        if until is not None:
            require_trained_guidance(self.scale)
            average: Tensor = self.model(x, t, class_labels, until=until)
            return average
        if self.scale == 1:
            velocity: Tensor = self.model(x, t, class_labels)
            return velocity
        strong, weak = self.model(x, t, class_labels, auxiliary=True)
        guided: Tensor = strong + (self.scale - 1) * (strong - weak)
        if not self.breakpoints:
            return guided
        time = t.to(torch.float32)
        inside = (time >= self._times.low) & (time <= self._times.high)  # (B,)
        return torch.where(inside.reshape(-1, *[1] * (x.dim() - 1)), guided, strong)
