"""The exponential moving average of a model's weights, which is what samples are drawn from."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from alight.config import TrainingConfig
from alight.runtime.console import log
from alight.training.parallel import local
from alight.training.power_profile import exponent_of, share_of_step

LARGEST_SHARE = 0.01  # of the weights that a run begins with, in its final average; 4.6 memories leave so much
MEMORIES = 10  # that a run should be long: exp(-10) of the initial weights is left

ModelT = TypeVar("ModelT", bound=nn.Module)


class EMA(Generic[ModelT]):
    """Keeps a shadow of a model: shadow <- decay * shadow + (1 - decay) * model, after every optimizer step.

    A warm-up lowers the decay of early steps to (1 + step) / (warmup + step), so that the initial weights are soon
    forgotten and the memory grows with the run.

    Args:
        model: the model whose weights are averaged; the shadow starts as its copy.
        decay: 0.9999 in the published recipes.
        warmup: of the decay; None = the decay itself from the first step on, as published.

    Attributes:
        model: the shadow, in eval mode and without gradients.
    """

    def __init__(self, model: ModelT, decay: float, warmup: float | None = None) -> None:
        self.decay, self.warmup = decay, warmup
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int = 0) -> None:
        """Average in the weights after a step (counted from 0) in one multi-tensor pass; buffers are copied."""
        torch._foreach_lerp_(local(self.model.parameters()), local(model.parameters()), self.share_of(step))
        for shadow, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            shadow.copy_(buffer)

    def share_of(self, step: int) -> float:
        """The share of the weights after a step, counted from 0, in the average after it."""
        return 1.0 - decay_at(step, self.decay, self.warmup)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averaged weights."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore averaged weights."""
        self.model.load_state_dict(state)


class PowerAverage(EMA[ModelT]):
    """Keeps an average of a model whose memory grows with the run, by a power of the step; see `power_profile`.

    Its state is the averaged weights alone, since the step says the rest.

    Args:
        model: the model whose weights are averaged.
        width: of the profile, as a share of the run.

    Attributes:
        model: the average, in eval mode and without gradients.
    """

    def __init__(self, model: ModelT, width: float) -> None:
        super().__init__(model, decay=0.0)
        self.width, self.exponent = width, exponent_of(width)

    @property
    def name(self) -> str:
        """A name for checkpoints and files."""
        return f"width-{self.width:.4g}"

    def share_of(self, step: int) -> float:
        """See `EMA`."""
        return share_of_step(self.exponent, step + 1)


def decay_at(step: int, decay: float, warmup: float | None) -> float:
    """The decay of one step, counted from 0: the full one, or the one of the warm-up as long as that is smaller."""
    return decay if warmup is None else min(decay, (1 + step) / (warmup + step))


def initial_share(steps: int, decay: float, warmup: float | None = None) -> float:
    """The share of the initial weights in the average after a number of steps: the product of all decays."""
    share = 1.0
    if warmup is not None:
        for step in range(steps):
            share *= decay_at(step, decay, warmup)
            if share < LARGEST_SHARE or decay_at(step, decay, warmup) == decay:
                return share * decay ** (steps - step - 1)
        return share
    return decay**steps


def long_average(training: TrainingConfig) -> tuple[str, str] | None:
    """The complaint and the remedy where the average of a run's weights remembers too much of how the run began.

    The rule: after the last step the initial weights make up more than 1 % of the average. Samples of such a run are
    worse than those of its last weights, down to noise.
    """
    if (
        not training.ema_decay
        or (share := initial_share(training.steps, training.ema_decay, training.ema_warmup)) <= LARGEST_SHARE
    ):
        return None
    few = training.steps <= 2 * MEMORIES
    fitting = round((0.9 * LARGEST_SHARE) ** (1 / training.steps), 3) if few else 1 - MEMORIES / training.steps
    return (
        f"The average of the weights has a memory of {1 / (1 - training.ema_decay):,.0f} steps (ema_decay "
        f"{training.ema_decay:g}), too long for a run of {training.steps:,}: at its end {share:.0%} of the average "
        "are still the weights that it began with, and samples are drawn from the average.",
        f"Set training.ema_decay to {fitting:.6g}, or training.ema_warmup to 10, or train longer.",
    )


def warn_of_long_average(training: TrainingConfig, description: str) -> None:
    """Say so at the start of a run."""
    if (complaint := long_average(training)) is not None:
        log.warning("%s: %s %s", description, *complaint)
