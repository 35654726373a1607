"""Stage 1: images -> a tokenizer whose latent space is aligned with a vision foundation model (paper, section 3)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from alight.artifacts import DISCRIMINATOR_FILE, PROJECTION_FILE, Artifact, write_manifest
from alight.config import OptimizerConfig, TrainTokenizerConfig
from alight.data.image_dataset import ImageDataset, ImageSample
from alight.data.latent_statistics import ChannelStatistics
from alight.data.loading import open_dataset
from alight.data.sampling import ResumableLoader, ResumableSampler
from alight.device_settings import joined
from alight.evaluation.batches import gather_batches, index_batches, load_batches, share_of
from alight.interop.tokenizer_sources import ALIGNMENT
from alight.models.discriminator import PatchDiscriminator
from alight.models.pretrained import WEIGHTS_FILE
from alight.models.representation_autoencoder import RepresentationAutoencoder
from alight.models.tokenizer import Tokenizer
from alight.outputs import claimed_output, read_written, writing_folder
from alight.reporting.pictures import pair_strip
from alight.runtime.ahead import on_device, sent
from alight.runtime.console import log, progress_bar
from alight.runtime.distributed import Processes
from alight.runtime.files import file_hash
from alight.runtime.pixels import from_uint8, to_uint8, unit_range
from alight.runtime.seeding import random_stream, seeded_initialisation
from alight.training.discriminator_watch import DiscriminatorWatch
from alight.training.ema import EMA
from alight.training.inputs import IMAGES, INIT_FROM, foundation_inputs, image_inputs, require_unchanged
from alight.training.longer import expected_config, goes_on
from alight.training.optimizer import make_optimizer, optimizer_step
from alight.training.previews import preview_is_due
from alight.training.run import Stateful, TrainingRun
from alight.training.tokenizer_accumulation import Accumulation
from alight.training.tokenizer_networks import (
    Origin,
    adopt_weights,
    begin_encoder,
    build_networks,
    compile_networks,
    load_foundation,
    load_lpips,
    unused_settings,
    used_models,
)
from alight.training.tokenizer_schedule import TokenizerPhase, phase_at, tokenizer_schedule
from alight.training.tokenizer_step import TokenizerNetworks

POSITION_IMAGES = 4_096  # enough for 2 % of every position's mean and std, of which there are many
STATISTICS_IMAGES = 50_000  # enough for three digits of every channel's mean and std
AUTOENCODER, DISCRIMINATOR = "", "discriminator_"  # prefixes of an optimizer's names in checkpoints and log


def run(config: TrainTokenizerConfig) -> Artifact:
    """Train a tokenizer, and store it with the statistics of its latents.

    Returns:
        The tokenizer artifact: a folder of diffusers' `AutoencoderKL`, or of an encoder that is frozen and a decoder.

    Raises:
        InputError: on unusable images, foundation model, weight files, output folder or device; or on a gradient that
            is not finite.
    """
    with joined(config) as (processes, config):
        resolved = config.model_dump(mode="json")
        longer = goes_on(resolved, config.output, "tokenizer")
        expected = expected_config(resolved, config.output, "tokenizer")
        main = processes.is_main
        with claimed_output(config.output, "tokenizer", expected, renew=longer, is_main=main) as finished:
            if finished is None:
                train(config, resolved, processes)
            elif processes.is_main:
                found = image_inputs(config.images) | foundation_inputs(used_models(config))
                require_unchanged(finished, found)
    return read_written(config.output, "tokenizer")


def train(config: TrainTokenizerConfig, resolved: dict[str, Any], processes: Processes) -> None:
    """Run the training loop; its steps are those of one process, but for the statistics of `PatchDiscriminator`."""
    device = processes.device
    dataset = open_dataset(config.images, "train", seed=config.seed)
    schedule = tokenizer_schedule(config, len(dataset))
    training = config.training.model_copy(update={"steps": schedule[-1].stop})
    batch, ranks = training.global_batch_size, (processes.rank, processes.world_size)
    sampler = ResumableSampler(len(dataset), batch, config.seed, *ranks)
    announce(config, schedule, len(dataset), processes)
    origin = Origin.of(config)
    inputs = image_inputs(config.images, dataset.source) | foundation_inputs(used_models(config)) | origin.inputs
    networks = build_networks(config, device, origin.vae, load_foundation(config), load_lpips(config))
    begin(networks.vae, dataset, config, processes)
    adopt_weights(networks, origin, config)
    if training.compile:
        compile_networks(networks)
    optimizers = build_optimizers(networks, config.optimizer)
    ema = EMA(networks.vae, training.ema_decay, training.ema_warmup) if training.ema_decay else None
    trained = ema.model if ema is not None else networks.vae
    accumulation = Accumulation.of(config, networks, dataset, processes)
    previews = preview_images(dataset, config.preview_images)
    with TrainingRun(
        config.output / "training",
        resolved,
        training,
        checkpointed(networks, ema, optimizers),
        "tokenizer",
        processes,
        DiscriminatorWatch(),
        dataset_size=len(dataset),
        flops_per_image=accumulation.flops_per_image(0, schedule[0]),
        inputs=inputs,
    ) as run:
        sampler.advance(run.start_step)
        samples = open_samples(config, dataset, sampler, device)
        for step in run.steps():
            phase = phase_at(schedule, step)
            if phase.restart and step == phase.start:
                restart(networks.discriminator, list(optimizers.values()), config.seed, step)
            run.meter.flops_per_image = accumulation.flops_per_image(step, phase)
            for scalars in accumulation.backward(step, phase, samples):
                run.log(**scalars)
            lr, adversarial, norms = phase.learning_rate(step), phase.adversarial_factor(step) is not None, []
            for prefix, optimizer in optimizers.items():
                if prefix == AUTOENCODER or adversarial:
                    processes.average_gradients(optimizer)
                    norms.append(optimizer_step(optimizer, lr, config.optimizer.max_grad_norm))
                    run.log(**{f"{prefix}grad_norm": norms[-1]})
            run.log(lr=lr)
            run.check(*norms)
            if ema is not None:
                ema.update(networks.vae, step)
            due = preview_is_due(step + 1, training.steps, config.preview_every)
            if processes.is_main and previews is not None and due:
                run.picture("reconstructions", step + 1, draw_reconstructions(trained, previews, device))
    if config.train == "all":
        measure_latents_statistics(trained, dataset, config, processes)
    if processes.is_main:
        save(trained, networks, config, origin, inputs, training.steps, run.seconds)
    processes.barrier()  # the artifact is there


def open_samples(
    config: TrainTokenizerConfig, dataset: ImageDataset, sampler: ResumableSampler, device: torch.device
) -> Iterator[ImageSample]:
    """Micro-batches in the order of the sampler, their images on the device, copied while those before are learned."""
    workers, pinned = config.images.workers, device.type == "cuda"
    loader = ResumableLoader(dataset, sampler, config.training.micro_batch_size, workers, pinned)
    return on_device(loader, device, "image")


def announce(config: TrainTokenizerConfig, schedule: list[TokenizerPhase], images: int, processes: Processes) -> None:
    """Log the schedule and the sizes of batches, which nothing rescales later."""
    batch, micro_batches = config.training.global_batch_size, config.training.micro_batches(processes.world_size)
    log.info(
        "tokenizer: %s images, %s steps of %d = %d processes x %d micro-batches x %d images.",
        f"{images:,}",
        f"{schedule[-1].stop:,}",
        batch,
        processes.world_size,
        micro_batches,
        batch // processes.world_size // micro_batches,
    )
    for phase in schedule:
        log.info("tokenizer: %s.", phase.describe())
    if unused := unused_settings(config):
        log.info("tokenizer: a frozen encoder makes no use of %s.", " and ".join(unused))


def build_optimizers(networks: TokenizerNetworks, config: OptimizerConfig) -> dict[str, torch.optim.Optimizer]:
    """Build the optimizers, by the prefix of their names: of autoencoder and projection, and of the discriminator."""
    autoencoder = [*networks.vae.named_parameters()]
    if networks.projection is not None:
        autoencoder += networks.projection.named_parameters("projection")
    optimizers = {AUTOENCODER: make_optimizer(autoencoder, config)}
    if networks.discriminator is not None:
        optimizers[DISCRIMINATOR] = make_optimizer(networks.discriminator.named_parameters(), config)
    return optimizers


def checkpointed(
    networks: TokenizerNetworks, ema: EMA[Tokenizer] | None, optimizers: dict[str, torch.optim.Optimizer]
) -> dict[str, Stateful]:
    """Everything that a checkpoint holds, by name."""
    parts = {"vae": networks.vae, "projection": networks.projection, "discriminator": networks.discriminator}
    state: dict[str, Stateful | None] = {**parts, "ema": ema}
    state |= {f"{prefix}optimizer": optimizer for prefix, optimizer in optimizers.items()}
    return {name: part for name, part in state.items() if part is not None}


def restart(
    discriminator: PatchDiscriminator | None, optimizers: list[torch.optim.Optimizer], seed: int, step: int
) -> None:
    """A new discriminator and optimizers without memory."""
    if discriminator is not None:
        with seeded_initialisation(seed, "discriminator", step):
            fresh = PatchDiscriminator()
        discriminator.load_state_dict(fresh.state_dict())
    for optimizer in optimizers:
        optimizer.state.clear()


def preview_images(dataset: ImageDataset, count: int) -> np.ndarray | None:
    """Crops without augmentation of a few images from all over the data set, (N, H, W, 3) uint8."""
    if not count:
        return None
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset)), dtype=np.int64)
    return np.stack([dataset.unaugmented(int(index)) for index in indices])


@torch.no_grad()
def draw_reconstructions(vae: Tokenizer, images: np.ndarray, device: torch.device) -> np.ndarray:
    """Images, what the tokenizer makes of their latents' modes, and the differences."""
    encoded = vae.encode_raw_latents(from_uint8(torch.from_numpy(images).to(device)))
    decoded = to_uint8(vae.decode_raw_latents(encoded).nan_to_num())  # a bad picture is no reason to stop training
    return pair_strip(images, decoded.cpu().numpy(), difference_gain=4)


