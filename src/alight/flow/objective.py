"""The training objective: regress the velocity (or the noise, or the score) at a random point of the path.

For velocities LightningDiT adds a direction term, 1 - cos(v, v_theta) over the channels of every latent position
(arXiv 2501.01423, section 4; FasterDiT, arXiv 2410.10356).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from alight.flow.interval import time_interval
from alight.flow.path import Path, PathSample, time_like
from alight.flow.randomness import Generators, standard_normal
from alight.flow.timesteps import sample_timesteps
from alight.options import LossWeight, Prediction, names_of, require_known


@dataclass(frozen=True)
class FlowMatchingLoss:
    """The parts of the objective for one batch.

    Attributes:
        total: scalar to differentiate: mse + cosine_weight * cosine (+ auxiliary_weight * auxiliary).
        mse: scalar, mean (weighted) squared error; what is usually logged.
        cosine: scalar, mean of 1 - cosine; 0 where the direction term does not apply.
        mse_per_sample: (B,).
        cosine_per_sample: (B,).
        prediction: the model's output, shape of the data.
        t: (B,) the times that were used.
        auxiliary: scalar, mean (weighted) squared error of the auxiliary prediction; None without one.
        auxiliary_per_sample: (B,), or None.
        auxiliary_prediction: shape of the data, or None.
    """

    total: Tensor
    mse: Tensor
    cosine: Tensor
    mse_per_sample: Tensor
    cosine_per_sample: Tensor
    prediction: Tensor
    t: Tensor
    auxiliary: Tensor | None = None
    auxiliary_per_sample: Tensor | None = None
    auxiliary_prediction: Tensor | None = None


def flow_matching_loss(
    model: Callable[[Tensor, Tensor, Tensor], Any],
    x_1: Tensor,
    class_labels: Tensor,
    *,
    path: Path,
    prediction: Prediction = "velocity",
    loss_weight: LossWeight | None = None,
    cosine_weight: float = 1.0,
    auxiliary_weight: float | None = None,
    t: Tensor | None = None,
    x_0: Tensor | None = None,
    generator: Generators = None,
) -> FlowMatchingLoss:
    """One Monte Carlo estimate of the flow-matching objective over a batch.

    Times are float32, and so is everything computed from them: answers in half precision are compared in float32.

    Args:
        model: `model(x_t, t, class_labels)`, of the shape of `x_t`; a pair of these with `auxiliary_weight`.
        x_1: (B, C, ...) data, channels at dimension 1: normalised latents.
        class_labels: (B,) labels, handed to the model.
        path: from noise to data.
        prediction: kind of the model's output: "velocity", "noise" or "score".
        loss_weight: weight of errors of noise and score over time: None or "none" evenly, "velocity" as the
            velocity error that they cause, "likelihood" as they enter the likelihood bound (SiT, arXiv 2401.08740).
            A velocity error counts evenly whatever is given here, as published.
        cosine_weight: factor of the direction term. It exists for velocities only; other predictions have none.
        auxiliary_weight: factor of the squared error of a second prediction, which the model then returns beside the
            first, as `partial(model, auxiliary=True)` of a LightningDiT does (Internal Guidance, arXiv 2512.24176). It
            has no direction term. None: the model has no second prediction.
        t: (B,) times; drawn logit-normally inside the path's interval if not given.
        x_0: the noise; drawn from `generator` (before t) if not given.
        generator: one for the batch, or one per sample.

    Raises:
        InputError: unknown names, or shapes that do not belong together.
    """
    require_known(prediction, names_of(Prediction), "prediction")
    require_known(loss_weight or "none", names_of(LossWeight), "loss weight")
    if x_0 is None:
        x_0 = standard_normal(x_1.shape, generator, x_1.device, x_1.dtype)
    if t is None:
        interval = time_interval(path, prediction)
        t = sample_timesteps(len(x_1), low=interval.start, high=interval.end, generator=generator, device=x_1.device)
    point = path.sample(x_1, x_0, t)
    answer = model(point.x_t, point.t, class_labels)
    output = answer if auxiliary_weight is None else answer[0]
    loss = _main_loss(output, point, t, path, prediction, loss_weight or "none", cosine_weight)
    if auxiliary_weight is None:
        return loss
    error = _squared_error(answer[1], point, path, prediction, loss_weight or "none")
    total, auxiliary = loss.total + auxiliary_weight * error.mean(), error.mean()
    return replace(loss, total=total, auxiliary=auxiliary, auxiliary_per_sample=error, auxiliary_prediction=answer[1])


def _main_loss(
    output: Tensor,
    point: PathSample,
    t: Tensor,
    path: Path,
    prediction: Prediction,
    loss_weight: LossWeight,
    cosine_weight: float,
) -> FlowMatchingLoss:
    """The objective of a model's own output: squared error and, for velocities, direction."""
    mse_per_sample = _squared_error(output, point, path, prediction, loss_weight)
    cosine_per_sample = (
        _direction_error(output, point) if prediction == "velocity" else torch.zeros_like(mse_per_sample)
    )
    mse, cosine = mse_per_sample.mean(), cosine_per_sample.mean()
    return FlowMatchingLoss(
        total=mse + cosine_weight * cosine,
        mse=mse,
        cosine=cosine,
        mse_per_sample=mse_per_sample,
        cosine_per_sample=cosine_per_sample,
        prediction=output,
        t=t,
    )


def _squared_error(
    output: Tensor, point: PathSample, path: Path, prediction: Prediction, loss_weight: LossWeight
) -> Tensor:
    """The mean (weighted) squared error of each sample, (B,)."""
    return _weighted_error(output, point, path, prediction, loss_weight).square().flatten(1).mean(1)


def _weighted_error(
    output: Tensor, point: PathSample, path: Path, prediction: Prediction, loss_weight: LossWeight
) -> Tensor:
    """The error that is squared: of the velocity, or the noise error times the square root of its weight.

    A score s implies the noise -sigma s, so that both are compared with the noise. With c the score coefficient, a
    noise error e is a velocity error c e / sigma, and enters the likelihood bound as c e^2 / sigma^2.
    """
    if prediction == "velocity":
        return output - point.velocity
    time = time_like(point.t, point.x_t)
    sigma = path.sigma(time)
    noise = output if prediction == "noise" else -sigma * output
    return _error_weight(path, time, loss_weight) * (noise - point.x_0)


def _error_weight(path: Path, time: Tensor, loss_weight: LossWeight) -> Tensor:
    if loss_weight == "velocity":
        return path.score_coefficient(time) / path.sigma(time)
    if loss_weight == "likelihood":
        return path.score_coefficient(time).sqrt() / path.sigma(time)
    return torch.ones_like(time)


def _direction_error(output: Tensor, point: PathSample) -> Tensor:
    """1 - cosine between predicted and true velocity over the channels, averaged over the positions: (B,)."""
    cosine = F.cosine_similarity(output.to(point.velocity.dtype), point.velocity, dim=1)
    return (1 - cosine).reshape(len(cosine), -1).mean(1)
