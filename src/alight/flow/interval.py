"""The part of [0, 1] in which a path, a prediction and a sampler are free of divisions by zero."""

from typing import NamedTuple

from alight.flow.path import Path
from alight.options import DiffusionForm, Prediction
from alight.runtime.errors import InputError


class TimeInterval(NamedTuple):
    """Start and end in model time (0 noise, 1 data)."""

    start: float
    end: float

    @property
    def in_noise_time(self) -> "TimeInterval":
        """The same ends in noise time 1 - t."""
        return TimeInterval(1 - self.start, 1 - self.end)


class SingularEnds(NamedTuple):
    """The ends of the path at which a coefficient of the field is infinite."""

    noise: bool
    data: bool


def singular_ends(
    path: Path, prediction: Prediction = "velocity", diffusion_form: DiffusionForm | None = None
) -> SingularEnds:
    """The ends of the path at which the field diverges.

    At t = 0 alpha may vanish: then noise and score fix no velocity, and the "sbdm" diffusion is infinite. At t = 1
    sigma vanishes: then velocity and noise fix no score, which every SDE needs, and the VP velocity diverges.
    """
    return SingularEnds(
        noise=path.alpha_vanishes_at_noise and (prediction != "velocity" or diffusion_form == "sbdm"),
        data=diffusion_form is not None or prediction != "velocity" or path.velocity_diverges_at_data,
    )


def default_eps(path: Path, prediction: Prediction = "velocity", diffusion_form: DiffusionForm | None = None) -> float:
    """The distance from a singular end: 0 where there is none, 1e-5 on the VP path, else 1e-3 (as in SiT)."""
    if not any(singular_ends(path, prediction, diffusion_form)):
        return 0.0
    return 1e-5 if path.velocity_diverges_at_data and diffusion_form is None else 1e-3


def time_interval(
    path: Path,
    prediction: Prediction = "velocity",
    eps: float | None = None,
    *,
    diffusion_form: DiffusionForm | None = None,
    last_step_size: float = 0.0,
) -> TimeInterval:
    """The times in which to train, to integrate the ODE, or to simulate the SDE: [0, 1] without its singular ends.

    Args:
        path: the path.
        prediction: of the network.
        eps: distance to keep from a singular end; None is `default_eps`. It has no effect at an end that is regular.
        diffusion_form: of the SDE (`diffusion_coefficient`); None for training and for the ODE.
        last_step_size: length of the SDE's last, noise-free step, which starts at 1 - last_step_size.

    Raises:
        InputError: `eps` or `last_step_size` leave no interval.
    """
    eps = default_eps(path, prediction, diffusion_form) if eps is None else eps
    singular = singular_ends(path, prediction, diffusion_form)
    start = eps if singular.noise else 0.0
    end = 1.0 - eps if singular.data else 1.0
    if diffusion_form is not None and last_step_size > 0:
        end = 1.0 - last_step_size
    if not 0 <= start < end <= 1:
        raise InputError(
            f"eps={eps} and last_step_size={last_step_size} leave no time between noise and data. "
            "Choose values well below 1 (such as 1e-3 and 0.04), not negative."
        )
    return TimeInterval(start, end)
