"""The network evaluations that sampling costs, known without a network."""

from typing import Any

import torch
from torch import Tensor

from alight.flow.guidance import GuidedVelocity
from alight.flow.path import LinearPath
from alight.flow.sampling import SolverOptions, sample
from alight.options import ADAPTIVE_SOLVERS

ADAPTIVE_STEPS = 100  # evaluations of an adaptive solver, about; the real number depends on the network
# Settings of sampling that change no number of evaluations; internal guidance takes both predictions from one.
SAME_EVALUATIONS = {"guidance", "guidance_channels", "internal_scale", "internal_interval"}
MOST_COUNTED = 50  # more steps are not counted one by one


def expected_evaluations(
    num_inference_steps: int,
    solver: str = "euler",
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    **options: Any,
) -> float:
    """Evaluations per image (NFE), counted on a field of zeros; the arguments are those of a pipeline call.

    Raises:
        InputError: settings that do not go together.
    """
    adaptive = solver in ADAPTIVE_SOLVERS
    steps = ADAPTIVE_STEPS if adaptive else num_inference_steps
    counted = min(steps, MOST_COUNTED)

    def zeros(x: Tensor, t: Tensor, labels: Tensor, until: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)

    label = torch.zeros(1, dtype=torch.long)
    made = sample(
        GuidedVelocity(zeros, label, label, guidance_scale, guidance_interval),
        torch.zeros(1, 1, 1, 1),
        counted,
        "euler" if adaptive else solver,
        SolverOptions() if adaptive else SolverOptions(**options),
        path=LinearPath(),
        generator=torch.Generator().manual_seed(0),
    )
    return made.nfe * steps / counted