def measure_latents_statistics(
    vae: Tokenizer, dataset: ImageDataset, config: TrainTokenizerConfig, processes: Processes
) -> None:
    """Record mean and std per channel of posterior samples, over the training images (at most 50,000 of them).

    Those of latents that are normalised at every position are 0 and 1 already.
    """
    if not (isinstance(vae, RepresentationAutoencoder) and vae.normalises_positions):
        statistics = latents_statistics(vae, dataset, config, processes)
        vae.set_latents_statistics(statistics.mean, statistics.std)


def begin(vae: Tokenizer, dataset: ImageDataset, config: TrainTokenizerConfig, processes: Processes) -> None:
    """Give a new tokenizer what it begins with: an encoder, or statistics of a frozen one's features.

    Mean and std at every position, where they are wanted, are measured over at most 4,096 training images.
    """
    begin_encoder(vae, dataset, config)
    if config.frozen_encoder.normalise != "position" or not config.frozen_encoder.enabled:
        return
    assert isinstance(vae, RepresentationAutoencoder)
    statistics = latents_statistics(vae, dataset, config, processes, at_positions=True)
    shape = (vae.config.latent_channels, *vae.grid)
    vae.normalise_positions(statistics.mean.view(shape), statistics.std.view(shape))


@torch.no_grad()
def latents_statistics(
    vae: Tokenizer,
    dataset: ImageDataset,
    config: TrainTokenizerConfig,
    processes: Processes,
    at_positions: bool = False,
) -> ChannelStatistics:
    """Statistics of raw latents per channel, or per channel and position.

    The processes share the batches. Noise is drawn and sums are taken in the order of all of them, so that the result
    does not depend on the number of processes, but for the rounding of the network.
    """
    channels, most = vae.config.latent_channels, POSITION_IMAGES if at_positions else STATISTICS_IMAGES
    count, side = min(len(dataset), most), config.images.size // vae.downsampling_factor
    order = torch.randperm(len(dataset), generator=random_stream(config.seed, "statistics"))[:count].tolist()
    batches = index_batches(order, config.training.micro_batch_size or config.training.global_batch_size)
    own = share_of(range(len(batches)), processes)
    loaded = load_batches(dataset, [batches[number] for number in own], config.images.workers)
    generator, width = random_stream(config.seed, "statistics noise"), channels * (side**2 if at_positions else 1)
    parts = []
    for number, indices in enumerate(progress_bar(batches, desc="latent statistics", unit="batch")):
        if number in own:
            images = unit_range(sent(next(loaded), processes.device))
            latents = vae.encode_raw_latents(images, generator)
            parts.append(ChannelStatistics(width))
            parts[-1].update(latents.flatten(1)[:, :, None, None] if at_positions else latents)
        else:
            torch.randn(len(indices), channels, side, side, generator=generator)  # that of another process
    statistics = ChannelStatistics(width)
    for part in gather_batches(parts, processes):
        statistics.merge(part)
    return statistics


