"""Interpolation from one image or class to another."""

import torch
from torch import Tensor

from alight.config import SolverConfig
from alight.flow import GuidedVelocity, sample
from alight.pipelines import LightningDiTPipeline
from alight.pipelines.lightning_dit import latent_shape
from alight.runtime.errors import InputError
from alight.runtime.seeding import noise_of_seeds


def between_latents(first: Tensor, last: Tensor, frames: int) -> Tensor:
    """Interpolate linearly between two latents (C, h, w); returns (frames, C, h, w)."""
    weight = _weights(frames, first)
    return (1 - weight) * first + weight * last


@torch.no_grad()
def between_classes(
    pipeline: LightningDiTPipeline, first: int, last: int, frames: int, seed: int, sampling: SolverConfig
) -> Tensor:
    """Interpolate between two classes: every frame starts from the same noise and follows a mixture of two velocities.

    Velocities, like scores, can be mixed: half of each leads to images that are likely under both classes.

    Returns:
        (frames, C, h, w) normalised latents.

    Raises:
        InputError: the solver adds noise, or the transformer does not support the guidance.
    """
    if sampling.stochastic:
        raise InputError(
            f"{sampling.solver} adds noise at every step, so neighbouring frames differ. Choose an ODE solver."
        )
    transformer = pipeline.transformer
    guided = [
        pipeline.velocity(
            [label] * frames,
            sampling.guidance_scale,
            sampling.guidance_interval,
            sampling.guidance_channels,
            guidance=sampling.guidance,
            internal_scale=sampling.internal_scale,
            internal_interval=sampling.internal_interval,
        )
        for label in (first, last)
    ]
    noise = noise_of_seeds([seed], latent_shape(transformer)).to(transformer.device).repeat(frames, 1, 1, 1)
    mixed = MixedVelocity(guided[0], guided[1], _weights(frames, noise))
    warp, end = sampling.time_warp, sampling.last_time
    flow = pipeline.flow(sampling.timestep_shift, time_warp=warp, kappa=sampling.kappa, last_time=end)
    return sample(mixed, noise, sampling.num_inference_steps, sampling.solver, **flow).x


class MixedVelocity:
    """A weighted mean of two velocity fields; row i of the weights (B, 1, 1, 1) is the share of the second."""

    def __init__(self, first: GuidedVelocity, second: GuidedVelocity, weight: Tensor) -> None:
        self.first, self.second, self.weight = first, second, weight

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """The times at which both fields jump."""
        return self.first.breakpoints

    def __call__(self, x: Tensor, t: float, *until: float) -> Tensor:
        """The velocity at state `x` and time `t`, or its average until a later time."""
        return (1 - self.weight) * self.first(x, t, *until) + self.weight * self.second(x, t, *until)


def _weights(frames: int, like: Tensor) -> Tensor:
    return torch.linspace(0, 1, frames, dtype=like.dtype, device=like.device).view(-1, 1, 1, 1)
