"""Stage 1: images -> a tokenizer whose latent space is aligned with a vision foundation model (paper, section 3)."""

import copy
import functools
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from alight.artifacts import Artifact, read_artifact, write_manifest
from alight.config import TokenizerModelConfig, TrainTokenizerConfig
from alight.data.crops import center_crop
from alight.data.feature_cache import FeatureCache, cached_features
from alight.data.image_dataset import ImageDataset
from alight.data.latent_statistics import ChannelStatistics
from alight.data.loading import open_dataset
from alight.data.sampling import ResumableLoader, ResumableSampler
from alight.interop.tokenizer_sources import open_tokenizer
from alight.models.discriminator import PatchDiscriminator
from alight.models.foundation import FoundationModel
from alight.models.perceptual import LPIPS
from alight.models.pretrained import WEIGHTS_FILE, read_safetensors
from alight.models.vavae import VAVAE
from alight.outputs import claimed_output, writing_folder
from alight.reporting.pictures import pair_strip
from alight.runtime.console import log, progress_bar
from alight.runtime.device import autocast, compile_blocks, resolve_device
from alight.runtime.distributed import Processes, process_group
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.runtime.pixels import from_uint8, to_uint8, unit_range
from alight.runtime.seeding import noise_of_batch, random_stream, seeded_initialisation
from alight.training.discriminator_watch import DiscriminatorWatch
from alight.training.ema import EMA
from alight.training.inputs import IMAGES, INIT_FROM, foundation_inputs, image_inputs, require_unchanged
from alight.training.latent_regularisation import draw_regularisation
from alight.training.longer import expected_config, goes_on
from alight.training.optimizer import make_optimizer, optimizer_step
from alight.training.run import Stateful, TrainingRun
from alight.training.tokenizer_flops import tokenizer_flops
from alight.training.tokenizer_schedule import TokenizerStage, stage_at, tokenizer_schedule
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward, discriminator_backward

STATISTICS_IMAGES = 50_000  # enough for three digits of every channel's mean and std
PROJECTION_FILE, DISCRIMINATOR_FILE = "projection.safetensors", "discriminator.safetensors"


def run(config: TrainTokenizerConfig) -> Artifact:
    """Train a tokenizer, and store it with the statistics of its latents.

    Returns:
        The tokenizer artifact: a diffusers `AutoencoderKL` folder.

    Raises:
        InputError: on unusable images, foundation model, weight files, output folder or device; or on a gradient that
            is not finite.
    """
    resolved = config.model_dump(mode="json")
    longer = goes_on(resolved, config.output, "tokenizer")
    expected = expected_config(resolved, config.output, "tokenizer")
    with (
        process_group(resolve_device(config.device)) as processes,
        claimed_output(config.output, "tokenizer", expected, renew=longer, is_main=processes.is_main) as finished,
    ):
        if finished is None:
            train(config, resolved, processes)
        elif processes.is_main:
            found = image_inputs(config.images) | foundation_inputs(used_foundation(config))
            require_unchanged(finished, found)
    return read_artifact(config.output, "tokenizer")


