"""The strength of the noise that an SDE injects: the diffusion coefficient D(t) of

    dx = (velocity + D score) dt + sqrt(2 D) dW.

Every D >= 0 has the same marginals p_t as the ODE (D = 0), so D is a choice of the sampler and not of the training
(SiT, arXiv 2401.08740).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from alight.flow.path import Path
from alight.options import DiffusionForm, names_of, require_known


def diffusion_coefficient(path: Path, t: Tensor, form: DiffusionForm = "sigma", norm: float = 1.0) -> Tensor:
    """D(t) of the SDE, in the shape of `t`.

    Args:
        path: gives sigma and the score coefficient.
        t: times in [0, 1].
        form: "constant": norm. "sigma": norm sigma(t). "linear": norm (1 - t). "sbdm": norm times the score
            coefficient, the diffusion of score-based models, infinite at t = 0 where alpha(0) = 0. "decreasing":
            ((norm cos(pi t) + 1) / 2)^2. "increasing-decreasing": norm sin(pi t)^2.
        norm: overall strength.

    Raises:
        InputError: an unknown form.
    """
    require_known(form, names_of(DiffusionForm), "diffusion form")
    coefficient: dict[DiffusionForm, Callable[[], Tensor]] = {
        "constant": lambda: norm * torch.ones_like(t),
        "sbdm": lambda: norm * path.score_coefficient(t),
        "sigma": lambda: norm * path.sigma(t),
        "linear": lambda: norm * (1 - t),
        "decreasing": lambda: 0.25 * (norm * torch.cos(math.pi * t) + 1).square(),
        "increasing-decreasing": lambda: norm * torch.sin(math.pi * t).square(),
    }
    return coefficient[form]()
