"""Stage 2: images -> latents, so that the transformer never decodes an image again."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from alight.artifacts import Artifact, read_artifact, write_manifest
from alight.config import ExtractLatentsConfig
from alight.data.image_dataset import ImageDataset, ImageSample
from alight.data.images import ImageSource
from alight.data.latent_features import (
    FEATURES,
    MIRRORED_FEATURES,
    LatentFeatures,
    crop_rule,
    features_entry,
    stored_size,
)
from alight.data.latent_folder import LatentFolder
from alight.data.latent_shards import LABELS, LATENTS, LOGVAR, MIRRORED
from alight.data.latents import UNFINISHED, merged_statistics, write_index
from alight.data.loading import open_dataset
from alight.device_settings import ENCODED, joined, with_compilation
from alight.lineage import warn_of_other_squares
from alight.models.foundation import FoundationModel
from alight.models.tokenizer import Tokenizer
from alight.models.tokenizer_folders import open_tokenizer_folder, require_image_size
from alight.outputs import claimed_output, read_written, writing_folder
from alight.runtime.ahead import on_device
from alight.runtime.background import BackgroundWork
from alight.runtime.console import log, progress_bar
from alight.runtime.device import (
    autocast,
    by_its_weights,
    compile_blocks,
    narrow_weights,
    order_for_convolutions,
)
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.runtime.pixels import unit_range
from alight.runtime.seeding import derive_seed, noise_of_seeds, random_stream
from alight.runtime.units import duration, size_text
from alight.training.inputs import foundation_inputs, image_inputs, require_unchanged

CPU_PIXELS = 2**17  # that pass the encoder at a time: two images of 256 pixels, 32 of 64
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@torch.no_grad()
def run(config: ExtractLatentsConfig) -> Artifact:
    """Encode every training image, and its mirror image in the same pass, into shards of raw latents.

    Features of a foundation model are stored beside them where they are asked for.

    Several processes share the shards, and a run that was killed goes on with those that are missing.

    Returns:
        The latents artifact: safetensors shards, an index and statistics.

    Raises:
        InputError: on unusable images, tokenizer or foundation model, an output folder that cannot be written, or
            latents there of another configuration, other images, another tokenizer or another foundation model.
    """
    tokenizer = read_artifact(config.tokenizer, "tokenizer")
    with (
        joined(config) as (processes, config),
        claimed_output(
            config.output, "latents", config.model_dump(mode="json"), is_main=processes.is_main
        ) as finished,
    ):
        if finished is None:
            extract(config, tokenizer, processes)
        else:
            finished.require_input(tokenizer)
            require_unchanged(finished, image_inputs(config.images) | foundation_inputs(config.features.foundation))
            if config.features.foundation is not None:
                LatentFeatures(finished)  # its files are no part of the manifest
            shutil.rmtree(config.output / UNFINISHED, ignore_errors=True)  # if the run was killed at its very end
    return read_written(config.output, "latents")


def extract(config: ExtractLatentsConfig, tokenizer: Artifact, processes: Processes) -> None:
    """Make the shards that are missing, and then the index and the manifest."""
    vae = open_tokenizer_folder(config.tokenizer).to(processes.device)
    if vae.has_frozen_encoder and config.posterior == "moments":
        raise InputError(
            f"The encoder of {config.tokenizer} is frozen and gives latents, not moments. Take --posterior sample."
        )
    require_image_size(vae, config.images.size, config.tokenizer)
    narrow_weights(vae, config.tokenizer_weights)
    order_for_convolutions(vae)
    if config.statistics == "tokenizer" and not vae.has_latents_statistics:
        raise InputError(
            f"The tokenizer in {config.tokenizer} holds no latent statistics. Take those of the data with "
            "--statistics data."
        )
    dataset = open_dataset(config.images, "train", augment=False, cache_bytes=0)  # each image is read once
    source = dataset.source
    config = with_compilation(config, processes.device, len(dataset) // processes.world_size, ENCODED)
    if config.compile:
        compile_blocks(vae.blocks, fixed_size=True)
    foundation, described = open_foundation(config, source, processes)
    folder = LatentFolder(config.output, len(dataset), config.shard_size, described)
    started = time.perf_counter()
    inputs = {"tokenizer": tokenizer.hash, "images": source.fingerprint}
    if described is not None:
        inputs["foundation"] = described["foundation_hash"]
    if processes.is_main:
        warn_of_other_squares(tokenizer, config.images)
        if config.statistics == "tokenizer":
            check_statistics(vae, dataset, config)
        if foundation is not None:
            log.info("latents: %s", size_sentence(vae, foundation, len(dataset), config))
        started -= folder.start(config.model_dump(mode="json"), inputs)
    processes.barrier()  # the folder is there
    for _ in make_shards(Encoders(vae, foundation), dataset, folder, config, processes):
        if processes.is_main:
            folder.record_time(time.perf_counter() - started)
    processes.barrier()  # all shards are there
    if processes.is_main:
        finish(vae, source, folder, config, tokenizer, started)
    processes.barrier()  # the artifact is there


class Encoders(NamedTuple):
    """The networks that turn images into the tensors of a shard; a foundation model only where features are wanted."""

    vae: Tokenizer
    foundation: FoundationModel | None


def open_foundation(
    config: ExtractLatentsConfig, source: ImageSource, processes: Processes
) -> tuple[FoundationModel | None, dict[str, Any] | None]:
    """The foundation model on its device, and all that the features depend on; nothing where none are wanted."""
    wanted = config.features
    if wanted.foundation is None:
        return None, None
    model = FoundationModel.from_pretrained(wanted.foundation, wanted.foundation_input).to(processes.device)
    described = {
        "foundation": wanted.foundation,
        "foundation_hash": foundation_inputs(wanted.foundation).get("foundation") or model.identity(),
        "foundation_input": wanted.foundation_input,
        "crop": crop_rule(config.model_dump(mode="json")["images"], source.fingerprint),
        "mirrored": config.flips,
    }
    return model, described


def size_sentence(vae: Tokenizer, foundation: FoundationModel, count: int, config: ExtractLatentsConfig) -> str:
    """Tell the room that the features of so many images take on the disk."""
    side = config.images.size // vae.downsampling_factor
    features = stored_size(count, (foundation.feature_dim, side, side), config.features.dtype, config.flips)
    channels = vae.config.latent_channels * (2 if config.posterior == "moments" else 1)
    latents = stored_size(count, (channels, side, side), config.dtype, config.flips)
    name, size = foundation.name, size_text(features)
    return f"The features of {name} take {size} on disk, beside {size_text(latents)} of latents."


def check_statistics(vae: Tokenizer, dataset: ImageDataset, config: ExtractLatentsConfig) -> None:
    """Check on a few images, from first to last, that the tokenizer's statistics are those of its latents."""
    chosen = torch.linspace(0, len(dataset) - 1, min(len(dataset), config.batch_size)).long().tolist()
    pixels = torch.stack([dataset[index].image for index in chosen])
    generator = random_stream(config.seed, "statistics")
    vae.check_latents_statistics(vae.encode_raw_latents(unit_range(pixels.to(vae.device)), generator))


