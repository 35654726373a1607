"""Stage 3: latents -> LightningDiT, trained with rectified flow (paper, section 4)."""

import math
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from alight.artifacts import Artifact, read_artifact, write_manifest
from alight.config import FlowConfig, TrainTransformerConfig
from alight.data.latents import LatentDataset
from alight.data.sampling import ResumableSampler
from alight.flow import (
    PATHS,
    GuidedVelocity,
    VelocityField,
    flow_matching_loss,
    sample_timesteps,
    solve_ode,
    time_interval,
)
from alight.interop.tokenizer_sources import open_tokenizer
from alight.models.lightning_dit import LightningDiT
from alight.models.pretrained import WEIGHTS_FILE
from alight.models.vavae import VAVAE
from alight.outputs import claimed_output, writing_folder
from alight.reporting.pictures import image_grid
from alight.runtime.device import autocast, compile_blocks, resolve_device
from alight.runtime.distributed import Processes, process_group
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.runtime.pixels import to_uint8
from alight.runtime.seeding import noise_of_batch, random_stream, seeded_initialisation
from alight.training.ema import EMA
from alight.training.flops import count_flops
from alight.training.optimizer import learning_rate, make_optimizer, optimizer_step
from alight.training.parallel import ModelState, OptimizerState, release_weights, replicate, shard, synchronised
from alight.training.run import Stateful, TrainingRun

SAMPLE_STEPS = 20  # of a second-order solver, enough to see what training does


def run(config: TrainTransformerConfig) -> Artifact:
    """Train a transformer to predict the velocity from noise to latents, and store its averaged weights.

    Returns:
        The transformer artifact: a diffusers folder with the averaged weights, checkpoints in `training/`.

    Raises:
        InputError: on unusable latents, output folder or device; or on a gradient that is not finite.
    """
    latents = read_artifact(config.latents, "latents")
    resolved = config.model_dump(mode="json")
    with (
        process_group(resolve_device(config.device)) as processes,
        claimed_output(config.output, "transformer", resolved, is_main=processes.is_main) as finished,
    ):
        if finished is None:
            train(config, resolved, latents, processes)
        else:
            finished.require_input(latents)
    return read_artifact(config.output, "transformer")


def train(config: TrainTransformerConfig, resolved: dict[str, Any], latents: Artifact, processes: Processes) -> None:
    """The training loop; its steps are those of one process, whatever the number of processes and pieces."""
    training, flow, path, device = config.training, config.flow, PATHS[config.flow.path](), processes.device
    dataset = LatentDataset(config.latents)
    sampler = ResumableSampler(
        len(dataset), training.global_batch_size, config.seed, processes.rank, processes.world_size
    )
    pieces = training.pieces(processes.world_size)
    model, ema, optimizer, forward = build_training(config, dataset, processes)
    state: dict[str, Stateful] = {"model": ModelState(model), "optimizer": OptimizerState(model, optimizer)}
    if ema is not None:
        state["ema"] = ModelState(ema.model)

    batch, own = training.global_batch_size, processes.share(training.global_batch_size)
    sampled = ema.model if ema is not None else model
    preview = open_preview(config, dataset, latents, drawing=processes.is_main or isinstance(sampled, FSDPModule))
    with TrainingRun(
        config.output / "training",
        resolved,
        training,
        state,
        "transformer",
        processes,
        dataset_size=len(dataset),
        flops_per_image=image_flops(config, dataset),
    ) as progress:
        sampler.advance(progress.start_step)
        order = iter(sampler)
        for step in progress.steps():
            # everything random is drawn for the whole batch, so that its pieces change nothing
            generator = random_stream(config.seed, "step", step)
            flips = (torch.rand(batch, generator=generator) < 0.5)[own].numpy()
            t = draw_times(flow, step, batch, generator)[own]
            u = torch.rand(batch, generator=generator)[own]
            x_0 = noise_of_batch(own, dataset.shape, config.seed, "noise", step)
            noise = noise_of_batch(own, dataset.shape, config.seed, "posterior", step) if dataset.has_moments else None
            x_1, labels = dataset.gather(next(order), flips, noise=noise)
            labels = model.drop_labels(labels, u=u)
            for piece in torch.arange(len(x_1)).chunk(pieces):
                with synchronised(forward, last=bool(piece[-1] == len(x_1) - 1)):
                    with autocast(device, training.precision):
                        loss = flow_matching_loss(
                            forward,
                            x_1[piece].to(device),
                            labels[piece].to(device),
                            path=path,
                            prediction=flow.prediction,
                            loss_weight=flow.loss_weight,
                            cosine_weight=flow.cosine_weight,
                            t=t[piece].to(device),
                            x_0=x_0[piece].to(device),
                        )
                    (loss.total / pieces).backward()
                progress.log(loss=loss.total, mse=loss.mse, cosine=loss.cosine)
            lr = learning_rate(step, training.steps, config.optimizer)
            norm = optimizer_step(optimizer, lr, config.optimizer.max_grad_norm)
            progress.log(grad_norm=norm, lr=lr)
            progress.check(norm)
            if ema is not None:
                ema.update(model)
            if preview is not None and config.samples_every and (step + 1) % config.samples_every == 0:
                progress.picture("samples", step + 1, draw_samples(sampled, preview, config, device))
    weights = ModelState(sampled).state_dict()
    if processes.is_main:
        save(weights, config, dataset, latents, progress.seconds)
    processes.barrier()  # the artifact is there


