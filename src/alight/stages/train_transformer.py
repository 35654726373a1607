"""Stage 3: latents -> LightningDiT, trained with rectified flow (paper, section 4)."""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from alight.artifacts import Artifact, read_artifact, write_manifest
from alight.config import TrainTransformerConfig
from alight.data.latent_features import LatentFeatures
from alight.data.latents import LatentDataset
from alight.data.sampling import ResumableSampler
from alight.device_settings import joined
from alight.flow import PATHS, GuidedVelocity, SolverOptions, resolve_shift, sample
from alight.interop.tokenizer_sources import open_tokenizer
from alight.interop.transformer_sources import (
    OpenTransformer,
    architecture_of,
    open_transformer,
    warn_of_other_training,
)
from alight.models.lightning_dit import LightningDiT
from alight.models.pretrained import WEIGHTS_FILE
from alight.models.tokenizer import Tokenizer
from alight.options import AUTO, MEAN_SOLVER
from alight.outputs import claimed_output, read_written, writing_folder
from alight.reporting.pictures import image_grid
from alight.runtime.ahead import on_device
from alight.runtime.console import log
from alight.runtime.device import autocast
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.runtime.pixels import to_uint8
from alight.runtime.seeding import noise_of_batch
from alight.training.average_snapshots import AverageTracks
from alight.training.inputs import INIT_FROM, foundation_inputs, require_unchanged
from alight.training.longer import expected_config, goes_on
from alight.training.optimizer import learning_rate, optimizer_step
from alight.training.parallel import release_weights, whole_weights
from alight.training.previews import preview_is_due
from alight.training.rehearsal import rehearse
from alight.training.run import TrainingRun
from alight.training.snapshot import snapshot_record
from alight.training.transformer_networks import build_model, build_networks, image_flops
from alight.training.transformer_step import draw_batch, transformer_backward

FEATURES = "features"  # of a foundation model, among the inputs
SAMPLE_STEPS = 10  # of a second-order solver, enough to see what training does
MEAN_STEPS = 2  # of average velocities, likewise


def run(config: TrainTransformerConfig) -> Artifact:
    """Train a transformer to predict the velocity from noise to latents, and store its averaged weights.

    Returns:
        The transformer artifact: a diffusers folder with the averaged weights, checkpoints in `training/`.

    Raises:
        InputError: on unusable latents, output folder or device; or on a gradient that is not finite.
    """
    latents = read_artifact(config.latents, "latents")
    with joined(config) as (processes, config):
        resolved = config.model_dump(mode="json")
        longer = goes_on(resolved, config.output, "transformer")
        expected = expected_config(resolved, config.output, "transformer")
        main = processes.is_main
        with claimed_output(config.output, "transformer", expected, renew=longer, is_main=main) as finished:
            if finished is None:
                train(config, resolved, latents, processes)
            else:
                finished.require_input(latents)
                if (features := open_features(config, latents)) is not None:
                    require_unchanged(finished, {FEATURES: features.identity})
    return read_written(config.output, "transformer")


def train(config: TrainTransformerConfig, resolved: dict[str, Any], latents: Artifact, processes: Processes) -> None:
    """Run the training loop; its steps are those of one process, whatever the number of processes."""
    training, device = config.training, processes.device
    dataset = LatentDataset(config.latents)
    origin = open_transformer(config.init_from) if config.init_from is not None else None
    features = open_features(config, latents, verify=True)
    feature_dim = features.shape[0] if features is not None else None
    inputs, facts = describe(config, dataset, latents, origin, features)
    if origin is not None:
        architecture = architecture_of(origin.model, config.model, config.init_from)
        config = config.model_copy(update={"model": architecture})
        warn_of_other_training(origin.artifact, facts)
    batch, ranks = training.global_batch_size, (processes.rank, processes.world_size)
    sampler = ResumableSampler(len(dataset), batch, config.seed, *ranks)
    own, micro_batches = processes.share(batch), training.micro_batches(processes.world_size)
    networks = build_networks(config, dataset, processes, origin, feature_dim)
    model, ema, optimizer, forward, averages, alignment = networks
    del origin
    tracks = AverageTracks(averages, config.output, training, resolved, inputs, processes)
    state = networks.states() | tracks.states()

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
        flops_per_image=image_flops(config, dataset, feature_dim),
        inputs=inputs,
        artifact=snapshot_record(model.arguments, inputs, facts),
    ) as run:
        sampler.advance(run.start_step)
        rehearse(networks, config, dataset, processes, feature_dim)
        order = zip(range(run.start_step, training.steps), sampler, strict=False)
        drawn = (draw_batch(config, model, dataset, indices, step, own, features) for step, indices in order)
        batches = on_device((part for batch in drawn for part in batch.micro_batches(micro_batches)), device)
        for step in run.steps():
            for number in range(1, micro_batches + 1):
                with networks.synchronised(last=number == micro_batches):
                    losses = transformer_backward(
                        forward, next(batches), config.flow, training.precision, micro_batches, alignment
                    )
                run.log(**losses)
            lr = learning_rate(step, training.steps, config.optimizer)
            norm = optimizer_step(optimizer, lr, config.optimizer.max_grad_norm)
            run.log(grad_norm=norm, lr=lr)
            run.check(norm)
            if ema is not None:
                ema.update(model, step)
            tracks.update(model, step)
            if preview is not None and preview_is_due(step + 1, training.steps, config.samples_every):
                run.picture("samples", step + 1, draw_samples(sampled, preview, config, device))
    weights = whole_weights(sampled)
    if processes.is_main:
        save(weights, config, resolved, dataset, inputs, facts, run.seconds)
    processes.barrier()  # the artifact is there