def train(config: TrainTokenizerConfig, resolved: dict[str, Any], processes: Processes) -> None:
    """The training loop; its steps are those of one process, whatever the number of processes and pieces."""
    device, optimization = processes.device, config.optimizer
    dataset = open_dataset(config.images, "train", seed=config.seed)
    schedule = tokenizer_schedule(config, len(dataset))
    training = config.training.model_copy(update={"steps": schedule[-1].stop})
    pieces = training.pieces(processes.world_size)
    sampler = ResumableSampler(
        len(dataset), training.global_batch_size, config.seed, processes.rank, processes.world_size
    )
    loader = ResumableLoader(dataset, sampler, training.micro_batch_size, config.images.workers)
    announce(config, schedule, len(dataset), pieces, processes)

    origin = Origin.of(config)
    inputs = image_inputs(config.images, dataset.source) | foundation_inputs(used_foundation(config)) | origin.inputs
    networks = build_networks(config, schedule, origin, device)
    vae, discriminator = networks.vae, networks.discriminator
    if training.compile:
        coders = (vae.encoder.down_blocks, [vae.encoder.mid_block, vae.decoder.mid_block], vae.decoder.up_blocks)
        compile_blocks([*itertools.chain(*coders), *filter(None, [discriminator])])
    autoencoder = [*vae.parameters(), *(networks.projection.parameters() if networks.projection else ())]
    optimizers = {"optimizer": make_optimizer(autoencoder, optimization)}
    if discriminator is not None:
        optimizers["discriminator_optimizer"] = make_optimizer(discriminator.parameters(), optimization)
    ema = EMA(vae, training.ema_decay, training.ema_warmup) if training.ema_decay else None
    trained = ema.model if ema is not None else vae
    parts = {"vae": vae, "projection": networks.projection, "discriminator": discriminator, "ema": ema, **optimizers}
    state: dict[str, Stateful] = {name: part for name, part in parts.items() if part is not None}

    side = config.images.size // vae.downsampling_factor
    grid, latent_shape = (side, side), (training.global_batch_size, vae.config.latent_channels, side, side)
    cache = None
    if networks.foundation is not None and config.alignment.cache_features:
        cache = FeatureCache.open(networks.foundation, dataset.source, grid, training.precision)
    own, share = processes.share(training.global_batch_size), 1 / pieces
    previews = preview_images(dataset, config.preview_images)
    flops = functools.cache(functools.partial(tokenizer_flops, config, networks, cache is not None))
    with TrainingRun(
        config.output / "training",
        resolved,
        training,
        state,
        "tokenizer",
        processes,
        DiscriminatorWatch(),
        dataset_size=len(dataset),
        flops_per_image=flops(schedule[0].alignment.enabled, schedule[0].adversarial_factor(0) is not None),
        inputs=inputs,
    ) as progress:
        sampler.advance(progress.start_step)
        batches, order = iter(loader), iter(copy.copy(sampler))
        for step in progress.steps():
            stage = stage_at(schedule, step)
            if stage.restart and step == stage.start:
                restart(discriminator, list(optimizers.values()), config.seed, step)
            taking_part = networks if stage.alignment.enabled else replace(networks, foundation=None)
            factor, lr = stage.adversarial_factor(step), stage.learning_rate(step)
            progress.meter.flops_per_image = flops(stage.alignment.enabled, factor is not None)
            # everything random is drawn for the whole batch, whatever its pieces; adaptive weights are of each piece
            noise = noise_of_batch(own, latent_shape[1:], config.seed, "posterior", step)
            generator = random_stream(config.seed, "regularisation", step)
            changed = draw_regularisation(config.regularisation, latent_shape, vae.downsampling_factor, generator)
            indices = next(order)
            for piece in range(pieces):
                of_piece = slice(piece * loader.micro_batch_size, (piece + 1) * loader.micro_batch_size)
                images = unit_range(next(batches)[0].to(device))
                with autocast(device, training.precision):
                    features = None
                    if cache is not None and taking_part.foundation is not None:
                        features = cached_features(cache, taking_part.foundation, images, indices[of_piece], grid)
                    result = autoencoder_backward(
                        taking_part,
                        images,
                        noise[of_piece].to(device),
                        stage.reconstruction,
                        stage.alignment,
                        adversarial_factor=factor,
                        share=share,
                        regularisation=changed.piece(own).piece(of_piece) if changed is not None else None,
                        average=processes.average,
                        features=features,
                    )
                    progress.log(**result.scalars)
                    if discriminator is not None and factor is not None:
                        kind = stage.reconstruction.adversarial_loss
                        scalars = discriminator_backward(
                            discriminator, result.images, result.reconstructions, kind, factor=factor, share=share
                        )
                        progress.log(**scalars)
            playing = optimizers if factor is not None else {"optimizer": optimizers["optimizer"]}
            for name, optimizer in playing.items():
                processes.average_gradients(optimizer)
                norm = optimizer_step(optimizer, lr, optimization.max_grad_norm)
                progress.log(**{f"{name.removesuffix('optimizer')}grad_norm": norm})
                progress.check(norm)
            progress.log(lr=lr)
            if ema is not None:
                ema.update(vae, step)
            if processes.is_main and previews is not None and (step + 1) % config.preview_every == 0:
                progress.picture("reconstructions", step + 1, draw_reconstructions(trained, previews, device))
    if processes.is_main:
        if config.train == "all":
            measure_latents_statistics(trained, dataset, config, device)
        save(trained, networks, config, origin, inputs, training.steps, progress.seconds)
    processes.barrier()  # the artifact is there


