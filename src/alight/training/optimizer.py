"""The optimizer: groups of named parameters, a rule from a table, and its learning rate over time.

A rule is a row of `OPTIMIZERS`. Each keeps one contract: a step whose gradient is not finite changes nothing, neither
weights nor the optimizer's memory. `optimizer_step` sees to it, on the device where the rule has a fused kernel that
can skip a step.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alight.config import OptimizerConfig
from alight.options import MuonMatrices, OptimizerName, ParameterKind
from alight.runtime.errors import InputError
from alight.training.muon import Muon

SKIPPED_BY_KERNELS = ("cpu", "cuda")  # devices whose fused kernels heed `found_inf`; that of MPS ignores it

Groups = list[dict[str, Any]]  # as torch's optimizers take them: `params`, and perhaps `lr_factor` and `muon`


def _adamw(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build AdamW in one fused pass over all parameters (Adam where the weight decay is zero)."""
    return torch.optim.AdamW(groups, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)


def _muon(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build Muon for the groups that are marked for it, and AdamW for the others.

    Raises:
        InputError: none is marked.
    """
    own = config.muon
    if not any(group.get("muon") for group in groups):
        raise InputError(
            "Muon orthogonalises matrices, and the parameters to be trained have none: all are vectors. Set "
            "optimizer.name to adamw."
        )
    for group in groups:
        if group.get("muon"):
            group["lr_factor"] = own.lr_factor * group.get("lr_factor", 1.0)
            group["weight_decay"] = config.weight_decay if own.weight_decay is None else own.weight_decay
    return Muon(
        groups,
        config.lr,
        config.betas,
        weight_decay=config.weight_decay,
        momentum=own.momentum,
        step_size=own.step_size,
        precision=own.precision,
    )


OPTIMIZERS: dict[OptimizerName, Callable[[Groups, OptimizerConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "muon": _muon,
}


def make_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Build the configured optimizer of those parameters that are trained.

    Raises:
        InputError: it is Muon, and none of them is a matrix.
    """
    return OPTIMIZERS[config.name](parameter_groups(named_parameters, config), config)


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> Groups:
    """Divide trained parameters where they are treated differently; else they are one group.

    They are divided by kind where the kinds learn at different rates, and Muon's are apart from AdamW's.
    """
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    of_muon = muon_matrices(trained, config.muon.matrices) if config.name == "muon" else set()
    if config.lr_factors is None and not of_muon:
        return [{"params": [parameter for _, parameter in trained]}]
    divided: dict[tuple[bool, ParameterKind | None], list[nn.Parameter]] = {}
    for name, parameter in trained:
        kind = kind_of(parameter) if config.lr_factors is not None else None
        divided.setdefault((name in of_muon, kind), []).append(parameter)
    groups: Groups = []
    for (muon, kind), members in divided.items():
        group: dict[str, Any] = {"params": members}
        if kind is not None and config.lr_factors is not None:
            group["lr_factor"] = config.lr_factors.get(kind, 1.0)
        groups.append(group | {"muon": True} if muon else group)
    return groups


def muon_matrices(named_parameters: Iterable[tuple[str, Tensor]], matrices: MuonMatrices) -> set[str]:
    """The names of the parameters that Muon takes.

    Args:
        named_parameters: of a model.
        matrices: `blocks` = weights of two or more dimensions inside blocks that are numbered, such as `blocks.3.` of
            LightningDiT: neither embeddings nor the layers at input and output; all where a model has no such blocks.
            `all` = every tensor of two or more dimensions.
    """
    names = [name for name, parameter in named_parameters if kind_of(parameter) == "matrices"]
    inside = {name for name in names if any(part.isdecimal() for part in name.split("."))}
    return inside if matrices == "blocks" and inside else set(names)


def kind_of(parameter: Tensor) -> ParameterKind:
    """The kind of a parameter: matrices are weights of linear layers, convolutions and tables of embeddings."""
    return "matrices" if parameter.ndim >= 2 else "vectors"


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The learning rate of a step (from 0): linear warm-up, then constant, or cosine or linear decay."""
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


def optimizer_step(optimizer: torch.optim.Optimizer, lr: float, max_grad_norm: float | None) -> Tensor:
    """Clip, step and clear the gradients; a gradient that is not finite changes nothing.

    Args:
        optimizer: any of torch's; a fused one skips the step on the device where its kernel can, otherwise the host
            waits for the norm.
        lr: learning rate of this step, times the `lr_factor` of a group that has one.
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
        group["lr"] = lr * group.get("lr_factor", 1.0)
    fused = all(group.get("fused") for group in optimizer.param_groups)
    if fused and norm.device.type in SKIPPED_BY_KERNELS:
        optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]  # read by fused kernels
        optimizer.step()
    elif bool(torch.isfinite(norm)):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def state_size(optimizer: torch.optim.Optimizer) -> int:
    """Numbers in the memory of an optimizer that has taken a step, without its step counters."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() for value in values if isinstance(value, Tensor) and value.ndim > 0)
