"""The optimizer and its learning rate over time."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from alight.config import OptimizerConfig


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW in one fused pass over all parameters (Adam where the weight decay is zero)."""
    return torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The learning rate of a step: linear warm-up, then constant, or cosine or linear decay to the end.

    Args:
        step: counted from 0.
        total_steps: of the whole run.
        config: peak rate, warm-up and schedule.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    remaining = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[config.schedule]
    floor = config.final_lr_fraction if config.schedule != "constant" else 0.0
    return config.lr * (floor + (1.0 - floor) * remaining)


def optimizer_step(optimizer: torch.optim.Optimizer, lr: float, max_grad_norm: float | None) -> torch.Tensor:
    """Clip, step and clear the gradients; a gradient that is not finite changes nothing.

    Args:
        optimizer: of `make_optimizer`, whose fused pass can be told on the device to do nothing.
        lr: learning rate of this step.
        max_grad_norm: the global gradient norm is clipped to it; None = off.

    Returns:
        The gradient norm before clipping, on the device.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if isinstance(norm, DTensor):  # of a sharded model
        norm = norm.full_tensor()
    if max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]  # of the fused pass
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
