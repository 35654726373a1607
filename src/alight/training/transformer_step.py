"""The training step of the transformer: a batch, drawn as a whole, and the gradient of one micro-batch of it.

Everything random is drawn for the whole batch of all processes, so that neither their number nor the size of a
micro-batch changes what is learned.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from alight.config import FlowConfig, TrainTransformerConfig
from alight.data.latent_features import LatentFeatures
from alight.data.latents import LatentDataset
from alight.flow import (
    PATHS,
    average_velocity_loss,
    flow_matching_loss,
    resolve_shift,
    sample_timesteps,
    time_interval,
)
from alight.models.lightning_dit import LightningDiT
from alight.options import AUTO, Precision
from alight.runtime.device import attention_kernel, autocast, full_float32
from alight.runtime.errors import InputError
from alight.runtime.seeding import noise_of_batch, random_stream
from alight.training.shortage import of_transformer
from alight.training.token_alignment import TappedForward, TokenAlignment


class TransformerBatch(NamedTuple):
    """Latents and everything random that a step needs.

    Attributes:
        x_1: (B, C, h, w) normalised latents.
        labels: (B,) int64, some of them replaced by the null class.
        t: (B,) times.
        x_0: (B, C, h, w) noise.
        indices: (B,) int64 positions in the data set, by which anything stored per image can join the batch.
        features: (B, D, h, w) of a foundation model, in the type that is stored; None = tokens are not aligned.
        until: (B,) ends of the steps that begin at t, of average velocities alone.
        long: a flag per row whose step has a length, (B,) in Python, for the host; None = the device is asked.
    """

    x_1: Tensor
    labels: Tensor
    t: Tensor
    x_0: Tensor
    indices: Tensor
    features: Tensor | None = None
    until: Tensor | None = None
    long: tuple[bool, ...] | None = None

    def to(self, device: torch.device) -> "TransformerBatch":
        """The same on a device."""
        return TransformerBatch._make(part.to(device) if isinstance(part, Tensor) else part for part in self)

    def micro_batches(self, count: int) -> list["TransformerBatch"]:
        """The batch in equal parts."""
        size = -(-len(self.t) // count)
        return [self._rows(slice(start, start + size)) for start in range(0, len(self.t), size)]

    def first(self, count: int) -> "TransformerBatch":
        """The first of its images."""
        return self._rows(slice(count))

    def _rows(self, rows: slice) -> "TransformerBatch":
        return TransformerBatch._make(None if part is None else part[rows] for part in self)


def draw_batch(
    config: TrainTransformerConfig,
    model: LightningDiT,
    dataset: LatentDataset,
    indices: Sequence[int],
    step: int,
    own: slice,
    features: LatentFeatures | None = None,
) -> TransformerBatch:
    """Draw the batch of a step, with features where tokens are aligned at this step."""
    batch, generator = config.training.global_batch_size, random_stream(config.seed, "step", step)
    flips = (torch.rand(batch, generator=generator) < 0.5)[own].numpy()
    flow = with_resolved_shift(config.flow, dataset.shape)
    t, until, long = draw_times(flow, step, batch, generator), None, None
    if flow.objective == "average_velocity":
        t, until = draw_steps(flow, step, t, random_stream(config.seed, "until", step))
        until, long = until[own], tuple((until != t)[own].tolist())
    u = torch.rand(batch, generator=generator)[own]
    x_0 = noise_of_batch(own, dataset.shape, config.seed, "noise", step)
    noise = noise_of_batch(own, dataset.shape, config.seed, "posterior", step) if dataset.has_moments else None
    x_1, labels, positions = dataset.gather(indices, flips, noise=noise)
    aligned = features is not None and config.representation.counts_at(step)
    targets = features.gather(indices, flips) if features is not None and aligned else None
    return TransformerBatch(x_1, model.drop_labels(labels, u=u), t[own], x_0, positions, targets, until, long)


def with_resolved_shift(flow: FlowConfig, shape: Sequence[int]) -> FlowConfig:
    """The flow for latents of a shape (C, h, w), by whose size an automatic timestep shift is chosen."""
    if flow.timestep_shift != AUTO:
        return flow
    return flow.model_copy(update={"timestep_shift": resolve_shift(AUTO, shape)})


def draw_times(flow: FlowConfig, step: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw training times (count,) inside the interval in which the path and the prediction are regular.

    No time is before the flow's first: uniform times are mapped to what is left, others drawn again.
    """
    late = flow.uniform_from_step is not None and step >= flow.uniform_from_step
    interval = time_interval(PATHS[flow.path](), flow.prediction)
    distribution = "uniform" if late else flow.time_sampling
    truncated = distribution != "uniform" and flow.first_time > 0
    try:
        return sample_timesteps(
            count,
            distribution,
            flow.logit_normal_mean,
            flow.logit_normal_std,
            low=interval.start if truncated else max(interval.start, flow.first_time),
            high=interval.end,
            shift=resolve_shift(flow.timestep_shift),
            truncate=(flow.first_time, 1.0) if truncated else None,
            generator=generator,
        )
    except InputError as error:
        if not truncated:
            raise
        raise InputError(
            f"flow.first_time {flow.first_time} leaves hardly any of the times that flow.logit_normal_mean "
            f"{flow.logit_normal_mean:g} and logit_normal_std {flow.logit_normal_std:g} give. Lower it; 0.001 is "
            "published."
        ) from error


