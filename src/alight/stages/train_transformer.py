"""Stage 3: latents -> LightningDiT, trained with rectified flow (paper, section 4)."""

import torch

from alight.artifacts import (
    Artifact,
    check_output,
    file_hash,
    is_complete,
    read_artifact,
    write_manifest,
    writing_folder,
)
from alight.config import FlowConfig, TrainTransformerConfig
from alight.data.latents import LatentDataset
from alight.data.sampling import ResumableSampler
from alight.flow import PATHS, flow_matching_loss, sample_timesteps, time_interval
from alight.models.lightning_dit import LightningDiT
from alight.models.pretrained import WEIGHTS_FILE
from alight.runtime.device import autocast, compile_blocks, resolve_device
from alight.runtime.seeding import random_stream, seeded_initialisation
from alight.training.ema import EMA
from alight.training.optimizer import learning_rate, make_optimizer, optimizer_step
from alight.training.run import Stateful, TrainingRun


def run(config: TrainTransformerConfig) -> Artifact:
    """Train a transformer to predict the velocity from noise to latents, and store its averaged weights.

    Returns:
        The transformer artifact: a diffusers folder with the averaged weights, checkpoints in `training/`.

    Raises:
        InputError: on unusable latents, output folder or device; or on a loss that is not finite.
    """
    latents = read_artifact(config.latents, "latents")
    resolved = config.model_dump(mode="json")
    check_output(config.output, resolved, "transformer")
    if is_complete(config.output):
        transformer = read_artifact(config.output, "transformer")
        transformer.require_input(latents)
        return transformer
    device = resolve_device(config.device)
    dataset = LatentDataset(config.latents)
    with seeded_initialisation(config.seed, "transformer"):
        model = build_model(config, dataset).to(device)
    training, flow, path = config.training, config.flow, PATHS[config.flow.path]()
    if training.activation_checkpointing:
        model.enable_gradient_checkpointing()
    if training.compile:
        compile_blocks(model.blocks)
    optimizer = make_optimizer(model.parameters(), config.optimizer)
    ema = EMA(model, training.ema_decay) if training.ema_decay else None
    state: dict[str, Stateful] = {"model": model, "optimizer": optimizer} | ({"ema": ema} if ema else {})

    share = 1 / training.gradient_accumulation_steps
    sampler = ResumableSampler(len(dataset), training.global_batch_size, config.seed)
    with TrainingRun(config.output / "training", resolved, training, state, "transformer") as progress:
        sampler.advance(progress.start_step)
        order = iter(sampler)
        for step in progress.steps():
            # everything random is drawn for the whole batch, so that its pieces change nothing
            generator = random_stream(config.seed, "step", step)
            indices = next(order)
            flips = torch.rand(len(indices), generator=generator).numpy() < 0.5
            x_1, labels = dataset.gather(indices, flips)
            t = draw_times(flow, step, len(x_1), generator)
            x_0 = torch.randn(x_1.shape, generator=generator)
            labels = model.drop_labels(labels, generator=generator)
            for piece in torch.arange(len(x_1)).chunk(training.gradient_accumulation_steps):
                with autocast(device, training.precision):
                    loss = flow_matching_loss(
                        model,
                        x_1[piece].to(device),
                        labels[piece].to(device),
                        path=path,
                        prediction=flow.prediction,
                        loss_weight=flow.loss_weight,
                        cosine_weight=flow.cosine_weight,
                        t=t[piece].to(device),
                        x_0=x_0[piece].to(device),
                    )
                (share * loss.total).backward()
                progress.log(loss=loss.total, mse=loss.mse, cosine=loss.cosine)
            lr = learning_rate(step, training.steps, config.optimizer)
            progress.log(grad_norm=optimizer_step(optimizer, lr, config.optimizer.max_grad_norm))
            if ema is not None:
                ema.update(model)
    return save(ema.model if ema else model, config, latents, progress.seconds)


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


def build_model(config: TrainTransformerConfig, dataset: LatentDataset) -> LightningDiT:
    """LightningDiT of the configured size for these latents."""
    channels, height, width = dataset.shape
    fitted = {"sample_size": (height, width), "in_channels": channels, "num_classes": dataset.num_classes}
    options = config.model.model_dump(exclude={"preset"}, exclude_none=True)
    if config.model.preset:
        return LightningDiT.from_preset(config.model.preset, **fitted, **options)
    return LightningDiT(**fitted, **options)


def save(model: LightningDiT, config: TrainTransformerConfig, latents: Artifact, seconds: float) -> Artifact:
    """Write the weights to sample with, and what sampling must know of the latents."""
    dataset = LatentDataset(config.latents)
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
    return read_artifact(config.output, "transformer")
