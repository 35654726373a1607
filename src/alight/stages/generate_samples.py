"""Stage 4: noise and class labels -> images, one file each, with everything that determined them."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from alight.artifacts import (
    Artifact,
    check_output,
    file_hash,
    is_complete,
    read_artifact,
    write_manifest,
    write_text,
    writing_folder,
)
from alight.config import SampleConfig
from alight.pipelines import LightningDiTPipeline
from alight.runtime.console import progress_bar
from alight.runtime.device import autocast, resolve_device
from alight.runtime.seeding import derive_seed, random_stream

SETTINGS = "samples.json"


class Request(NamedTuple):
    """One image to be made."""

    label: int
    seed: int


def run(config: SampleConfig) -> Artifact:
    """Generate images, balanced over the classes, each from a seed of its own.

    Returns:
        The samples artifact: `images/*.png`, `samples.json`, and `samples.npz` if asked for.

    Raises:
        InputError: on unusable transformer or tokenizer, unknown classes, or an output folder that cannot be written.
    """
    started = time.perf_counter()
    transformer = read_artifact(config.transformer, "transformer")
    tokenizer = read_artifact(config.tokenizer, "tokenizer")
    resolved = config.model_dump(mode="json")
    check_output(config.output, resolved, "samples")
    if is_complete(config.output):
        samples = read_artifact(config.output, "samples")
        samples.require_input(transformer)
        return samples
    device = resolve_device(config.device)
    pipeline = LightningDiTPipeline.from_artifacts(config.transformer, config.tokenizer).to(device)
    requests = plan(pipeline, config)
    with writing_folder(config.output) as staging:
        (staging / "images").mkdir()
        images: list[np.ndarray] = []
        nfe = 0
        bar = progress_bar(total=len(requests), desc="samples", unit="image")
        for batch in _batches(requests, config.batch_size):
            with autocast(device, config.precision):
                result = pipeline(
                    class_labels=[request.label for request in batch],
                    seeds=[request.seed for request in batch],
                    output_type="uint8",
                    **config.sampling.model_dump(),
                )
            nfe = result.nfe
            for pixels in result.images.cpu().numpy():
                Image.fromarray(pixels).save(staging / "images" / f"{len(images):06d}.png")
                images.append(pixels)
            bar.update(len(batch))
        bar.close()
        settings = describe(config, requests, nfe, transformer, tokenizer)
        write_text(staging / SETTINGS, json.dumps(settings, indent=2) + "\n")
        if config.npz:
            write_npz(staging / "samples.npz", images, config.seed)
        digest = file_hash(*sorted((staging / "images").iterdir()))
        inputs = {"transformer": transformer.hash, "tokenizer": tokenizer.hash}
        facts = {"count": len(images), "nfe": nfe, "class_names": transformer.facts["class_names"]}
        seconds = time.perf_counter() - started
        write_manifest(staging, "samples", resolved, digest, inputs, facts, seconds)
    return read_artifact(config.output, "samples")


def plan(pipeline: LightningDiTPipeline, config: SampleConfig) -> list[Request]:
    """Which images to make: the same number of every class, class by class; image i has the i-th seed."""
    classes: Sequence[int | str] = config.classes or range(pipeline.transformer.config.num_classes)
    labels = pipeline.resolve_labels(classes).repeat_interleave(config.samples_per_class).tolist()
    return [Request(label, derive_seed(config.seed, "sample", number)) for number, label in enumerate(labels)]


def describe(
    config: SampleConfig, requests: list[Request], nfe: int, transformer: Artifact, tokenizer: Artifact
) -> dict[str, Any]:
    """Every setting that determined the images."""
    return {
        "count": len(requests),
        "label_protocol": f"balanced, {config.samples_per_class} per class",
        "sampling": config.sampling.model_dump(),
        "nfe": nfe,
        "seed": config.seed,
        "precision": config.precision,
        "uint8_rule": "clamp(127.5 x + 128, 0, 255), truncated",
        "transformer": transformer.hash,
        "tokenizer": tokenizer.hash,
        "labels": [request.label for request in requests],
        "seeds": [request.seed for request in requests],
        "class_names": transformer.facts["class_names"],
    }


def write_npz(path: Path, images: list[np.ndarray], seed: int) -> None:
    """`arr_0`, uint8 NHWC, shuffled: the Inception score reads chunks in file order, so classes must be mixed."""
    order = torch.randperm(len(images), generator=random_stream(seed, "npz order")).tolist()
    np.savez(path, arr_0=np.stack([images[index] for index in order]))


def _batches(requests: list[Request], size: int) -> Iterator[list[Request]]:
    for start in range(0, len(requests), size):
        yield requests[start : start + size]