# --- encoding -----------------------------------------------------------------------------------------------------


def make_shards(
    encoders: Encoders, dataset: ImageDataset, folder: LatentFolder, config: ExtractLatentsConfig, processes: Processes
) -> Iterator[int]:
    """Make this process's share of the shards that are missing; yields the number of each when it is stored.

    A shard is written and hashed while the next one is encoded, and no more than these two are in memory.
    """
    shards = range(folder.num_shards)
    to_check = progress_bar(shards[processes.rank :: processes.world_size], desc="checking", unit="shard")
    checked = processes.gather([number for number in to_check if folder.holds(number)])
    there = {number for numbers in checked for number in numbers}
    own = [number for number in shards if number not in there][processes.rank :: processes.world_size]
    if there:
        log.info("latents: %d of %d shards are there already.", len(there), len(shards))
    total = sum(len(folder.images(number)) for number in own)
    share = f" (1 of {processes.world_size} processes)" if processes.world_size > 1 else ""
    started = time.perf_counter()
    progress = progress_bar(total=total, desc=f"latents{share}", unit=" img")
    with progress as bar, BackgroundWork(threads=1, waiting=1) as work:
        batches = read_batches(dataset, [folder.images(number) for number in own], config, processes.device)
        before: dict[int, Future[None]] = {}  # the shard that is being written
        for number in own:
            tensors = encode_shard(encoders, batches, folder.images(number), config, bar.update)
            yield from stored(before)
            before = {number: work.begin(folder.write, number, tensors)}
            del tensors  # the writer's alone
        yield from stored(before)
    seconds = time.perf_counter() - started
    if total:
        log.info("latents%s: %d images in %s, %.1f img/s.", share, total, duration(seconds), total / seconds)


def stored(shards: dict[int, Future[None]]) -> Iterator[int]:
    """Wait until shards are stored, and give their numbers.

    Raises:
        InputError: latents are not finite, or the disk refuses.
    """
    for number, writing in shards.items():
        writing.result()
        yield number


def read_batches(
    dataset: ImageDataset, shards: Sequence[range], config: ExtractLatentsConfig, device: torch.device
) -> Iterator[ImageSample]:
    """The images of all shards one after another, decoded ahead by the same worker processes, on the device.

    Batches begin with the shard, so they are the same in every process and after every interruption.
    """
    batches = [
        list(images[start : start + config.batch_size]) for images in shards for start in starts(images, config)
    ]
    loader: DataLoader[ImageSample] = DataLoader(
        dataset, batch_sampler=batches, num_workers=config.images.workers, pin_memory=device.type == "cuda"
    )
    return on_device(loader, device, "image")


def starts(images: range, config: ExtractLatentsConfig) -> range:
    """The places in a shard where a batch begins."""
    return range(0, len(images), config.batch_size)


