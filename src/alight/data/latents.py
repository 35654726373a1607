"""A folder of latents: safetensors shards in the published layout and an index with statistics; read by memory map.

Raw latents are stored; reading normalises them per channel. `latent_shards.py` is about a single shard,
`latent_index.py` about the index, `latent_folder.py` about a folder that is being written.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from alight.data.latent_index import (
    INDEX,
    UNFINISHED,
    map_shards,
    merged_statistics,
    published_index,
    read_index,
    write_index,
)
from alight.data.latent_shards import LABELS, LATENTS, LOGVAR, MIRRORED, as_tensor
from alight.runtime.console import progress_bar
from alight.runtime.errors import InputError

__all__ = [
    "INDEX",
    "UNFINISHED",
    "LatentBatch",
    "LatentDataset",
    "merged_statistics",
    "published_index",
    "write_index",
]


class LatentBatch(NamedTuple):
    """Normalised latents (B, C, h, w) in float32, class labels (B,) and positions in the data set (B,), both int64."""

    latents: Tensor
    labels: Tensor
    indices: Tensor


class LatentDataset:
    """Latents of one folder, gathered by batch from memory maps and normalised per channel.

    Args:
        folder: with safetensors shards and an `index.json`, or as the published code wrote it, see `published_index`.

    Attributes:
        shape: (C, h, w) of one latent.
        labels: (N,) int64.
        class_names: by label.
        has_flips: True if mirrored latents are stored.
        has_features: True if features of a foundation model lie beside them; see `LatentFeatures`.
        has_moments: True if mean and log-variance are stored, of which every read can draw a new sample.
        mean, std: (C, 1, 1) in float32, for normalisation.

    Raises:
        InputError: if the index is damaged, or shards are missing, truncated, or not those of the index. The bytes of
            the latents are not verified; 'alight latents inspect' does that.
    """

    def __init__(self, folder: Path) -> None:
        path, index = folder / INDEX, read_index(folder)
        self.class_names = tuple(index["class_names"])
        statistics = index["statistics"]
        self.mean, self.std = (torch.tensor(statistics[key]).view(-1, 1, 1) for key in ("mean", "std"))
        if not (self.mean.isfinite().all() and self.std.isfinite().all() and (self.std > 0).all()):  # in float32
            raise InputError(f"The statistics in {path} are too large or too small for float32. Extract them again.")
        self._folder, self._entries = folder, index["shards"]
        self._maps = map_shards(folder, [entry["file"] for entry in self._entries])
        keys = {LATENTS, LABELS, *index["tensors"]}
        for entry, maps in zip(self._entries, self._maps, strict=True):
            expected = (entry["count"], *index["shape"])
            if not keys <= maps.keys() or maps[LATENTS].shape != expected:
                raise InputError(
                    f"{folder / entry['file']} is not the shard that {path} describes. Restore the files that belong "
                    "together, or extract the latents again."
                )
        self.shape = tuple(self._maps[0][LATENTS].shape[1:])
        self.has_flips, self.has_moments = MIRRORED in keys, LOGVAR[LATENTS] in keys
        self.has_features = "features" in index
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
        """Number of classes."""
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
            flips: (B,) bool, true for mirrored images; without effect if no mirrored latents are stored.
            generator: draws the noise of posterior samples if moments are stored; without it, the means are returned.
            noise: the noise itself, (B, C, h, w), for processes that share a batch.

        Raises:
            IndexError: a position is out of range.
        """
        indices = np.asarray(indices, np.int64)
        mirrored = np.zeros(len(indices), bool) if flips is None or not self.has_flips else np.asarray(flips)
        latents = self._rows(LATENTS, MIRRORED, indices, mirrored)
        if self.has_moments and (generator is not None or noise is not None):
            noise = torch.randn(latents.shape, generator=generator) if noise is None else noise
            logvar = self._rows(LOGVAR[LATENTS], LOGVAR[MIRRORED], indices, mirrored)
            latents.addcmul_(logvar.mul_(0.5).exp_(), noise)
        values = latents.numpy()  # on one thread: synchronising torch's threads would take longer than the work
        values -= self._wide_mean
        values /= self._wide_std
        return LatentBatch(latents, self.labels[indices], torch.from_numpy(indices))

    def check_bytes(self, payload_hash: str) -> None:
        """Read all shards from the disk and compare them with their checksums.

        Raises:
            InputError: a shard has changed since it was written, or the shards are not those of the manifest.
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
                f"The shards in {self._folder} are not those of its manifest. Restore the files that belong together, "
                "or extract the latents again."
            )

    def _rows(self, key: str, mirrored_key: str, indices: np.ndarray, mirrored: np.ndarray) -> Tensor:
        """Rows of one tensor or of its mirrored counterpart, in float32.

        Rows are tens of kilobytes, so a Python loop costs less than the copies, and each row is copied only once.
        """
        shards = np.searchsorted(self._ends, indices, side="right")
        rows = indices - self._ends[shards]  # counted from the end of the shard
        batch = np.empty((len(indices), *self.shape), self._maps[0][key].dtype)
        where = zip(shards.tolist(), rows.tolist(), mirrored.tolist(), strict=True)
        for place, (shard, row, flip) in enumerate(where):
            batch[place] = self._maps[shard][mirrored_key if flip else key][row]
        return as_tensor(batch).float()
