"""The exponential moving average of a model's weights, which is what samples are drawn from."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from alight.training.parallel import local

ModelT = TypeVar("ModelT", bound=nn.Module)


class EMA(Generic[ModelT]):
    """Keeps a shadow of a model: shadow <- decay * shadow + (1 - decay) * model, after every optimizer step.

    Args:
        model: the model whose weights are averaged; the shadow starts as its copy.
        decay: 0.9999 in the published recipes.

    Attributes:
        model: the shadow, in eval mode and without gradients.
    """

    def __init__(self, model: ModelT, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average in the current weights in one multi-tensor pass, each process its part; buffers are copied."""
        torch._foreach_lerp_(local(self.model.parameters()), local(model.parameters()), 1.0 - self.decay)
        for shadow, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            shadow.copy_(buffer)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averaged weights."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore averaged weights."""
        self.model.load_state_dict(state)