class LatentFormat(Protocol):
    """What a transformer must know of its latents."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w) of one."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""


class Training(NamedTuple):
    """What is trained.

    Attributes:
        model: the transformer; its parameters lie in this process, or a part of each.
        ema: its average; None = off.
        optimizer: of the model.
        forward: what to call, so that gradients are averaged over the processes.
    """

    model: LightningDiT
    ema: EMA[LightningDiT] | None
    optimizer: torch.optim.Optimizer
    forward: nn.Module


def build_training(config: TrainTransformerConfig, dataset: LatentFormat, processes: Processes) -> Training:
    """The model from the seed, its average and optimizer, laid out over the processes."""
    training = config.training
    with seeded_initialisation(config.seed, "transformer"):
        model = build_model(config, dataset).to(processes.device)
    if training.activation_checkpointing:
        model.enable_gradient_checkpointing()
    ema = EMA(model, training.ema_decay) if training.ema_decay else None
    if training.compile:
        compile_blocks(model.blocks)
    if training.sharding == "shard" and processes.world_size > 1:
        for each in (model, *([ema.model] if ema is not None else [])):
            shard(each, each.blocks)
    optimizer = make_optimizer(model.parameters(), config.optimizer)
    return Training(model, ema, optimizer, replicate(model, processes))


def draw_times(flow: FlowConfig, step: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Training times (count,), inside the interval in which the path and the prediction are regular."""
    late = flow.uniform_from_step is not None and step >= flow.uniform_from_step
    interval = time_interval(PATHS[flow.path](), flow.prediction)
    return sample_timesteps(
        count,
        "uniform" if late else flow.time_sampling,
        flow.logit_normal_mean,
        flow.logit_normal_std,
        low=interval.start,
        high=interval.end,
        shift=flow.timestep_shift,
        generator=generator,
    )


def build_model(config: TrainTransformerConfig, dataset: LatentFormat) -> LightningDiT:
    """LightningDiT of the configured size for these latents."""
    channels, height, width = dataset.shape
    fitted = {"sample_size": (height, width), "in_channels": channels, "num_classes": dataset.num_classes}
    options = config.model.model_dump(exclude={"preset"}, exclude_none=True)
    if config.model.preset:
        return LightningDiT.from_preset(config.model.preset, **fitted, **options)
    return LightningDiT(**fitted, **options)


