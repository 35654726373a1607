"""Stage 2: images -> latents, so that the transformer never decodes an image again."""

import time

import torch
from torch import Tensor

from alight.artifacts import Artifact, check_output, is_complete, read_artifact, write_manifest, writing_folder
from alight.config import ExtractLatentsConfig
from alight.data.latents import LatentWriter
from alight.data.loading import open_dataset, sequential_batches
from alight.models.vavae import VAVAE
from alight.runtime.console import progress_bar
from alight.runtime.device import resolve_device
from alight.runtime.errors import InputError
from alight.runtime.pixels import unit_range
from alight.runtime.seeding import random_stream

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@torch.no_grad()
def run(config: ExtractLatentsConfig) -> Artifact:
    """Encode every training image, and its mirror image in the same pass, into shards of raw latents.

    Returns:
        The latents artifact: safetensors shards, an index and statistics.

    Raises:
        InputError: on unusable images, tokenizer or output folder, or latents there of another tokenizer.
    """
    started = time.perf_counter()
    tokenizer = read_artifact(config.tokenizer, "tokenizer")
    resolved = config.model_dump(mode="json")
    check_output(config.output, resolved, "latents")
    if is_complete(config.output):
        latents = read_artifact(config.output, "latents")
        latents.require_input(tokenizer)
        return latents
    device = resolve_device(config.device)
    vae = VAVAE.from_pretrained(config.tokenizer).to(device)
    if config.statistics == "tokenizer" and not vae.has_latents_statistics:
        raise InputError(
            f"The tokenizer in {config.tokenizer} holds no latent statistics. Take those of the data with "
            "--statistics data."
        )
    dataset = open_dataset(config.images, "train", augment=False)
    with writing_folder(config.output) as staging:
        writer = LatentWriter(staging, config.shard_size, _DTYPES[config.dtype])
        batches = sequential_batches(dataset, config.batch_size, config.images.workers)
        for number, (pixels, labels) in enumerate(progress_bar(batches, desc="latents", unit="batch")):
            images = unit_range(pixels.to(device))
            raw = encode(vae, images, config, f"batch {number}")
            flipped = encode(vae, images.flip(-1), config, f"batch {number} flipped") if config.flips else None
            writer.add(raw, labels, flipped)
        assert writer.statistics is not None
        mean, std = writer.statistics.mean, writer.statistics.std
        if config.statistics == "tokenizer":
            mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
        digest = writer.close((mean, std), config.statistics, dataset.source.class_names)
        facts = {
            "count": len(dataset),
            "class_names": list(dataset.source.class_names),
            "image_size": config.images.size,
        }
        inputs = {"tokenizer": tokenizer.hash}
        seconds = time.perf_counter() - started
        write_manifest(staging, "latents", resolved, digest, inputs, facts, seconds)
    return read_artifact(config.output, "latents")


def encode(vae: VAVAE, images: Tensor, config: ExtractLatentsConfig, stream: str) -> Tensor:
    """Raw latents of a batch: posterior samples drawn from the seed, or the posterior's mode."""
    generator = random_stream(config.seed, "posterior", stream) if config.posterior == "sample" else None
    return vae.encode_raw_latents(images, generator)
