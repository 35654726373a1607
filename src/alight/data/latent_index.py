"""The index of a folder of latents, `index.json`: its shards and the statistics for normalisation.

A folder written by the published code has none; its index is then derived from the shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, with_config
from torch import Tensor
from typing_extensions import TypedDict

from alight.data.latent_shards import LABELS, LATENTS, MAX_CLASSES, map_shard, require_finite, shard_statistics
from alight.data.latent_statistics import ChannelStatistics
from alight.interop.latents import STATISTICS_FILE, load_latents_statistics
from alight.runtime.checked_json import read_checked, write_checked
from alight.runtime.errors import InputError
from alight.runtime.reading import check_values

INDEX = "index.json"
UNFINISHED = "unfinished"  # a folder beside the shards while some are missing
SUFFIX = ".safetensors"

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")
_REMEDY = "Restore the file, or extract the latents again."


def plain_shard_name(name: str) -> str:
    """Check that a name is that of a shard in the folder of the index, and return it.

    Raises:
        ValueError: it points to another folder, or is not the name of a shard.
    """
    if Path(name).name != name or "\\" in name or "\0" in name or not name.endswith(SUFFIX):
        raise ValueError(f"{name!r} is not a plain file name that ends in {SUFFIX}")
    return name


def _distinct(shards: list[ShardEntry]) -> list[ShardEntry]:
    if len({shard["file"] for shard in shards}) != len(shards):
        raise ValueError("a shard is listed twice")
    return shards


@with_config(_STRICT)
class ShardEntry(TypedDict):
    """One shard."""

    file: Annotated[str, AfterValidator(plain_shard_name)]
    count: Annotated[int, Field(ge=1)]
    sha256: NotRequired[str]


@with_config(_STRICT)
class Statistics(TypedDict):
    """The statistics that normalise latents, per channel, and their origin."""

    source: NotRequired[str]
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


@with_config(_STRICT)
class FeaturesEntry(TypedDict):
    """The features of a foundation model that are stored beside the latents, and everything that they depend on.

    Attributes:
        foundation: name of the model.
        foundation_hash: of its weights.
        foundation_input: how it was fed.
        crop: the rule that made the squares, and the fingerprint of their images.
        shape: (D, h, w) of one image.
        mirrored: whether those of the mirrored images are there, too.
        shards: one for each shard of latents, with the same images.
    """

    foundation: str
    foundation_hash: str
    foundation_input: str
    crop: dict[str, Any]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=3, max_length=3)]
    dtype: str
    mirrored: bool
    shards: Annotated[list[ShardEntry], Field(min_length=1), AfterValidator(_distinct)]


@with_config(_STRICT)
class LatentIndex(TypedDict):
    """The required fields of an index; others are allowed."""

    count: Annotated[int, Field(ge=1)]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=3, max_length=3)]
    tensors: list[str]
    shards: Annotated[list[ShardEntry], Field(min_length=1), AfterValidator(_distinct)]
    class_names: Annotated[list[str], Field(max_length=MAX_CLASSES)]
    statistics: Statistics
    features: NotRequired[FeaturesEntry]


def read_index(folder: Path) -> LatentIndex:
    """Read the index of a folder, or derive it from the shards.

    Raises:
        InputError: the index is damaged, or a field is missing, of a wrong type, or contradicts another; or there is
            no index, and the shards are not in the published format.
    """
    path = folder / INDEX
    if not path.is_file():
        return published_index(folder)
    index: LatentIndex = check_values(read_checked(path), LatentIndex, str(path), _REMEDY)
    channels, statistics = index["shape"][0], index["statistics"]
    lengths = {len(statistics["mean"]), len(statistics["std"])}
    if lengths != {channels} or index["count"] != sum(shard["count"] for shard in index["shards"]):
        raise InputError(
            f"{path} contradicts itself: its statistics need one number for each of {channels} channels, and its "
            f"count of {index['count']} must be the sum over all shards. {_REMEDY}"
        )
    return index


def write_index(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    statistics: tuple[Tensor, Tensor],
    source: str,
    class_names: Sequence[str],
    features: FeaturesEntry | None = None,
) -> None:
    """Write `index.json`.

    Args:
        folder: of the shards.
        records: of all shards, in order, from `write_shard`.
        statistics: mean and std, each (C,), for normalisation.
        source: of the statistics, `tokenizer` or `data`.
        class_names: by label.
        features: what is known of the features beside the latents, where there are any.
    """
    measured = merged_statistics(records)
    index = {
        "count": sum(record["count"] for record in records),
        **{key: records[0][key] for key in ("shape", "dtype", "tensors")},
        "shards": [{key: record[key] for key in ("file", "count", "sha256")} for record in records],
        "class_names": list(class_names),
        "statistics": {"source": source, "mean": statistics[0].tolist(), "std": statistics[1].tolist()},
        "statistics_of_data": {"mean": measured.mean.tolist(), "std": measured.std.tolist()},
    }
    write_checked(folder / INDEX, index | ({"features": features} if features is not None else {}))


def merged_statistics(records: Sequence[Mapping[str, Any]]) -> ChannelStatistics:
    """The statistics of all shards, merged in their order."""
    merged = ChannelStatistics(records[0]["shape"][0])
    for record in records:
        merged.merge(ChannelStatistics.from_dict(record["statistics"]))
    return merged


def published_index(folder: Path) -> LatentIndex:
    """The index of a folder written by the published code: shards in the order of their names.

    Classes have numbers only, up to the largest label. The statistics are those of `latents_stats.pt`; if that file is
    missing, they are computed as the published reader does, over all `latents` without the mirrored ones.

    Raises:
        InputError: there are no shards, one is damaged or differs from the others, or the extraction is unfinished.
    """
    if (folder / UNFINISHED).exists():
        raise InputError(
            f"{folder} holds unfinished latents. Run 'alight latents extract' with the same --output and the same "
            "configuration again: it resumes with the missing shards."
        )
    names = sorted(path.name for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
    if not names:
        raise InputError(
            f"{folder} holds no latents: there is no {INDEX}, and there are no *{SUFFIX} in the published format. "
            "Extract some with 'alight latents extract'."
        )
    shards = map_shards(folder, names)
    shape = [int(size) for size in shards[0][LATENTS].shape[1:]]
    mean, std = _published_statistics(folder, names, shards, shape[0])
    counts = [len(maps[LABELS]) for maps in shards]
    return {
        "count": sum(counts),
        "shape": shape,
        "tensors": sorted(set.intersection(*(set(maps) for maps in shards))),
        "shards": [{"file": name, "count": count} for name, count in zip(names, counts, strict=True)],
        "class_names": [str(label) for label in range(1 + max(int(maps[LABELS].max()) for maps in shards))],
        "statistics": {"source": "published", "mean": mean.tolist(), "std": std.tolist()},
    }


def map_shards(folder: Path, names: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Memory maps of several shards, see `map_shard`.

    Raises:
        InputError: one cannot be used, or they have different shapes or types.
    """
    shards = [map_shard(folder / name) for name in names]
    kinds = {(maps[LATENTS].shape[1:], maps[LATENTS].dtype) for maps in shards}
    if len(kinds) > 1:
        raise InputError(f"The shards in {folder} hold latents of different shapes or types. Extract them again.")
    return shards


def _published_statistics(
    folder: Path, names: Sequence[str], shards: Sequence[Mapping[str, np.ndarray]], channels: int
) -> tuple[Tensor, Tensor]:
    if (folder / STATISTICS_FILE).is_file():
        mean, std = load_latents_statistics(folder)
        if len(mean) != channels:
            raise InputError(
                f"{folder / STATISTICS_FILE} has {len(mean)} channels, but the latents beside it have {channels}. Get "
                "the file that belongs to them, or delete it."
            )
        return mean, std
    computed = ChannelStatistics(channels)
    for name, maps in zip(names, shards, strict=True):
        require_finite(folder / name, maps)
        computed.merge(shard_statistics(maps))
    if not (computed.std > 0).all():
        raise InputError(
            f"The latents in {folder} have a constant channel, which cannot be normalised. Extract them again, with a "
            "tokenizer that uses all of its channels."
        )
    return computed.mean, computed.std
