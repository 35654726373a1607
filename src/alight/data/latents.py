"""A folder of latents: safetensors shards in the published layout and an index with statistics; read by memory map.

What is stored are raw latents; reading normalises them per channel. `latent_shards.py` is about a single shard,
`latent_folder.py` about a folder that is still being made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from alight.data.latent_shards import (
    LABELS,
    LATENTS,
    LOGVAR,
    MIRRORED,
    as_tensor,
    map_shard,
    shard_name,
    shard_statistics,
    write_shard,
)
from alight.data.latent_statistics import ChannelStatistics
from alight.interop.latents import STATISTICS_FILE, load_latents_statistics
from alight.runtime.checked_json import read_checked, write_checked
from alight.runtime.console import progress_bar
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash

INDEX = "index.json"
UNFINISHED = "unfinished"  # a folder beside the shards while some are still missing


class LatentBatch(NamedTuple):
    """Normalised latents (B, C, h, w) in float32 and class labels (B,) in int64."""

    latents: Tensor
    labels: Tensor


class LatentDataset:
    """Latents of one folder, gathered by batch from memory maps and normalised per channel.

    Args:
        folder: with safetensors shards and an `index.json`, or as the published code wrote it, see `published_index`.

    Attributes:
        shape: (C, h, w) of one latent.
        labels: (N,) int64.
        class_names: by label.
        has_flips: whether mirrored latents are stored.
        has_moments: whether mean and log-variance are stored, to sample from anew whenever they are read.
        mean, std: (C, 1, 1) in float32, what normalises.

    Raises:
        InputError: if the index is damaged, or shards are missing, truncated, or not those of the index. The bytes of
            the latents are not looked at; 'alight latents inspect' does that.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / INDEX
        index = read_checked(path) if path.is_file() else published_index(folder)
        try:
            self.class_names = tuple(index["class_names"])
            self.mean, self.std = (torch.tensor(index["statistics"][key]).view(-1, 1, 1) for key in ("mean", "std"))
            self._folder, self._entries = folder, index["shards"]
            self._maps = _map_shards(folder, [entry["file"] for entry in self._entries])
            keys = set(index["tensors"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error!r}). Extract the latents again.") from error
        for entry, maps in zip(self._entries, self._maps, strict=True):
            if not keys <= maps.keys() or len(maps[LABELS]) != entry["count"]:
                raise InputError(
                    f"{folder / entry['file']} is not the shard that {path} describes. Restore the files that belong "
                    "together, or extract the latents again."
                )
        self.shape = tuple(self._maps[0][LATENTS].shape[1:])
        self.has_flips, self.has_moments = MIRRORED in keys, LOGVAR[LATENTS] in keys
        self.labels = torch.from_numpy(np.concatenate([maps[LABELS] for maps in self._maps]))
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise InputError(
                f"The latents in {folder} have labels from {self.labels.min()} to {self.labels.max()}, but there are "
                f"{len(self.class_names)} classes. Restore the files that belong together, or extract them again."
            )
        self._ends = np.cumsum([len(maps[LABELS]) for maps in self._maps])
        # as large as a latent, because NumPy is slow to repeat a number over a few hundred positions
        self._wide_mean, self._wide_std = (value.expand(self.shape).numpy().copy() for value in (self.mean, self.std))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def gather(
        self,
        indices: Sequence[int] | np.ndarray,
        flips: np.ndarray | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> LatentBatch:
        """Latents at the given positions; each is copied once.

        Args:
            indices: (B,) positions in [0, len).
            flips: (B,) bool, true where the mirrored image is wanted; without mirrored latents it has no effect.
            generator: where moments are stored, draws the noise of posterior samples; without it they are the means.
            noise: the noise itself, (B, C, h, w), for processes that share a batch.

        Raises:
            IndexError: a position is out of range.
        """
        indices = np.asarray(indices)
        mirrored = np.zeros(len(indices), bool) if flips is None or not self.has_flips else np.asarray(flips)
        latents = self._rows(LATENTS, MIRRORED, indices, mirrored)
        if self.has_moments and (generator is not None or noise is not None):
            noise = torch.randn(latents.shape, generator=generator) if noise is None else noise
            logvar = self._rows(LOGVAR[LATENTS], LOGVAR[MIRRORED], indices, mirrored)
            latents.addcmul_(logvar.mul_(0.5).exp_(), noise)
        values = latents.numpy()  # on one thread: torch's would wait for each other longer than the work takes
        values -= self._wide_mean
        values /= self._wide_std
        return LatentBatch(latents, self.labels[indices])

    def check_bytes(self, payload_hash: str) -> None:
        """Read all shards from the disk and compare them with their checksums.

        Args:
            payload_hash: of all shards together, from the manifest.

        Raises:
            InputError: a shard is not what was written, or the shards are not those of the manifest.
        """
        together = sha256()
        for entry in progress_bar(self._entries, desc="checksums", unit="shard"):
            alone = sha256()
            with (self._folder / entry["file"]).open("rb") as file:
                while block := file.read(1 << 20):
                    alone.update(block)
                    together.update(block)
            if alone.hexdigest() != entry.get("sha256", alone.hexdigest()):
                raise InputError(
                    f"{self._folder / entry['file']} is damaged: it is not what was written. Restore the file, or "
                    "extract the latents again."
                )
        if together.hexdigest() != payload_hash:
            raise InputError(
                f"The shards in {self._folder} are not those that its manifest speaks of. Restore the files that "
                "belong together, or extract the latents again."
            )

    def _rows(self, key: str, mirrored_key: str, indices: np.ndarray, mirrored: np.ndarray) -> Tensor:
        """Rows of one tensor or of its mirrored counterpart, in float32.

        A loop over rows: they are tens of kilobytes, so the copies cost more than Python does, and each row goes from
        the map straight to its place in the batch.
        """
        shards = np.searchsorted(self._ends, indices, side="right")
        rows = indices - self._ends[shards]  # counted from the end of the shard
        batch = np.empty((len(indices), *self.shape), self._maps[0][key].dtype)
        where = zip(shards.tolist(), rows.tolist(), mirrored.tolist(), strict=True)
        for place, (shard, row, flip) in enumerate(where):
            batch[place] = self._maps[shard][mirrored_key if flip else key][row]
        return as_tensor(batch).float()


class LatentWriter:
    """Writes latents that are at hand in order, by one process and in one go, as a folder that `LatentDataset` reads.

    Args:
        folder: an existing folder.
        shard_size: images per file.
        dtype: of the stored latents.

    Attributes:
        statistics: of all latents that were added, before rounding.
    """

    def __init__(self, folder: Path, shard_size: int, dtype: torch.dtype = torch.float32) -> None:
        self.folder, self.shard_size, self.dtype = folder, shard_size, dtype
        self.statistics = ChannelStatistics(0)
        self._records: list[dict[str, Any]] = []
        self._pending: dict[str, Tensor] = {}

    def add(self, latents: Tensor, labels: Tensor, flipped: Tensor | None = None) -> None:
        """Add a batch of raw latents (B, C, h, w), their labels (B,) and optionally those of the mirrored images."""
        if not self.statistics.count:
            self.statistics = ChannelStatistics(latents.shape[1])
        self.statistics.update(latents)
        batch = {LATENTS: latents.to("cpu", self.dtype), LABELS: labels.to("cpu", torch.int64)}
        if flipped is not None:
            batch[MIRRORED] = flipped.to("cpu", self.dtype)
        joined = {key: torch.cat([self._pending.get(key, values[:0]), values]) for key, values in batch.items()}
        while len(joined[LABELS]) >= self.shard_size:
            self._write({key: values[: self.shard_size] for key, values in joined.items()})
            joined = {key: values[self.shard_size :] for key, values in joined.items()}
        self._pending = joined

    def close(self, statistics: tuple[Tensor, Tensor], source: str, class_names: Sequence[str]) -> str:
        """Write what is left and the index, see `write_index`.

        Returns:
            The hash of all shards.

        Raises:
            InputError: if nothing was added.
        """
        if len(self._pending.get(LABELS, ())):
            self._write(self._pending)
        if not self._records:
            raise InputError("No latents were written: there were no images.")
        write_index(self.folder, self._records, statistics, source, class_names)
        return file_hash(*(self.folder / record["file"] for record in self._records))

    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        shard = {key: values.contiguous() for key, values in tensors.items()}
        self._records.append(write_shard(self.folder / shard_name(len(self._records)), shard))


# --- the index ----------------------------------------------------------------------------------------------------


def write_index(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    statistics: tuple[Tensor, Tensor],
    source: str,
    class_names: Sequence[str],
) -> None:
    """Write `index.json`: what the shards are, and what normalises them.

    Args:
        folder: where to.
        records: of all shards, in order, from `write_shard`.
        statistics: mean and std, each (C,), that readers normalise with.
        source: where they come from, `tokenizer` or `data`.
        class_names: by label.
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
    write_checked(folder / INDEX, index)


def merged_statistics(records: Sequence[Mapping[str, Any]]) -> ChannelStatistics:
    """The statistics of all shards, put together in their order, so that whoever wrote them does not matter."""
    merged = ChannelStatistics(records[0]["shape"][0])
    for record in records:
        merged.merge(ChannelStatistics.from_dict(record["statistics"]))
    return merged


def published_index(folder: Path) -> dict[str, Any]:
    """What `index.json` would say of a folder that the published code wrote: shards in the order of their names.

    Classes are known by number only, as many as the labels range over. The statistics are those of `latents_stats.pt`;
    where that file is missing they are computed as the published reader does, over all `latents` but no mirrored ones.

    Raises:
        InputError: if there are no shards, one is damaged, or more are about to come.
    """
    if (folder / UNFINISHED).exists():
        raise InputError(
            f"{folder} holds latents that are not finished. Run 'alight latents extract' with the same --output and "
            "the same configuration again: it goes on with the shards that are missing."
        )
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise InputError(
            f"{folder} holds no latents: there is no {INDEX}, and there are no *.safetensors as the published code "
            "writes them. Make some with 'alight latents extract'."
        )
    shards = _map_shards(folder, names)
    shape = list(shards[0][LATENTS].shape[1:])
    if (folder / STATISTICS_FILE).is_file():
        mean, std = load_latents_statistics(folder)
        if len(mean) != shape[0]:
            raise InputError(
                f"{folder / STATISTICS_FILE} has {len(mean)} channels, but the latents beside it have {shape[0]}. Get "
                "the file that belongs to them, or delete it."
            )
    else:
        computed = ChannelStatistics(shape[0])
        for maps in shards:
            computed.merge(shard_statistics(maps))
        mean, std = computed.mean, computed.std
    counts = [len(maps[LABELS]) for maps in shards]
    return {
        "count": sum(counts),
        "shape": shape,
        "tensors": sorted(set.intersection(*(set(maps) for maps in shards))),
        "shards": [{"file": name, "count": count} for name, count in zip(names, counts, strict=True)],
        "class_names": [str(label) for label in range(1 + max(int(maps[LABELS].max()) for maps in shards))],
        "statistics": {"source": "published", "mean": mean.tolist(), "std": std.tolist()},
    }


def _map_shards(folder: Path, names: Sequence[str]) -> list[dict[str, np.ndarray]]:
    shards = [map_shard(folder / name) for name in names]
    kinds = {(maps[LATENTS].shape[1:], maps[LATENTS].dtype) for maps in shards}
    if len(kinds) > 1:
        raise InputError(f"The shards in {folder} hold latents of different shapes or types. Extract them again.")
    return shards
