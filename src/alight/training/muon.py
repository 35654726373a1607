"""Muon for matrices, AdamW beside it for everything else.

The momentum of a matrix is orthogonalised before it is applied: all its singular values become about 1, so that rare
directions of the gradient count as much as common ones. Muon is by K. Jordan et al., *Muon: An optimizer for hidden
layers in neural networks* (2024); the step as large as AdamW's by J. Liu et al., *Muon is Scalable for LLM Training*
(arXiv 2502.16982).

`torch.optim.Muon` has the same rule for two-dimensional tensors of one process, without the step size of Internal
Guidance, without kernels of convolutions and without AdamW; the tests compare both.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.adamw import adamw

from alight.options import FixedPrecision, MuonStepSize
from alight.runtime.device import full_float32
from alight.training.parallel import divided_like, whole

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the odd polynomial of degree 5 that is applied to the singular values
EPS = 1e-7  # added to the norm, so that a zero gradient gives a zero update
RMS = 0.2  # of AdamW's usual update, in units of the learning rate


def orthogonalise(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Replace the singular values of a matrix by about 1: five Newton-Schulz iterations towards U V^T.

    The polynomial rises fast at 0 and does not converge to 1: singular values above 0.2 % of the Frobenius norm end
    between 0.68 and 1.21, smaller ones lower.

    Args:
        matrix: (rows, columns).
        dtype: to compute in. bfloat16 is usual and fast on accelerators; it fills directions in which the matrix is
            zero with noise.

    Returns:
        (rows, columns), in that dtype; zero where the matrix is.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype)
    x = x / (x.norm() + EPS)
    x = x.T if tall else x  # the products below are then of the smaller side
    a, b, c = COEFFICIENTS
    with full_float32():  # float32 is asked for where layouts should agree
        for _ in range(ITERATIONS):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).contiguous()


def orthogonalise_together(matrices: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Orthogonalise matrices that all processes hold, each process a share of them.

    Every process must call it with the same matrices, and gets all results, equal to the bit.
    """
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if processes == 1:
        return [orthogonalise(matrix, dtype) for matrix in matrices]
    own = dist.get_rank()
    results = [
        orthogonalise(matrix, dtype) if number % processes == own else torch.empty_like(matrix, dtype=dtype)
        for number, matrix in enumerate(matrices)
    ]
    for number, result in enumerate(results):
        dist.broadcast(result, src=number % processes)
    return results


def step_factor(rule: MuonStepSize, shape: Sequence[int]) -> float:
    """The length of a step by the shape of its tensor, in units of the learning rate.

    Args:
        rule: `match_rms`, 0.2 sqrt(max(rows, columns)), gives an update the root mean square of AdamW's, so that its
            learning rate fits (`match_rms_adamw` of torch); `original` is sqrt(max(1, rows / columns)) (torch's
            default); `product` is both multiplied, as Internal Guidance was trained.
        shape: of the tensor; rows are its first dimension and columns all others. As published, the first factor of
            `product` takes the first two dimensions of a kernel for rows and columns.
    """
    rows, columns = shape[0], math.prod(shape[1:])
    original = math.sqrt(max(1.0, rows / columns))
    match rule:
        case "match_rms":
            return RMS * math.sqrt(max(rows, columns))
        case "original":
            return original
        case "product":
            return RMS * math.sqrt(max(shape[:2])) * original


class Muon(torch.optim.Optimizer):
    """Muon for the groups of parameters with `muon: True`, AdamW for the others.

    Both decay weights first, by the plain learning rate: W <- (1 - lr wd) W. AdamW then does what torch's does. With
    the gradient g, Muon's step is

        m <- momentum m + (1 - momentum) g
        u  = momentum m + (1 - momentum) g             (Nesterov)
        W <- W - lr factor(shape) orthogonalise(u)

    Its memory is m: one number per weight, where AdamW has two. In several processes each orthogonalises a share of
    the matrices; sharded ones (FSDP2) are gathered for that, a few at a time.

    Args:
        groups: as torch's optimizers take them; tensors in groups of Muon have two or more dimensions, and those with
            more are taken as matrices (first dimension, all others).
        lr: of groups that have none of their own; likewise the following.
        betas: decay of the two moments of AdamW.
        eps: of AdamW.
        weight_decay: decoupled.
        momentum: of Muon.
        step_size: of Muon, see `step_factor`.
        precision: of the orthogonalisation; None = bf16 on accelerators, fp32 on CPUs.

    Raises:
        ValueError: a tensor in a group of Muon has fewer than two dimensions.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        step_size: MuonStepSize = "match_rms",
        precision: FixedPrecision | None = None,
    ) -> None:
        usual: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        usual |= {"muon": False, "momentum": momentum, "step_size": step_size, "precision": precision}
        super().__init__(groups, usual)
        for group in self.param_groups:
            group["fused"] = not group["muon"]  # the kernel of AdamW; torch restores its counters accordingly
            if group["muon"] and (flat := [parameter.shape for parameter in group["params"] if parameter.ndim < 2]):
                raise ValueError(f"Muon takes tensors of two or more dimensions, not {tuple(flat[0])}.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; every process must call it.

        Args:
            closure: computes gradients first, and its result is returned.
        """
        with torch.enable_grad():
            result = closure() if closure is not None else None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["muon"]:
                self._step_muon(parameters, group)
            elif parameters:
                self._step_adamw(parameters, group)
        return result

    def _step_muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        together = dist.get_world_size() if dist.is_initialized() else 1  # one matrix for each process
        parameters = sorted(parameters, key=torch.Tensor.numel)  # of similar size, so that none waits for long
        for start in range(0, len(parameters), together):
            part = parameters[start : start + together]
            updates = [whole(self._nesterov(parameter, group["momentum"])).flatten(1) for parameter in part]
            dtype = _dtype(group["precision"], updates[0].device)
            for parameter, matrix in zip(part, orthogonalise_together(updates, dtype), strict=True):
                update = matrix.view(parameter.shape).to(parameter.dtype)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                length = group["lr"] * step_factor(group["step_size"], parameter.shape)
                parameter.add_(divided_like(parameter, update), alpha=-length)

    def _nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        """Add the gradient to the momentum of a parameter, and look one step ahead."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)

    def _step_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                }
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _dtype(precision: FixedPrecision | None, device: torch.device) -> torch.dtype:
    if precision is None:
        precision = "fp32" if device.type == "cpu" else "bf16"
    return torch.bfloat16 if precision == "bf16" else torch.float32