def image_flops(config: TrainTransformerConfig, dataset: LatentDataset) -> int | None:
    """Floating-point operations to learn from one image."""
    with torch.device("meta"):
        model, x, t = build_model(config, dataset), torch.empty(1, *dataset.shape), torch.empty(1)
        labels = torch.empty(1, dtype=torch.int64)
    return count_flops(lambda: model(x, t, labels).sum().backward())


# --- on the way ---------------------------------------------------------------------------------------------------


class Preview(NamedTuple):
    """What samples are drawn from while training goes on: the same at every step, so that they can be compared.

    Attributes:
        vae: decodes them.
        noise: (N, C, h, w).
        labels: (N,), spread over all classes.
    """

    vae: VAVAE
    noise: Tensor
    labels: Tensor


def open_preview(
    config: TrainTransformerConfig, dataset: LatentDataset, latents: Artifact, drawing: bool
) -> Preview | None:
    """Find the tokenizer that the latents were made with.

    Args:
        config: says whether samples are wanted, and may say where the tokenizer is.
        dataset: of the latents.
        latents: their manifest.
        drawing: whether this process takes part; of a sharded model, all of them must.

    Raises:
        InputError: if it is not there, or is another one.
    """
    if config.samples_every is None or not drawing:
        return None
    source = config.samples_tokenizer or latents.config.get("tokenizer")
    if source is None or not (config.samples_tokenizer or Path(source).exists()):
        raise InputError(
            f"samples_every draws images, but the tokenizer that the latents in {latents.path} were made with is not "
            f"{'known' if source is None else f'in {source} any more'}. Name its folder with --samples-tokenizer."
        )
    vae, artifact = open_tokenizer(source)
    latents.require_input(artifact)
    vae.set_latents_statistics(dataset.mean.flatten(), dataset.std.flatten())
    count, classes = config.sample_images, dataset.num_classes
    labels = torch.arange(count) * max(classes // count, 1) % classes
    return Preview(vae, noise_of_batch(slice(0, count), dataset.shape, config.seed, "samples"), labels)


@torch.no_grad()
def draw_samples(
    model: LightningDiT, preview: Preview, config: TrainTransformerConfig, device: torch.device
) -> np.ndarray:
    """A grid of images as the model makes them now, without guidance."""
    path, prediction, vae = PATHS[config.flow.path](), config.flow.prediction, preview.vae.to(device)
    velocity = VelocityField(GuidedVelocity(model, preview.labels.to(device)), path, prediction)
    start, end = time_interval(path, prediction)
    with autocast(device, config.training.precision):
        latents = solve_ode(velocity, preview.noise.to(device), SAMPLE_STEPS, "ab2", t_0=start, t_1=end).x
        # one by one, since training leaves little memory; and a picture of nothing is no reason to stop it
        images = torch.cat([vae.decode_latents(each[None]).nan_to_num() for each in latents])
    release_weights(model)
    return image_grid(to_uint8(images).cpu().numpy(), columns=math.isqrt(len(images) - 1) + 1)


# --- end ----------------------------------------------------------------------------------------------------------


def save(
    weights: dict[str, Any], config: TrainTransformerConfig, dataset: LatentDataset, latents: Artifact, seconds: float
) -> None:
    """Write the weights to sample with, and what sampling must know of the latents."""
    model = build_model(config, dataset)
    model.load_state_dict(weights)
    inputs = {"latents": latents.hash, "tokenizer": latents.inputs["tokenizer"]}
    facts = {
        "class_names": list(dataset.class_names),
        "latents_mean": dataset.mean.flatten().tolist(),
        "latents_std": dataset.std.flatten().tolist(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": config.training.steps,
        "path": config.flow.path,
        "prediction": config.flow.prediction,
    }
    with writing_folder(config.output) as staging:
        model.save_pretrained(staging)
        digest = file_hash(staging / WEIGHTS_FILE)
        write_manifest(staging, "transformer", config.model_dump(mode="json"), digest, inputs, facts, seconds)
