"""Latents on disk: safetensors shards in the published layout, an index, and statistics; read by memory map.

A shard holds `latents` (n, C, h, w), `latents_flip` (the same of the mirrored images, optional) and `labels` (n,).
What is stored are raw latents; reading normalises them per channel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from alight.artifacts import file_hash, write_text
from alight.interop.latents import STATISTICS_FILE, load_latents_statistics
from alight.runtime.errors import InputError

INDEX = "index.json"
READ_AT_ONCE = 1_000  # latents in memory while statistics are computed
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64}


class LatentBatch(NamedTuple):
    """Normalised latents (B, C, h, w) in float32 and class labels (B,) in int64."""

    latents: Tensor
    labels: Tensor


class ChannelStatistics:
    """Mean and standard deviation per channel, accumulated in float64 over batches of any size."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)  # sum of squared deviations from the mean

    def update(self, latents: Tensor) -> None:
        """Add a batch (B, C, h, w) by the pairwise rule of Chan et al. (1979), which does not cancel."""
        values = latents.detach().cpu().double().transpose(0, 1).flatten(1)  # (C, B h w)
        count = values.shape[1]
        mean = values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        total = self.count + count
        delta = mean - self._mean
        self._squares += squares + delta.square() * self.count * count / total
        self._mean += delta * count / total
        self.count = total

    @property
    def mean(self) -> Tensor:
        """Per channel, float64, shape (C,)."""
        return self._mean.clone()

    @property
    def std(self) -> Tensor:
        """Per channel with n - 1 in the denominator, float64, shape (C,)."""
        return (self._squares / max(self.count - 1, 1)).sqrt()


@dataclass
class LatentWriter:
    """Collects latents and writes a shard whenever enough have come.

    Args:
        folder: an existing folder.
        shard_size: images per file.
        dtype: of the stored latents; statistics are taken before rounding.
    """

    folder: Path
    shard_size: int
    dtype: torch.dtype = torch.float32
    shards: list[dict[str, Any]] = field(default_factory=list)
    statistics: ChannelStatistics | None = None
    _pending: list[dict[str, Tensor]] = field(default_factory=list)

    def add(self, latents: Tensor, labels: Tensor, flipped: Tensor | None = None) -> None:
        """Add a batch of raw latents (B, C, h, w), their labels (B,) and optionally those of the mirrored images."""
        self.statistics = self.statistics or ChannelStatistics(latents.shape[1])
        self.statistics.update(latents)
        batch = {"latents": latents.to("cpu", self.dtype), "labels": labels.to("cpu", torch.int64)}
        if flipped is not None:
            batch["latents_flip"] = flipped.to("cpu", self.dtype)
        self._pending.append(batch)
        while sum(len(item["labels"]) for item in self._pending) >= self.shard_size:
            self._write(self.shard_size)

    def close(self, statistics: tuple[Tensor, Tensor], source: str, class_names: Sequence[str]) -> str:
        """Write what is left and the index.

        Args:
            statistics: mean and std, each (C,), that readers normalise with.
            source: where they come from, `tokenizer` or `data`.
            class_names: by label.

        Returns:
            The hash of all shards.
        """
        if self._pending:
            self._write(sum(len(item["labels"]) for item in self._pending))
        if not self.shards or self.statistics is None:
            raise InputError("No latents were written: there were no images.")
        index = {
            "count": sum(shard["count"] for shard in self.shards),
            "shape": self.shards[0]["shape"],
            "dtype": str(self.dtype).removeprefix("torch."),
            "shards": self.shards,
            "class_names": list(class_names),
            "statistics": {"source": source, "mean": statistics[0].tolist(), "std": statistics[1].tolist()},
            "statistics_of_data": {"mean": self.statistics.mean.tolist(), "std": self.statistics.std.tolist()},
        }
        write_text(self.folder / INDEX, json.dumps(index, indent=2, allow_nan=False) + "\n")
        return file_hash(*(self.folder / shard["file"] for shard in self.shards))

    def _write(self, count: int) -> None:
        joined = {key: torch.cat([item[key] for item in self._pending]) for key in self._pending[0]}
        shard = {key: value[:count].contiguous() for key, value in joined.items()}
        rest = {key: value[count:] for key, value in joined.items()}
        self._pending = [rest] if len(rest["labels"]) else []
        name = f"latents_{len(self.shards):05d}.safetensors"
        save_file(shard, self.folder / name)
        self.shards.append(
            {
                "file": name,
                "count": count,
                "shape": list(shard["latents"].shape[1:]),
                "sha256": file_hash(self.folder / name),
            }
        )