def encode_shard(
    encoders: Encoders,
    batches: Iterator[ImageSample],
    images: range,
    config: ExtractLatentsConfig,
    report: Callable[[int], object],
) -> dict[str, Tensor]:
    """The tensors of the shard with these images, on the CPU in the type that is stored.

    Args:
        encoders: the networks.
        batches: those of the shard come next.
        images: their numbers.
        config: says what is stored, and in which types.
        report: told of every batch how many images it has.
    """
    shard: dict[str, Tensor] = {}
    for start in starts(images, config):
        batch = next(batches)
        labels, part = batch.label, slice(start, start + len(batch.image))
        assert isinstance(labels, Tensor)  # of a batch
        pixels = unit_range(batch.image)
        encoded = encode(encoders.vae, pixels, images[part], config)
        stored = {key: values.to("cpu", _DTYPES[config.dtype]) for key, values in encoded.items()} | {LABELS: labels}
        if encoders.foundation is not None:
            grid = encoded[LATENTS].shape[2], encoded[LATENTS].shape[3]
            stored |= encode_features(encoders.foundation, pixels, grid, config)
        for key, values in stored.items():
            if key not in shard:
                shard[key] = values.new_empty(len(images), *values.shape[1:])
            shard[key][part] = values
        report(len(labels))
    return shard


def encode(vae: Tokenizer, images: Tensor, numbers: Sequence[int], config: ExtractLatentsConfig) -> dict[str, Tensor]:
    """Raw latents of images in [-1, 1] and of their mirror images, by the names that they have in a shard.

    A posterior sample depends on the seed, the image's number and whether it is mirrored, and on nothing else.
    """
    keys = (LATENTS, MIRRORED) if config.flips else (LATENTS,)
    with autocast(images.device, config.precision), by_its_weights(vae):
        latents, logvar = moments(vae, torch.cat([images, images.flip(-1)]) if config.flips else images)
    if config.posterior == "sample" and vae.latent_space == "gaussian":
        seeds = [derive_seed(config.seed, "posterior", key, number) for key in keys for number in numbers]
        latents += (0.5 * logvar).exp() * noise_of_seeds(seeds, tuple(latents.shape[1:])).to(latents)
    encoded = dict(zip(keys, latents.split(len(images)), strict=True))
    if config.posterior == "moments":
        encoded |= zip((LOGVAR[key] for key in keys), logvar.split(len(images)), strict=True)
    return encoded


def encode_features(
    foundation: FoundationModel, images: Tensor, grid: tuple[int, int], config: ExtractLatentsConfig
) -> dict[str, Tensor]:
    """Features of images in [-1, 1] on the grid of their latents, and of the mirror images, as they are stored.

    The features of a mirror image are not the mirrored features.
    """
    sides = {FEATURES: images, MIRRORED_FEATURES: images.flip(-1)} if config.flips else {FEATURES: images}
    with autocast(images.device, config.precision):
        return {key: foundation(side, grid).to("cpu", _DTYPES[config.features.dtype]) for key, side in sides.items()}


def moments(vae: Tokenizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the posterior, each (B, C, h, w) in float32.

    On a CPU a few images pass at a time: where activations do not fit into its caches, each takes up to twice as long.
    """
    at_once = max(1, CPU_PIXELS // images[0, 0].numel()) if images.device.type == "cpu" else len(images)
    posteriors = [vae.posterior(part) for part in images.split(at_once)]
    mean, logvar = zip(*((posterior.mean, posterior.logvar) for posterior in posteriors), strict=True)
    return torch.cat(mean).float(), torch.cat(logvar).float()


# --- the artifact -------------------------------------------------------------------------------------------------


def finish(
    vae: Tokenizer,
    source: ImageSource,
    folder: LatentFolder,
    config: ExtractLatentsConfig,
    tokenizer: Artifact,
    started: float,
) -> None:
    """Write the index and the statistics beside the shards, the manifest last."""
    records = folder.records()
    measured = merged_statistics(records)
    of_tokenizer = vae.latents_statistics if config.statistics == "tokenizer" else None
    with writing_folder(config.output) as staging:
        statistics = of_tokenizer or (measured.mean, measured.std)
        features = None
        if folder.features is not None:
            features = features_entry(folder.features, [record["features"] for record in records])
        write_index(staging, records, statistics, config.statistics, source.class_names, features)
        shards = [config.output / record["file"] for record in records]
        digest = file_hash(*shards)
        facts = {
            "count": folder.count,
            "class_names": list(source.class_names),
            "image_size": config.images.size,
            "images": source.fingerprint,
        }
        seconds = time.perf_counter() - started
        inputs = {"tokenizer": tokenizer.hash}
        if features is not None:
            inputs["foundation"] = features["foundation_hash"]
        write_manifest(staging, "latents", config.model_dump(mode="json"), digest, inputs, facts, seconds, shards)
    folder.finish()