# --- beginning ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """What a run goes on from: nothing, or an existing tokenizer with what its training left beside it.

    Attributes:
        vae: the tokenizer; None = begin anew.
        folder: where its projection and discriminator may lie.
        identity: hashes of the tokenizers whose latents it gives.
        foundation: the name of what its projection leads to.
    """

    vae: VAVAE | None = None
    folder: Path | None = None
    identity: tuple[str, ...] = ()
    foundation: str | None = None

    @classmethod
    def of(cls, config: TrainTokenizerConfig) -> "Origin":
        """Open what `init_from` names."""
        if config.init_from is None:
            return cls()
        vae, artifact = open_tokenizer(config.init_from)
        if config.model != TokenizerModelConfig() and not same_architecture(vae, config.model):
            raise InputError(
                f"The tokenizer in {config.init_from} has another architecture than the section 'model' asks for. "
                "Leave the section out: training goes on with the architecture that is there."
            )
        if config.images.size % vae.downsampling_factor:
            raise InputError(
                f"images.size {config.images.size} is not a multiple of {vae.downsampling_factor}, the downsampling "
                f"factor of the tokenizer in {config.init_from}."
            )
        identity = (artifact.hash, *artifact.facts.get("same_latents_as", ()))
        return cls(vae, artifact.path, identity, artifact.facts.get("foundation"))

    @property
    def inputs(self) -> dict[str, str]:
        """Its hash, where there is one."""
        return {INIT_FROM: self.identity[0]} if self.identity else {}

    def weights(self, name: str) -> dict[str, Tensor] | None:
        """Of a network that lies beside the tokenizer."""
        path = self.folder / name if self.folder is not None else None
        return read_safetensors(path) if path is not None and path.is_file() else None


def used_foundation(config: TrainTokenizerConfig) -> str | None:
    """The name of the foundation model, where one takes part."""
    weights = [config.alignment.weight, *(stage.alignment_weight or 0.0 for stage in config.stages)]
    return config.alignment.foundation if any(weights) else None


def same_architecture(vae: VAVAE, model: TokenizerModelConfig) -> bool:
    """Tell if building from this section would give a network of the same weights."""
    with torch.device("meta"):
        other = VAVAE.build(**model.model_dump())
    shapes, others = ({name: value.shape for name, value in each.state_dict().items()} for each in (vae, other))
    return shapes == others


def announce(
    config: TrainTokenizerConfig, schedule: list[TokenizerStage], images: int, pieces: int, processes: Processes
) -> None:
    """Say what is about to happen, in numbers that nothing rescales later."""
    batch = config.training.global_batch_size
    log.info(
        "tokenizer: %s images, %s steps of %d = %d processes x %d pieces x %d images.",
        f"{images:,}",
        f"{schedule[-1].stop:,}",
        batch,
        processes.world_size,
        pieces,
        batch // processes.world_size // pieces,
    )
    for stage in schedule:
        log.info("tokenizer: %s.", stage.describe())


def build_networks(
    config: TrainTokenizerConfig, schedule: list[TokenizerStage], origin: Origin, device: torch.device
) -> TokenizerNetworks:
    """The tokenizer and everything that judges it: from where it comes, else initialised from the seed."""
    reconstruction, alignment = config.reconstruction, config.alignment
    lpips = None
    if reconstruction.perceptual_weight > 0:
        lpips = LPIPS.from_files(reconstruction.vgg16_weights, reconstruction.lpips_weights).to(device)
    foundation, projection = None, None
    if any(stage.alignment.enabled for stage in schedule):
        assert alignment.foundation is not None
        foundation = FoundationModel.from_pretrained(alignment.foundation, alignment.foundation_input).to(device)
    with seeded_initialisation(config.seed, "tokenizer"):
        vae = origin.vae or VAVAE.build(**config.model.model_dump(), sample_size=config.images.size)
        vae.requires_grad_(True).train().to(device)
        if foundation is not None:
            widths = (vae.config.latent_channels, foundation.feature_dim)
            inputs, outputs = widths if alignment.projection == "to_features" else widths[::-1]
            projection = nn.Conv2d(inputs, outputs, 1, bias=False).to(device)
        discriminator = PatchDiscriminator().to(device) if reconstruction.adversarial_weight > 0 else None
    if config.train == "decoder":
        for part in (vae.encoder, vae.quant_conv):
            if part is not None:
                part.requires_grad_(False)
    if config.training.activation_checkpointing:
        vae.enable_gradient_checkpointing()
    projected = origin.weights(PROJECTION_FILE)
    if projection is not None and projected and projected["weight"].shape == projection.weight.shape:
        if origin.foundation == alignment.foundation:
            projection.load_state_dict(projected)
    judged = origin.weights(DISCRIMINATOR_FILE)
    if discriminator is not None and judged:
        discriminator.load_state_dict(judged)
    return TokenizerNetworks(vae, projection, foundation, discriminator, lpips)


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


# --- on the way ---------------------------------------------------------------------------------------------------


def preview_images(dataset: ImageDataset, count: int) -> np.ndarray | None:
    """Centre crops of a few images from all over the data set, (N, H, W, 3) uint8."""
    if not count:
        return None
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset)), dtype=np.int64)
    return np.stack([center_crop(dataset.source.load(int(index)), dataset.size) for index in indices])


@torch.no_grad()
def draw_reconstructions(vae: VAVAE, images: np.ndarray, device: torch.device) -> np.ndarray:
    """Images, what the tokenizer makes of their latents' modes, and the differences."""
    encoded = vae.encode_raw_latents(from_uint8(torch.from_numpy(images).to(device)))
    decoded = to_uint8(vae.decode_raw_latents(encoded).nan_to_num())  # a bad picture is no reason to stop training
    return pair_strip(images, decoded.cpu().numpy(), difference_gain=4)


# --- end ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure_latents_statistics(
    vae: VAVAE, dataset: ImageDataset, config: TrainTokenizerConfig, device: torch.device
) -> None:
    """Mean and std per channel of posterior samples, over the training images (at most 50,000 of them)."""
    count = min(len(dataset), STATISTICS_IMAGES)
    order = torch.randperm(len(dataset), generator=random_stream(config.seed, "statistics"))[:count].tolist()
    generator = random_stream(config.seed, "statistics noise")
    statistics = ChannelStatistics(vae.config.latent_channels)
    batch = config.training.micro_batch_size or config.training.global_batch_size
    for start in progress_bar(range(0, count, batch), desc="latent statistics", unit="batch"):
        pixels = torch.stack([dataset[index].image for index in order[start : start + batch]])
        statistics.update(vae.encode_raw_latents(unit_range(pixels.to(device)), generator))
    vae.set_latents_statistics(statistics.mean, statistics.std)


def save(
    vae: VAVAE,
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
    beside = {DISCRIMINATOR_FILE: networks.discriminator and networks.discriminator.state_dict()}
    if config.train == "decoder":
        facts |= {"same_latents_as": list(origin.identity), "foundation": origin.foundation}
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
