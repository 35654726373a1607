"""Artifacts on disk without the hours that make them: models of random weights, and random latents."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import ModelMixin
from safetensors.torch import load_file, save_file
from torch import Tensor

from alight.artifacts import write_manifest
from alight.data.latent_shards import LABELS, LATENTS, shard_name, write_shard
from alight.data.latent_statistics import ChannelStatistics
from alight.data.latents import write_index
from alight.outputs import writing_folder
from alight.runtime.files import file_hash

WEIGHTS = "diffusion_pytorch_model.safetensors"
TOKENIZER_HASH = "t" * 64  # the tokenizer that the latents of this module name


def write_model(
    folder: Path,
    kind: str,
    model: ModelMixin,
    digest: str | None = None,
    inputs: Mapping[str, str] | None = None,
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Write a model as training leaves it; its hash is that of the weights unless one is given."""
    with writing_folder(folder) as staging:
        model.save_pretrained(staging)
        write_manifest(staging, kind, {}, digest or file_hash(staging / WEIGHTS), inputs, facts)
    return folder


def write_latents(
    folder: Path,
    count: int = 24,
    shape: tuple[int, int, int] = (4, 2, 2),
    class_names: tuple[str, ...] = ("a", "b", "c"),
    seed: int = 0,
) -> Path:
    """Write latents of unit variance as extraction leaves them; the classes take turns."""
    generator = torch.Generator().manual_seed(seed)
    with writing_folder(folder) as staging:
        latents = torch.randn(count, *shape, generator=generator)
        digest = write_shards(staging, {LATENTS: latents, LABELS: torch.arange(count) % len(class_names)}, class_names)
        write_manifest(staging, "latents", {}, digest, {"tokenizer": TOKENIZER_HASH})
    return folder


def write_shards(folder: Path, tensors: Mapping[str, Tensor], class_names: Sequence[str], shard_size: int = 16) -> str:
    """Write shards and an index normalised by the statistics of the latents as stored; return their hash."""
    records = [
        write_shard(
            folder / shard_name(number),
            {key: values[start : start + shard_size].contiguous() for key, values in tensors.items()},
        )
        for number, start in enumerate(range(0, len(tensors[LABELS]), shard_size))
    ]
    statistics = ChannelStatistics(tensors[LATENTS].shape[1])
    statistics.update(tensors[LATENTS])
    write_index(folder, records, (statistics.mean, statistics.std), "data", class_names)
    return file_hash(*(folder / record["file"] for record in records))


def write_published_shards(folder: Path, shards: int, count: int) -> Path:
    """Write `count` latents of three classes per shard in the published layout, which has no index."""
    generator = torch.Generator().manual_seed(0)
    with writing_folder(folder) as staging:
        for shard in range(shards):
            tensors = {key: torch.randn(count, 4, 4, 4, generator=generator) for key in ("latents", "latents_flip")}
            tensors["labels"] = torch.arange(count) % 3
            save_file(tensors, staging / f"latents_rank00_shard{shard:03d}.safetensors")
        write_manifest(staging, "latents", {}, "l" * 64, {"tokenizer": TOKENIZER_HASH})
    return folder


def largest_difference(one: Path, two: Path) -> float:
    """The largest difference of any weight between the same networks of two folders."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names
    assert names == sorted(path.name for path in two.glob("*.safetensors"))
    largest = 0.0
    for name in names:
        first, second = load_file(one / name), load_file(two / name)
        assert first.keys() == second.keys()
        largest = max(largest, *(float((first[key] - second[key]).abs().max()) for key in first))
    return largest


def same_weights(one: Path, two: Path) -> bool:
    """Compare all networks of two folders bit for bit."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names
    assert names == sorted(path.name for path in two.glob("*.safetensors"))
    for name in names:
        first, second = load_file(one / name), load_file(two / name)
        assert first.keys() == second.keys()
        if not all(torch.equal(first[key], second[key]) for key in first):
            return False
    return True