def draw_steps(flow: FlowConfig, step: int, t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Starts and ends of steps, both (B,): `t` twice, or the earlier and the later of `t` and another random time.

    Args:
        flow: says how often a step has no length, and how times are distributed.
        step: of the training.
        t: (B,) random times.
        generator: of everything else.
    """
    other = draw_times(flow, step, len(t), generator)
    other = torch.where(torch.rand(len(t), generator=generator) < flow.average_velocity.equal_times, t, other)
    return torch.minimum(t, other), torch.maximum(t, other)


@of_transformer
def transformer_backward(
    forward: nn.Module,
    batch: TransformerBatch,
    flow: FlowConfig,
    precision: Precision = "fp32",
    micro_batches: int = 1,
    alignment: TokenAlignment | None = None,
) -> dict[str, Tensor]:
    """Add the gradient of the flow matching objective (paper, section 4), or of average velocities, to the parameters.

    Args:
        forward: the transformer, or the module that averages its gradients over processes.
        batch: a micro-batch, on the device of the transformer.
        flow: path, prediction and weights of the loss; that of the auxiliary output counts where there is one.
        precision: of the forward pass.
        micro_batches: of equal size in the step; the gradient is this share of it.
        alignment: of tokens with the features of the batch; a batch without features is learned from as without it.

    Returns:
        The loss and its terms, without gradient, by their names in the log.
    """
    if batch.until is not None:
        averages = average_velocity_terms(forward, batch, batch.until, flow, precision)
        (averages["loss"] / micro_batches).backward()
        return {name: term.detach() for name, term in averages.items()}
    auxiliary = has_auxiliary_output(forward)
    predict = partial(forward, auxiliary=True) if auxiliary else forward
    aligned = alignment is not None and batch.features is not None
    tapped = TappedForward(predict, alignment.block) if alignment is not None and aligned else None
    with autocast(batch.x_1.device, precision):
        loss = flow_matching_loss(
            tapped or predict,
            batch.x_1,
            batch.labels,
            path=PATHS[flow.path](),
            prediction=flow.prediction,
            loss_weight=flow.loss_weight,
            cosine_weight=flow.cosine_weight,
            auxiliary_weight=flow.auxiliary_weight if auxiliary else None,
            t=batch.t,
            x_0=batch.x_0,
        )
        total, similarity = loss.total, None
        if alignment is not None and tapped is not None and batch.features is not None:
            similarity = alignment.loss(tapped.tokens, batch.features)
            total = total + alignment.weight * similarity
    (total / micro_batches).backward()
    terms = {"loss": total, "mse": loss.mse, "cosine": loss.cosine, "auxiliary": loss.auxiliary}
    terms["representation"] = similarity
    return {name: term.detach() for name, term in terms.items() if term is not None}


def average_velocity_terms(
    forward: nn.Module, batch: TransformerBatch, until: Tensor, flow: FlowConfig, precision: Precision
) -> dict[str, Tensor]:
    """The objective of average velocities and its terms, by their names in the log; see `average_velocity_loss`.

    Targets come from the transformer itself, not from the module that averages gradients, which counts its passes.
    Their derivative is taken in float32, with attention as plain matrix products: fused kernels have no forward mode.
    Each pass has an autocast of its own, since one that is entered without gradient leaves narrow weights behind
    that have none.
    """
    model = cast(LightningDiT, getattr(forward, "module", forward))

    def under_autocast(module: Callable[..., Any], *inputs: Tensor, **later: Tensor) -> Any:
        with autocast(batch.x_1.device, precision):
            return module(*inputs, **later)

    def teacher(*inputs: Tensor, until: Tensor | None = None) -> Any:
        if until is None:
            return under_autocast(model, *inputs)
        with attention_kernel("products"), full_float32():
            return model(*inputs, until=until)

    settings = flow.average_velocity
    loss = average_velocity_loss(
        partial(under_autocast, forward),
        batch.x_1,
        batch.labels,
        path=PATHS[flow.path](),
        t=batch.t,
        until=until,
        x_0=batch.x_0,
        guidance_scale=settings.guidance_scale,
        null_label=model.null_label if settings.guidance_scale != 1 else None,
        adaptive_power=settings.adaptive_power,
        teacher=teacher,
        num_long=None if batch.long is None else sum(batch.long),
    )
    return {"loss": loss.total, "mse": loss.mse}


def has_auxiliary_output(forward: nn.Module) -> bool:
    """Tell if a transformer has an auxiliary output, also one that is wrapped for several processes."""
    model = getattr(forward, "module", forward)
    return isinstance(model, LightningDiT) and model.has_auxiliary_output
