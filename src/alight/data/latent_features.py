"""Features of a vision foundation model beside latents: shards in the folder `features/`, read by memory map.

They are targets for the tokens of a transformer. Each shard has the images of the shard of latents with its number,
and says in its metadata of which model and crops it is. The manifest does not list these shards, so that training
without them reads none of their bytes; their checksums are in the index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from alight.artifacts import Artifact
from alight.data.latent_index import INDEX, FeaturesEntry, ShardEntry, read_index
from alight.data.latent_shards import as_tensor, map_tensors, write_tensors
from alight.runtime.console import progress_bar
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash
from alight.runtime.reading import check_values

FEATURES, MIRRORED_FEATURES = "features", "features_flip"
FEATURES_FOLDER = "features"
_MADE_FROM = "made_from"  # key of a shard's metadata
_CROP_SETTINGS = ("size", "crop", "background")  # of images, which decide on the pixels of a square
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def features_name(number: int) -> str:
    """The file of the features of shard `number`, from 0."""
    return f"features_{number:05d}.safetensors"


def crop_rule(images: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """Everything that decides on the squares that features are of.

    Args:
        images: the configuration of the images, as plain data.
        fingerprint: of the images themselves.
    """
    return {name: images.get(name) for name in _CROP_SETTINGS} | {"images": fingerprint}


def stored_size(count: int, shape: Sequence[int], dtype: str, mirrored: bool) -> int:
    """Bytes on disk of the features (or latents) of so many images, and of as many mirrored ones."""
    return count * (2 if mirrored else 1) * int(np.prod(shape)) * _BYTES[dtype]


def write_features(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> dict[str, Any]:
    """Write a shard of features atomically and durably.

    Args:
        path: its file, in a folder that is there.
        tensors: FEATURES, and MIRRORED_FEATURES of the mirrored images, (n, D, h, w).
        description: of the model and the crops, which the shard carries.

    Returns:
        Its record: file, count, shape, dtype and checksum.

    Raises:
        InputError: features are not finite, or the disk refuses.
    """
    if not all(values.isfinite().all() for values in tensors.values()):
        raise InputError(
            f"Some features of {path.name} are not finite, so the shard was not written. Store features as fp32 or "
            "bf16; if that does not help, the foundation model itself is of no use."
        )
    digest, _ = write_tensors(path, tensors, lambda _: None, _metadata(description))
    first = tensors[FEATURES]
    record = {"file": path.name, "count": len(first), "sha256": digest}
    return record | {"shape": list(first.shape[1:]), "dtype": str(first.dtype).removeprefix("torch.")}


def features_entry(description: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> FeaturesEntry:
    """The entry of the index for features.

    Args:
        description: of the model and the crops, as given to `write_features`.
        records: of all shards, in order.
    """
    shards = [{key: record[key] for key in ("file", "count", "sha256")} for record in records]
    entry = {**description, "shards": shards, **{key: records[0][key] for key in ("shape", "dtype")}}
    return check_values(entry, FeaturesEntry, "the description of the features", "")


class LatentFeatures:
    """The features beside a folder of latents, gathered by batch.

    Args:
        latents: the artifact, whose crops these must be.
        foundation: name of the model that they must be of; None = any.
        foundation_hash: of its weights, if it lies in a folder.

    Attributes:
        shape: (D, h, w) of one image.
        foundation: name of the model.
        identity: a hash of all features.

    Raises:
        InputError: there are none, or they are of another model, of other crops, or not those of the index.
    """

    def __init__(self, latents: Artifact, foundation: str | None = None, foundation_hash: str | None = None) -> None:
        index = read_index(latents.path)
        if "features" not in index:
            raise InputError(
                f"The latents in {latents.path} hold no features of a foundation model, which the alignment of tokens "
                "needs. Extract them with 'alight latents extract --features.foundation dinov2-base', for example, or "
                "set representation.weight to 0."
            )
        entry = index["features"]
        require_foundation(entry, latents.path, foundation, foundation_hash)
        _require_crops(entry, latents)
        counts = [shard["count"] for shard in index["shards"]]
        if [shard["count"] for shard in entry["shards"]] != counts or entry["mirrored"] != _mirrored(index["tensors"]):
            raise InputError(
                f"{latents.path / INDEX} contradicts itself: its features are not of the images of its latents. "
                "Extract the latents again."
            )
        self._folder, self._entry = latents.path / FEATURES_FOLDER, entry
        self.shape, self.foundation = tuple(entry["shape"]), entry["foundation"]
        self._maps = [self._map(shard) for shard in entry["shards"]]
        self._ends = np.cumsum(counts)

    @property
    def identity(self) -> str:
        """A hash of all features."""
        return sha256("".join(shard.get("sha256", "") for shard in self._entry["shards"]).encode()).hexdigest()

    def gather(self, indices: Sequence[int] | np.ndarray, flips: np.ndarray | None = None) -> Tensor:
        """Features (B, D, h, w) at the given positions, in the type that is stored.

        Args:
            indices: (B,) positions in the data set of latents.
            flips: (B,) bool, true for mirrored images; without effect if there are no mirrored latents.
        """
        indices = np.asarray(indices, np.int64)
        mirrored = np.zeros(len(indices), bool) if flips is None or not self._entry["mirrored"] else np.asarray(flips)
        shards = np.searchsorted(self._ends, indices, side="right")
        rows = indices - self._ends[shards]  # counted from the end of the shard
        batch = np.empty((len(indices), *self.shape), self._maps[0][FEATURES].dtype)
        for place, (shard, row, flip) in enumerate(zip(shards, rows, mirrored, strict=True)):
            batch[place] = self._maps[shard][MIRRORED_FEATURES if flip else FEATURES][row]
        return as_tensor(batch)

    def check_bytes(self) -> None:
        """Read all features from the disk and compare them with their checksums.

        Raises:
            InputError: a shard has changed since it was written.
        """
        for shard in progress_bar(self._entry["shards"], desc="features", unit="shard", delay=2):
            path = self._folder / shard["file"]
            if file_hash(path) != shard.get("sha256"):
                raise InputError(
                    f"{path} is damaged: it is not what was written. Restore the file, or extract the latents again."
                )

    def _map(self, shard: ShardEntry) -> dict[str, np.ndarray]:
        """Memory maps of a shard, if it is the one that the index describes."""
        path = self._folder / shard["file"]
        maps, metadata = map_tensors(path)
        if metadata != _metadata(self._entry):
            raise InputError(
                f"{path} holds features from other crops or by another foundation model than the latents in "
                f"{self._folder.parent} say ({self._entry['foundation']}). Restore the files that belong together, or "
                "extract the latents again."
            )
        names = {FEATURES, MIRRORED_FEATURES} if self._entry["mirrored"] else {FEATURES}
        expected = (shard["count"], *self.shape)
        kinds = {values.dtype for values in maps.values()}
        if maps.keys() != names or {values.shape for values in maps.values()} != {expected} or len(kinds) > 1:
            raise InputError(
                f"{path} is not the shard that {self._folder.parent / INDEX} describes. Restore the files that belong "
                "together, or extract the latents again."
            )
        return maps


def require_foundation(
    entry: FeaturesEntry, folder: Path, foundation: str | None, foundation_hash: str | None = None
) -> None:
    """Refuse features of another foundation model than the one that is wanted.

    Models in folders are compared by their weights, others by their names.

    Raises:
        InputError: names both.
    """
    if foundation is None:
        return
    same = (
        entry["foundation"] == foundation if foundation_hash is None else entry["foundation_hash"] == foundation_hash
    )
    if not same:
        raise InputError(
            f"The latents in {folder} hold features of the foundation model {entry['foundation']} "
            f"({entry['foundation_hash'][:12]}), not of {foundation}"
            f"{'' if foundation_hash is None else f' ({foundation_hash[:12]})'}. Leave out representation.foundation, "
            f"or extract the latents again with --features.foundation {foundation}."
        )


def _require_crops(entry: FeaturesEntry, latents: Artifact) -> None:
    """Refuse features of other squares than those that the latents were made from."""
    expected = crop_rule(latents.config.get("images", {}), latents.facts.get("images", ""))
    if entry["crop"] != expected:
        differing = [name for name in expected if entry["crop"].get(name) != expected[name]]
        raise InputError(
            f"The features in {latents.path} are of other crops or images than its latents (they differ in "
            f"{', '.join(differing)}). Restore the files that belong together, or extract the latents again."
        )


def _mirrored(tensors: Sequence[str]) -> bool:
    return "latents_flip" in tensors


def _metadata(description: Mapping[str, Any]) -> dict[str, str]:
    """The part of a description that every shard carries, under one key: safetensors keeps no order of several."""
    names = ("foundation", "foundation_hash", "foundation_input", "crop")
    return {_MADE_FROM: json.dumps({name: description[name] for name in names}, sort_keys=True)}