def open_features(config: TrainTransformerConfig, latents: Artifact, verify: bool = False) -> LatentFeatures | None:
    """The features beside the latents, where tokens are to be aligned with them; else nothing is looked at.

    Raises:
        InputError: there are none, or they are of another foundation model or of other crops, or damaged.
    """
    wanted = config.representation
    if not wanted.enabled:
        return None
    features = LatentFeatures(latents, wanted.foundation, foundation_inputs(wanted.foundation).get("foundation"))
    if verify and int(os.environ.get("LOCAL_RANK", "0")) == 0:  # the first process of the machine does it for all
        features.check_bytes()
    return features


class Preview(NamedTuple):
    """Inputs of the samples drawn during training: the same at every step, so that they can be compared.

    Attributes:
        vae: decodes them.
        noise: (N, C, h, w).
        labels: (N,), spread over all classes.
    """

    vae: Tokenizer
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

    Returns:
        None where nothing is to be drawn, or where nobody asked for it and the tokenizer is not there.

    Raises:
        InputError: samples were asked for, and the tokenizer is not there or is another one.
    """
    if not config.sample_images or not drawing:
        return None
    try:
        vae = tokenizer_of(config, latents)
    except InputError as error:
        if config.samples_every is not None or config.samples_tokenizer is not None:
            raise
        log.info("transformer: no samples are drawn on the way. %s", error)
        return None
    vae.set_latents_statistics(dataset.mean.flatten(), dataset.std.flatten())
    count, classes = config.sample_images, dataset.num_classes
    labels = torch.arange(count) * max(classes // count, 1) % classes
    return Preview(vae, noise_of_batch(slice(0, count), dataset.shape, config.seed, "samples"), labels)


def tokenizer_of(config: TrainTransformerConfig, latents: Artifact) -> Tokenizer:
    """Open the tokenizer that decodes the samples.

    Raises:
        InputError: it is not there, or is another one than the latents were made with.
    """
    source = config.samples_tokenizer or latents.config.get("tokenizer")
    if source is None or not (config.samples_tokenizer or Path(source).exists()):
        raise InputError(
            f"Samples are images, but the tokenizer that the latents in {latents.path} were made with is not "
            f"{'known' if source is None else f'in {source} any more'}. Name its folder with --samples-tokenizer."
        )
    vae, artifact = open_tokenizer(source)
    latents.require_input(artifact)
    return vae


@torch.no_grad()
def draw_samples(
    model: LightningDiT, preview: Preview, config: TrainTransformerConfig, device: torch.device
) -> np.ndarray:
    """A grid of images as the model makes them now, without guidance."""
    path, prediction, vae = PATHS[config.flow.path](), config.flow.prediction, preview.vae.to(device)
    velocity = GuidedVelocity(model, preview.labels.to(device))
    solver = (MEAN_STEPS, MEAN_SOLVER) if config.flow.objective == "average_velocity" else (SAMPLE_STEPS, "ab2")
    shift = config.flow.timestep_shift if config.flow.timestep_shift == AUTO else None
    options = SolverOptions(resolve_shift(shift, preview.noise.shape[1:]))
    with autocast(device, config.training.precision):
        latents = sample(velocity, preview.noise.to(device), *solver, options, path=path, prediction=prediction).x
        # one by one, since training leaves little memory; and a picture of nothing is no reason to stop it
        images = torch.cat([vae.decode_latents(each[None]).nan_to_num() for each in latents])
    release_weights(model)
    return image_grid(to_uint8(images).cpu().numpy(), columns=math.isqrt(len(images) - 1) + 1)


def describe(
    config: TrainTransformerConfig,
    dataset: LatentDataset,
    latents: Artifact,
    origin: OpenTransformer | None,
    features: LatentFeatures | None = None,
) -> tuple[dict[str, str], dict[str, Any]]:
    """The hashes of the inputs, and what sampling must know of the latents."""
    inputs = {"latents": latents.hash, "tokenizer": latents.inputs.get("tokenizer", "")}
    if features is not None:
        inputs[FEATURES] = features.identity
    facts: dict[str, Any] = {
        "class_names": list(dataset.class_names),
        "latents_mean": dataset.mean.flatten().tolist(),
        "latents_std": dataset.std.flatten().tolist(),
        "path": config.flow.path,
        "prediction": config.flow.prediction,
    }
    trained_scale = config.flow.average_velocity.guidance_scale
    if config.flow.objective == "average_velocity" and trained_scale != 1:
        facts["trained_guidance_scale"] = trained_scale
    if origin is not None:
        inputs[INIT_FROM], facts[INIT_FROM] = origin.artifact.hash, config.init_from
    return inputs, facts


def save(
    weights: dict[str, Any],
    config: TrainTransformerConfig,
    resolved: dict[str, Any],
    dataset: LatentDataset,
    inputs: dict[str, str],
    facts: dict[str, Any],
    seconds: float,
) -> None:
    """Write the weights to sample with, and what sampling must know of the latents."""
    model = build_model(config, dataset)
    model.load_state_dict(weights)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {**facts, "parameters": parameters, "steps": config.training.steps}
    with writing_folder(config.output) as staging:
        model.save_pretrained(staging)
        digest = file_hash(staging / WEIGHTS_FILE)
        write_manifest(staging, "transformer", resolved, digest, inputs, facts, seconds)
