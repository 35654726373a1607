"""Guidance: the velocity of a model, extrapolated away from a weaker prediction.

    v = v_weak + w (v_strong - v_weak)

A strategy makes the two predictions: the weak one comes from the same model without the class (classifier-free
guidance, Ho and Salimans, arXiv 2207.12598) or from a smaller, less trained model with the class (autoguidance, Karras
et al., arXiv 2406.02507). Outside a time interval extrapolation only costs diversity (Kynkäänniemi et al., arXiv
2404.07724): there the weak prediction is not even computed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from alight.flow.path import Time
from alight.options import GuidanceName, require_known
from alight.runtime.errors import InputError

Model = Callable[..., Tensor]
"""model(x, t, class_labels) -> velocity, with x (B, C, H, W), t (B,), class_labels (B,) int64; `until=` for a mean."""


class GuidedTimes(NamedTuple):
    """The times at which guidance is on: low <= t <= high, compared in float32.

    Attributes:
        low: a float32 number, or minus infinity where guidance is on from the beginning.
        high: likewise, or infinity where it is on to the end. Adaptive solvers look a little beyond t = 1, and the
            last point of a shifted grid may be rounded to a number above it.
    """

    low: float
    high: float

    @classmethod
    def of(cls, interval: tuple[float, float] | None, name: str) -> Self:
        """The times of an interval (low, high); None is all times.

        Raises:
            InputError: the interval, called by its name, is reversed or leaves [0, 1].
        """
        low, high = interval if interval is not None else (0.0, 1.0)
        if not 0 <= low <= high <= 1:
            raise InputError(
                f"The {name} {(low, high)} must be (low, high) with 0 <= low <= high <= 1, in model time (0 is noise, "
                "1 is data). Swap or correct its ends."
            )
        return cls(-math.inf if low == 0 else _as_float32(low), math.inf if high == 1 else _as_float32(high))

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """The times at which guidance starts or stops."""
        return tuple(t for t in self if math.isfinite(t))


class Guidance(Protocol):
    """A strategy: the two predictions between which guidance extrapolates.

    Attributes:
        evaluations: network evaluations per image that `predict_pair` costs.
    """

    @property
    def evaluations(self) -> int: ...  # noqa: D102

    def predict_pair(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The strong and the weak prediction at states `x` (B, C, H, W) and times `t` (B,), both shaped like `x`."""
        ...


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """The model with and without the class; both run as one batch of 2B rows.

    Attributes:
        model: `model(x, t, class_labels) -> velocity`.
        class_labels: (B,) int64.
        null_labels: (B,) int64, of the null class.
    """

    model: Model
    class_labels: Tensor
    null_labels: Tensor
    evaluations: int = 2

    @classmethod
    def of(cls, model: Model, class_labels: Tensor, null_labels: Tensor | None, guide: Model | None) -> Self:
        """Build the strategy; a row of `GUIDANCES`."""
        if null_labels is None or guide is not None:
            raise InputError("Classifier-free guidance needs the null class and no guide. Choose another strategy.")
        return cls(model, class_labels, null_labels)

    def predict_pair(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `Guidance`."""
        labels = torch.cat([self.class_labels, self.null_labels])
        strong, weak = self.model(torch.cat([x, x]), torch.cat([t, t]), labels).chunk(2)
        return strong, weak


@dataclass(frozen=True)
class AutoGuidance:
    """The model and a weaker one, both with the class.

    Attributes:
        model: `model(x, t, class_labels) -> velocity`.
        guide: the weaker model on the same latents.
        class_labels: (B,) int64.
    """

    model: Model
    guide: Model
    class_labels: Tensor
    evaluations: int = 2

    @classmethod
    def of(cls, model: Model, class_labels: Tensor, null_labels: Tensor | None, guide: Model | None) -> Self:
        """Build the strategy; a row of `GUIDANCES`."""
        if guide is None:
            raise InputError("Autoguidance needs a guide, a weaker transformer on the same latents. Give one.")
        return cls(model, guide, class_labels)

    def predict_pair(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `Guidance`."""
        return self.model(x, t, self.class_labels), self.guide(x, t, self.class_labels)


GUIDANCES: dict[GuidanceName, Callable[[Model, Tensor, Tensor | None, Model | None], Guidance]] = {
    "classifier_free": ClassifierFreeGuidance.of,
    "autoguidance": AutoGuidance.of,
}


class GuidedVelocity:
    """A conditional model as a velocity field of (x, t) alone, for the solvers: labels and guidance are bound here.

    The state is never doubled: `x` has one row per image. While guidance is off, the model runs once with the class.

    Args:
        model: `model(x, t, class_labels) -> velocity`, also an `InternalGuidance` of one.
        class_labels: (B,) int64 labels, one per row of `x`.
        null_labels: (B,) labels of the null class. Needed for classifier-free guidance, unused with `guide`.
        guidance_scale: w; 1 switches guidance off.
        guidance_interval: (low, high) in model time: guided where low <= t <= high, compared in float32. high = 1 has
            no upper bound, because adaptive solvers look a little beyond t = 1. None guides everywhere.
        guidance_channels: guide only the first so many channels, the others keep the conditional prediction; None
            guides all. The published numbers were made with 3 of 32.
        guide: the weak model for autoguidance, called with the same labels.
        guidance: a strategy, or its name in `GUIDANCES`; None is autoguidance where there is a guide, else
            classifier-free guidance.

    Attributes:
        nfe: network evaluations per image so far: those of the strategy where guided, 1 where not.

    Raises:
        InputError: a reversed interval, no channels, or guidance without null labels and without a guide.

    Example:
        >>> velocity = GuidedVelocity(model, labels, torch.full_like(labels, model.num_classes), guidance_scale=2.0)
        >>> latents = solve_ode(velocity, noise, num_inference_steps=50).x
    """

    def __init__(
        self,
        model: Model,
        class_labels: Tensor,
        null_labels: Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_channels: int | None = None,
        guide: Model | None = None,
        guidance: Guidance | GuidanceName | None = None,
    ) -> None:
        self._times = GuidedTimes.of(guidance_interval, "guidance interval")
        if guidance_channels is not None and guidance_channels < 1:
            raise InputError(
                f"guidance_channels must be at least 1, but it is {guidance_channels}. Use None for all channels."
            )
        if guidance is None and (guide is not None or null_labels is not None):
            guidance = "autoguidance" if guide is not None else "classifier_free"
        if isinstance(guidance, str):
            require_known(guidance, GUIDANCES, "guidance")
            build = GUIDANCES[guidance]  # not at scale 1, where nothing that a strategy needs has to be there
            guidance = build(model, class_labels, null_labels, guide) if guidance_scale != 1 else None
        if guidance_scale != 1 and guidance is None:
            raise InputError(
                f"A guidance scale of {guidance_scale} needs null_labels (classifier-free guidance) or a guide model "
                "(autoguidance). Pass one of them, or use guidance_scale=1."
            )
        if null_labels is not None and null_labels.shape != class_labels.shape:
            raise InputError(
                f"Labels {tuple(class_labels.shape)} and null labels {tuple(null_labels.shape)} differ in number. "
                "Give one null label per label: torch.full_like(class_labels, num_classes)."
            )
        self.model = model
        self.class_labels = class_labels
        self.null_labels = null_labels
        self.guidance_scale = guidance_scale
        self.guidance_channels = guidance_channels
        self.guidance = guidance
        self.nfe = 0

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """The times at which the field jumps, because guidance, or that within the model, starts or stops there."""
        own = () if self.guidance_scale == 1 else self._times.breakpoints
        return tuple(sorted({*own, *getattr(self.model, "breakpoints", ())}))

    def is_guided(self, t: Time) -> bool:
        """Tell if guidance is on at time t: the scale differs from 1 and t lies in the interval."""
        return self.guidance_scale != 1 and self._times.low <= _as_float32(t) <= self._times.high

    def __call__(self, x: Tensor, t: Time, until: Time | None = None) -> Tensor:
        """The velocity at state `x` (B, C, H, W) and time `t`, a number or a 0-d tensor on the CPU.

        With a time for each row, (B,) on the device of `x`, the interval decides row by row, and the weak prediction
        is computed for all.

        With `until`, likewise a time, it is the model's average velocity from `t` to there, which takes no guidance:
        extrapolated averages are not the average of an extrapolated velocity.
        """
        self._require_fit(x)
        if isinstance(t, Tensor) and t.ndim == 1:
            return self._at_times_of_rows(x, t)
        time = torch.full((len(x),), float(t), device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        if until is not None:
            require_trained_guidance(self.guidance_scale)
            self.nfe += 1
            return self.model(x, time, self.class_labels, until=torch.full_like(time, float(until)))
        if self.guidance is None or not self.is_guided(t):
            self.nfe += 1
            return self.model(x, time, self.class_labels)
        self.nfe += self.guidance.evaluations
        strong, weak = self.guidance.predict_pair(x, time)
        return self._extrapolate(strong, weak)

    def _at_times_of_rows(self, x: Tensor, t: Tensor) -> Tensor:
        if self.guidance is None or self.guidance_scale == 1:
            self.nfe += 1
            return self.model(x, t, self.class_labels)
        self.nfe += self.guidance.evaluations
        strong, weak = self.guidance.predict_pair(x, t)
        time = t.to(torch.float32)
        inside = (time >= self._times.low) & (time <= self._times.high)  # (B,)
        return torch.where(inside.reshape(-1, *[1] * (x.ndim - 1)), self._extrapolate(strong, weak), strong)

    def _require_fit(self, x: Tensor) -> None:
        if len(x) != len(self.class_labels):
            raise InputError(f"{len(x)} samples were given with {len(self.class_labels)} labels. Give one per sample.")
        if self.guidance_channels is not None and self.guidance_channels > x.shape[1]:
            raise InputError(
                f"guidance_channels={self.guidance_channels}, but the latents have only {x.shape[1]} channels. "
                "Use None for all of them."
            )

    def _extrapolate(self, strong: Tensor, weak: Tensor) -> Tensor:
        guided = weak + self.guidance_scale * (strong - weak)
        if self.guidance_channels is None:
            return guided
        channels = self.guidance_channels
        return torch.cat([guided[:, :channels], strong[:, channels:]], dim=1)


def require_trained_guidance(*scales: float) -> None:
    """Refuse guidance of the solver `mean`.

    Raises:
        InputError: a scale is not 1.
    """
    if any(scale != 1 for scale in scales):
        raise InputError(
            "The solver mean takes no guidance: that of average velocities is part of their training "
            "(flow.average_velocity.guidance_scale). Set guidance_scale and internal_scale to 1, or choose another "
            "solver."
        )


def _as_float32(t: Time) -> float:
    """Rounds as the model's own time is rounded, so that t = low counts as inside however it was computed."""
    return torch.as_tensor(t, dtype=torch.float32).item()
