"""Real images -> the statistics that generated ones are compared with, once for many evaluations."""

import time
from collections.abc import Iterator

import numpy as np
import torch

from alight.artifacts import Artifact, read_artifact, write_manifest
from alight.config import EvaluateReferenceConfig
from alight.data.latents import LatentDataset
from alight.data.loading import open_dataset
from alight.device_settings import ENCODED, joined, with_compilation
from alight.evaluation.batches import contiguous_share, in_steps
from alight.evaluation.features import open_feature_networks
from alight.evaluation.real_images import RealImages, measure_reference
from alight.evaluation.reference_set import reference_facts, write_reference_set
from alight.interop.tokenizer_sources import open_tokenizer
from alight.models.tokenizer import Tokenizer
from alight.outputs import claimed_output, read_written, writing_folder
from alight.runtime.console import progress_bar
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.runtime.pixels import PixelArray, to_uint8
from alight.runtime.seeding import random_stream


def run(config: EvaluateReferenceConfig) -> Artifact:
    """Measure real images, or decoded latents; several processes share the work.

    Returns:
        The reference artifact: `inception.npz` in the layout of the ADM evaluator, a `.npz` for every other feature
        space, and the features of some images for precision, recall and the kernel distance.

    Raises:
        InputError: on unusable images, latents, tokenizer or networks, or an output folder that cannot be written.
    """
    started = time.perf_counter()
    resolved = config.model_dump(mode="json")
    with (
        joined(config) as (processes, config),
        claimed_output(config.output, "reference", resolved, is_main=processes.is_main) as finished,
    ):
        if finished is None:
            images = open_real(config, processes)
            config = with_compilation(config, processes.device, images.count // processes.world_size, ENCODED)
            networks = open_feature_networks(config, images.size[0], processes.device)
            reference = measure_reference(networks, images, processes, config.keep_features, config.seed)
            if processes.is_main:
                with writing_folder(config.output) as staging:
                    digest = file_hash(*write_reference_set(staging, reference))
                    facts, seconds = reference_facts(reference, images.count), time.perf_counter() - started
                    resolved = config.model_dump(mode="json")
                    write_manifest(staging, "reference", resolved, digest, facts=facts, seconds=seconds)
        processes.barrier()  # the artifact is there
    return read_written(config.output, "reference")


def open_real(config: EvaluateReferenceConfig, processes: Processes) -> RealImages:
    """The images of a source, or those that latents decode to."""
    if config.latents is not None:
        return open_decoded(config, processes)
    dataset = open_dataset(config.images, config.split, augment=False)
    split = {"train": "training images", "held_out": "held-out images", "all": "images"}[config.split]
    squares = "padded to" if dataset.crop == "pad" else "centre crops of"
    kind = f"{split} of {dataset.source.description}, {squares} {dataset.size} pixels"
    return RealImages.of_dataset(dataset, kind, config.batch_size, config.images.workers, processes)


def open_decoded(config: EvaluateReferenceConfig, processes: Processes) -> RealImages:
    """The images that latents decode to: the best that a generator trained on them can do."""
    assert config.latents is not None
    artifact = read_artifact(config.latents, "latents")
    source = config.tokenizer or artifact.config.get("tokenizer")
    if source is None:
        raise InputError(
            f"The latents in {config.latents} do not say which tokenizer made them; name it: --tokenizer."
        )
    vae, tokenizer = open_tokenizer(source)
    artifact.require_input(tokenizer)
    dataset = LatentDataset(config.latents)
    vae.set_latents_statistics(dataset.mean.flatten(), dataset.std.flatten())
    height, width = (extent * vae.downsampling_factor for extent in dataset.shape[1:])
    share = contiguous_share(len(dataset), config.batch_size, processes)
    description = f"{len(dataset):,} latents of {config.latents.name}, decoded"
    batches = decoded(vae.to(processes.device).eval(), dataset, share, config, processes.device)
    return RealImages(description, len(dataset), (height, width), share, batches)


@torch.no_grad()
def decoded(
    vae: Tokenizer,
    dataset: LatentDataset,
    share: tuple[int, int],
    config: EvaluateReferenceConfig,
    device: torch.device,
) -> Iterator[PixelArray]:
    """Latents of a share as images (B, H, W, 3) uint8; of stored moments, samples."""
    for numbers in progress_bar(in_steps(*share, config.batch_size), desc="decoded latents", unit="batch"):
        generator = random_stream(config.seed, "moments", numbers.start)
        latents = dataset.gather(np.arange(numbers.start, numbers.stop), generator=generator).latents
        yield to_uint8(vae.decode_latents(latents.to(device))).cpu().numpy()
