"""Stage 1: images -> a tokenizer whose latent space is aligned with a vision foundation model (paper, section 3)."""

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from alight.artifacts import (
    Artifact,
    check_output,
    file_hash,
    is_complete,
    read_artifact,
    write_manifest,
    writing_folder,
)
from alight.config import TrainTokenizerConfig
from alight.data.image_dataset import ImageDataset
from alight.data.latents import ChannelStatistics
from alight.data.loading import open_dataset
from alight.data.sampling import ResumableLoader, ResumableSampler
from alight.models.discriminator import PatchDiscriminator
from alight.models.foundation import FoundationModel
from alight.models.perceptual import LPIPS
from alight.models.pretrained import WEIGHTS_FILE
from alight.models.vavae import VAVAE
from alight.runtime.console import progress_bar
from alight.runtime.device import autocast, resolve_device
from alight.runtime.pixels import unit_range
from alight.runtime.seeding import random_stream, seeded_initialisation
from alight.training.ema import EMA
from alight.training.optimizer import learning_rate, make_optimizer, optimizer_step
from alight.training.run import Stateful, TrainingRun
from alight.training.tokenizer_step import TokenizerNetworks, autoencoder_backward, discriminator_backward

STATISTICS_IMAGES = 50_000  # enough for three digits of every channel's mean and std


def run(config: TrainTokenizerConfig) -> Artifact:
    """Train a tokenizer, and store it with the statistics of its latents.

    Returns:
        The tokenizer artifact: a diffusers `AutoencoderKL` folder.

    Raises:
        InputError: on unusable images, foundation model, weight files, output folder or device; or on a loss that is
            not finite.
    """
    resolved = config.model_dump(mode="json")
    check_output(config.output, resolved, "tokenizer")
    if is_complete(config.output):
        return read_artifact(config.output, "tokenizer")
    device = resolve_device(config.device)
    dataset = open_dataset(config.images, "train", seed=config.seed)
    networks = build_networks(config, device)
    vae, training, optimization = networks.vae, config.training, config.optimizer

    autoencoder = [*vae.parameters(), *(networks.projection.parameters() if networks.projection else ())]
    optimizer = make_optimizer(autoencoder, optimization)
    state: dict[str, Stateful] = {"vae": vae, "optimizer": optimizer}
    if networks.projection is not None:
        state["projection"] = networks.projection
    if networks.discriminator is not None:
        discriminator_optimizer = make_optimizer(networks.discriminator.parameters(), optimization)
        state |= {"discriminator": networks.discriminator, "discriminator_optimizer": discriminator_optimizer}
    ema = EMA(vae, training.ema_decay) if training.ema_decay else None
    if ema is not None:
        state["ema"] = ema

    share = 1 / training.gradient_accumulation_steps
    sampler = ResumableSampler(len(dataset), training.global_batch_size, config.seed)
    with TrainingRun(config.output / "training", resolved, training, state, "tokenizer") as progress:
        sampler.advance(progress.start_step)
        batches = iter(ResumableLoader(dataset, sampler, training.micro_batch_size, config.images.workers))
        for step in progress.steps():
            generator = random_stream(config.seed, "posterior", step)
            adversarial_on = step >= config.reconstruction.adversarial_start_step
            lr = learning_rate(step, training.steps, optimization)
            for _ in range(training.gradient_accumulation_steps):
                images = unit_range(next(batches)[0].to(device))
                noise = torch.randn(latent_shape(vae, images), generator=generator).to(device)
                with autocast(device, training.precision):
                    result = autoencoder_backward(
                        networks, images, noise, config.reconstruction, config.alignment, adversarial_on, share
                    )
                    progress.log(**result.scalars)
                    if networks.discriminator is not None and adversarial_on:
                        scalars = discriminator_backward(
                            networks.discriminator,
                            images,
                            result.reconstructions,
                            config.reconstruction.adversarial_loss,
                            share,
                        )
                        progress.log(**scalars)
            optimizer_step(optimizer, lr, optimization.max_grad_norm)
            if networks.discriminator is not None and adversarial_on:
                optimizer_step(discriminator_optimizer, lr, optimization.max_grad_norm)
            if ema is not None:
                ema.update(vae)
    trained = ema.model if ema is not None else vae
    measure_latents_statistics(trained, dataset, config, device)
    return save(trained, networks, config, progress.seconds)


def build_networks(config: TrainTokenizerConfig, device: torch.device) -> TokenizerNetworks:
    """The tokenizer and everything that judges it, freshly initialised from the seed."""
    reconstruction, alignment = config.reconstruction, config.alignment
    lpips = None
    if reconstruction.perceptual_weight > 0:
        files = (reconstruction.vgg16_weights, reconstruction.lpips_weights)
        assert files[0] is not None  # the configuration was checked
        assert files[1] is not None
        lpips = LPIPS.from_files(files[0], files[1]).to(device)
    foundation, projection = None, None
    if alignment.enabled:
        assert alignment.foundation is not None
        foundation = FoundationModel.from_pretrained(alignment.foundation, alignment.foundation_input).to(device)
    with seeded_initialisation(config.seed, "tokenizer"):
        vae = VAVAE.build(**config.model.model_dump(), sample_size=config.images.size).to(device)
        if foundation is not None:
            projection = nn.Conv2d(config.model.latent_channels, foundation.feature_dim, 1, bias=False).to(device)
        discriminator = PatchDiscriminator().to(device) if reconstruction.adversarial_weight > 0 else None
    return TokenizerNetworks(vae, projection, foundation, discriminator, lpips)


def latent_shape(vae: VAVAE, images: Tensor) -> tuple[int, int, int, int]:
    """(B, C, h, w) of the latents of a batch of images."""
    factor = vae.downsampling_factor
    return len(images), vae.config.latent_channels, images.shape[2] // factor, images.shape[3] // factor


@torch.no_grad()
def measure_latents_statistics(
    vae: VAVAE, dataset: ImageDataset, config: TrainTokenizerConfig, device: torch.device
) -> None:
    """Mean and std per channel of posterior samples, over the training images (at most 50,000 of them)."""
    count = min(len(dataset), STATISTICS_IMAGES)
    order = torch.randperm(len(dataset), generator=random_stream(config.seed, "statistics"))[:count].tolist()
    generator = random_stream(config.seed, "statistics noise")
    statistics = ChannelStatistics(config.model.latent_channels)
    batch = config.training.micro_batch_size or config.training.global_batch_size
    for start in progress_bar(range(0, count, batch), desc="latent statistics", unit="batch"):
        pixels = torch.stack([dataset[index].image for index in order[start : start + batch]])
        statistics.update(vae.encode_raw_latents(unit_range(pixels.to(device)), generator))
    vae.set_latents_statistics(statistics.mean, statistics.std)


def save(vae: VAVAE, networks: TokenizerNetworks, config: TrainTokenizerConfig, seconds: float) -> Artifact:
    """Write the tokenizer, and beside it the projection, which later alignment figures need."""
    facts: dict[str, object] = {"steps": config.training.steps, "image_size": config.images.size}
    if networks.foundation is not None:
        facts["foundation"] = networks.foundation.name
    with writing_folder(config.output) as staging:
        vae.save_pretrained(staging)
        if networks.projection is not None:
            save_file({"weight": networks.projection.weight.detach().cpu()}, staging / "projection.safetensors")
        digest = file_hash(staging / WEIGHTS_FILE)
        write_manifest(staging, "tokenizer", config.model_dump(mode="json"), digest, facts=facts, seconds=seconds)
    return read_artifact(config.output, "tokenizer")