class LatentDataset:
    """Latents of one folder, gathered by batch from memory maps and normalised per channel.

    Args:
        folder: with safetensors shards and an `index.json`, or as the published code wrote it, see `published_index`.

    Attributes:
        shape: (C, h, w) of one latent.
        class_names: by label.
        has_flips: whether mirrored latents are stored.
        mean, std: (C, 1, 1) in float32, what normalises.

    Raises:
        InputError: if shards are missing, truncated, or of different shapes.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / INDEX
        try:
            index = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else published_index(folder)
            self.class_names = tuple(index["class_names"])
            self.mean, self.std = (torch.tensor(index["statistics"][key]).view(-1, 1, 1) for key in ("mean", "std"))
            names = [shard["file"] for shard in index["shards"]]
        except InputError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error!r}). Extract the latents again.") from error
        self._shards = _map_shards(folder, names)
        self.shape = tuple(self._shards[0]["latents"].shape[1:])
        self.has_flips = all("latents_flip" in shard for shard in self._shards)
        self._ends = np.cumsum([len(shard["labels"]) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def num_classes(self) -> int:
        """How many classes the labels range over."""
        return len(self.class_names)

    def gather(self, indices: Sequence[int] | np.ndarray, flips: np.ndarray | None = None) -> LatentBatch:
        """Latents at the given positions; one read per shard.

        Args:
            indices: (B,) positions in [0, len).
            flips: (B,) bool, true where the mirrored image is wanted.
        """
        indices = np.asarray(indices)
        out = torch.empty(len(indices), *self.shape)
        labels = torch.empty(len(indices), dtype=torch.int64)
        flips = np.zeros(len(indices), bool) if flips is None or not self.has_flips else flips
        owner = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(owner):
            shard, start = self._shards[number], self._ends[number] - len(self._shards[number]["labels"])
            for key, chosen in (("latents", ~flips), ("latents_flip", flips)):
                rows = np.flatnonzero((owner == number) & chosen)
                if len(rows):
                    out[rows] = _as_tensor(shard[key][indices[rows] - start]).float()
                    labels[rows] = _as_tensor(shard["labels"][indices[rows] - start])
        return LatentBatch(out.sub_(self.mean).div_(self.std), labels)


def published_index(folder: Path) -> dict[str, Any]:
    """What `index.json` would say of a folder that the published code wrote: shards in the order of their names.

    Classes are known by number only, as many as the labels range over. The statistics are those of `latents_stats.pt`;
    where that file is missing they are computed as the published reader does, over all `latents` but no mirrored ones.

    Raises:
        InputError: if there are no shards, or one is damaged.
    """
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise InputError(
            f"{folder} holds no latents: there is no {INDEX}, and there are no *.safetensors as the published code "
            "writes them. Make some with 'alight latents extract'."
        )
    shards = _map_shards(folder, names)
    if (folder / STATISTICS_FILE).is_file():
        mean, std = load_latents_statistics(folder)
        if len(mean) != shards[0]["latents"].shape[1]:
            raise InputError(
                f"{folder / STATISTICS_FILE} has {len(mean)} channels, but the latents beside it have "
                f"{shards[0]['latents'].shape[1]}. Get the file that belongs to them, or delete it."
            )
    else:
        computed = ChannelStatistics(shards[0]["latents"].shape[1])
        for shard in shards:
            for start in range(0, len(shard["latents"]), READ_AT_ONCE):
                computed.update(_as_tensor(np.array(shard["latents"][start : start + READ_AT_ONCE])))
        mean, std = computed.mean, computed.std
    counts = [len(shard["labels"]) for shard in shards]
    shape = list(shards[0]["latents"].shape[1:])
    return {
        "count": sum(counts),
        "shape": shape,
        "shards": [{"file": name, "count": count, "shape": shape} for name, count in zip(names, counts, strict=True)],
        "class_names": [str(label) for label in range(1 + max(int(shard["labels"].max()) for shard in shards))],
        "statistics": {"source": "published", "mean": mean.tolist(), "std": std.tolist()},
    }


def _map_shards(folder: Path, names: Sequence[str]) -> list[dict[str, np.memmap]]:
    shards = [map_safetensors(folder / name) for name in names]
    for name, shard in zip(names, shards, strict=True):
        if not {"latents", "labels"} <= shard.keys() or not len(shard["labels"]) == len(shard["latents"]) > 0:
            raise InputError(
                f"{folder / name} is no shard of latents: it needs 'latents' and as many 'labels', but holds "
                f"{', '.join(list(shard)[:4]) or 'nothing'}. Give a folder with shards alone."
            )
        if shard["latents"].shape[1:] != shards[0]["latents"].shape[1:]:
            raise InputError(f"The shards in {folder} hold latents of different shapes. Extract them again.")
    return shards


def map_safetensors(path: Path) -> dict[str, np.memmap]:
    """Memory maps of all tensors of a safetensors file, from the offsets in its header; bf16 shows as uint16.

    Raises:
        InputError: if the file is missing, truncated or of another format.
    """
    broken = f"{path} is not a complete shard of latents. Extract the latents again, or restore the file."
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise InputError(broken)
            header = json.loads(file.read(length))
        maps = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            if 8 + length + end > size:
                raise InputError(broken)
            maps[name] = np.memmap(
                path, _NUMPY[entry["dtype"]], mode="r", offset=8 + length + begin, shape=tuple(entry["shape"])
            )
        return maps
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(broken) from error


def _as_tensor(gathered: np.ndarray) -> Tensor:
    """Rows that indexing a memory map has copied already, without another copy."""
    array = gathered.view(np.ndarray)
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