def save(
    vae: Tokenizer,
    networks: TokenizerNetworks,
    config: TrainTokenizerConfig,
    origin: Origin,
    inputs: dict[str, str],
    steps: int,
    seconds: float,
) -> None:
    """Write the tokenizer, and beside it what later alignment figures and later training need."""
    made_from = {name: digest for name, digest in inputs.items() if name != IMAGES}
    facts: dict[str, object] = {"steps": steps, "image_size": config.images.size, IMAGES: inputs[IMAGES]}
    if config.init_from is not None:
        facts[INIT_FROM] = config.init_from
    if vae.latent_space != "gaussian":
        facts["latent_space"] = vae.latent_space
    if (encoder := config.frozen_encoder.foundation or origin.frozen_encoder) is not None:
        facts["frozen_encoder"] = encoder
    beside = {DISCRIMINATOR_FILE: networks.discriminator and networks.discriminator.state_dict()}
    if config.train == "decoder" or (origin.vae is not None and vae.has_frozen_encoder):  # the origin's encoder
        facts |= {"same_latents_as": list(origin.identity), "foundation": origin.foundation}
        facts |= {ALIGNMENT: origin.alignment} if origin.foundation is not None else {}
        beside[PROJECTION_FILE] = origin.weights(PROJECTION_FILE)
    elif networks.foundation is not None and networks.projection is not None:
        facts["foundation"] = networks.foundation.name
        beside[PROJECTION_FILE] = networks.projection.state_dict()
    with writing_folder(config.output) as staging:
        vae.save_pretrained(staging)
        for name, weights in beside.items():
            if weights:
                save_file({key: value.detach().cpu().contiguous() for key, value in weights.items()}, staging / name)
        digest = file_hash(staging / WEIGHTS_FILE)
        write_manifest(staging, "tokenizer", config.model_dump(mode="json"), digest, made_from, facts, seconds)
