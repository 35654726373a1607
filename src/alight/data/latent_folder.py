"""Resumable writing of latents, shard by shard.

Every shard is written atomically. A record in `unfinished/` holds its checksum and its share of the statistics, so a
killed run resumes with the missing shards, in any number of processes.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, with_config
from torch import Tensor
from typing_extensions import TypedDict

from alight.artifacts import differences
from alight.data.latent_features import FEATURES, FEATURES_FOLDER, MIRRORED_FEATURES, features_name, write_features
from alight.data.latent_shards import shard_name, write_shard
from alight.data.latents import UNFINISHED
from alight.runtime.checked_json import read_checked, write_checked
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.files import explained_disk_errors, file_hash
from alight.runtime.reading import Schema, check_values

_RUN = "run.json"
_SAME_RESULT = ("workers",)  # settings of images that do not change the latents


@with_config(ConfigDict(strict=True, allow_inf_nan=False, extra="allow"))
class _Run(TypedDict):
    """The settings of an unfinished extraction, and its time so far."""

    config: dict[str, Any]
    seconds: int | float


@with_config(ConfigDict(strict=True, allow_inf_nan=False, extra="allow"))
class _Sums(TypedDict):
    count: int
    mean: list[float]
    squares: list[float]


@with_config(ConfigDict(strict=True, allow_inf_nan=False, extra="allow"))
class _Record(TypedDict):
    """The record of a shard from `write_shard`."""

    file: str
    count: int
    shape: list[int]
    dtype: str
    tensors: list[str]
    sha256: str
    statistics: _Sums
    features: NotRequired[dict[str, Any]]  # the record of the features of these images, from `write_features`


class LatentFolder:
    """The folder of one extraction: `latents_00000.safetensors`, ..., and `unfinished/` until it is finished.

    Args:
        path: the folder of the latents artifact.
        count: images of the whole run; image i is row i % `shard_size` of shard i // `shard_size`.
        shard_size: images per shard; the last one may be smaller.
        features: what features, which are stored beside the latents, are of; None = there are none.
    """

    def __init__(self, path: Path, count: int, shard_size: int, features: Mapping[str, Any] | None = None) -> None:
        self.path, self.count, self.shard_size, self.features = path, count, shard_size, features
        self._unfinished = path / UNFINISHED

    @property
    def num_shards(self) -> int:
        """Number of shards of the finished run."""
        return -(-self.count // self.shard_size)

    def images(self, number: int) -> range:
        """The images of shard `number`."""
        return range(number * self.shard_size, min((number + 1) * self.shard_size, self.count))

    def start(self, config: Mapping[str, Any], inputs: Mapping[str, str]) -> float:
        """Start or resume a run in the folder, and return the seconds that it has taken before.

        Raises:
            InputError: the folder holds shards of another run.
        """
        images = {key: value for key, value in config["images"].items() if key not in _SAME_RESULT}
        short = {kind: digest[:12] for kind, digest in inputs.items()}
        self._claim = {"config": {**config, "images": images, "inputs": short, "count": self.count}}
        run = _read(self._unfinished / _RUN, _Run) if (self._unfinished / _RUN).exists() else None
        finished = any(self._unfinished.glob("latents_*.json"))
        if run is None and (finished or any(self.path.glob("*.safetensors"))):
            raise InputError(
                f"{self.path} holds latents that are not of an unfinished 'alight latents extract'. Choose another "
                "--output, or delete that folder."
            )
        changed = differences(run["config"], self._claim["config"]) if run is not None and finished else []
        if changed:
            raise InputError(
                f"{self.path} holds unfinished latents of another configuration, other images or another tokenizer "
                f"({'; '.join(changed[:4])}). Choose another --output, undo the changes, or delete that folder to "
                "start again."
            )
        with explained_disk_errors(self.path):
            self._unfinished.mkdir(parents=True, exist_ok=True)
            for leftover in [
                *self.path.glob("latents_*.safetensors"),
                *self.path.glob(".latents_*.writing"),
                *self.path.glob(".tmp*"),
            ]:
                if not (self._unfinished / f"{leftover.stem}.json").exists():
                    leftover.unlink()  # a process was killed between shard and record, or within the shard
            if not finished or self.features is None:
                shutil.rmtree(self.path / FEATURES_FOLDER, ignore_errors=True)  # likewise
            if self.features is not None:
                (self.path / FEATURES_FOLDER).mkdir(exist_ok=True)
        seconds = float(run["seconds"]) if run is not None and finished else 0.0
        self.record_time(seconds)
        return seconds

    def record_time(self, seconds: float) -> None:
        """Record the time of the run so far; to be called after `start`."""
        with explained_disk_errors(self.path):
            write_checked(self._unfinished / _RUN, self._claim | {"seconds": round(seconds, 3)})

    def holds(self, number: int) -> bool:
        """Tell if shard `number` exists and is intact."""
        path, beside = self.path / shard_name(number), self.path / FEATURES_FOLDER / features_name(number)
        if not self._record_path(number).exists():
            return False
        try:
            record = _read(self._record_path(number), _Record)
            intact = record["sha256"] == file_hash(path)
            if self.features is not None:
                intact = intact and record.get("features", {}).get("sha256") == file_hash(beside)
        except (InputError, OSError):
            intact = False
        if not intact:
            log.warning("latents: %s is damaged and will be extracted again.", path)
        return bool(intact)

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Store shard `number`, the features among its tensors in a file of their own, then its record.

        Raises:
            InputError: latents or features are not finite, or the disk refuses; other shards are kept.
        """
        features = {name: tensors[name] for name in (FEATURES, MIRRORED_FEATURES) if name in tensors}
        latents = {name: values for name, values in tensors.items() if name not in features}
        record = write_shard(self.path / shard_name(number), latents)
        if self.features is not None:
            path = self.path / FEATURES_FOLDER / features_name(number)
            record["features"] = write_features(path, features, self.features)
        with explained_disk_errors(self.path):
            write_checked(self._record_path(number), record)

    def records(self) -> list[dict[str, Any]]:
        """The records from `write_shard` of all shards, in order."""
        return [dict(_read(self._record_path(number), _Record)) for number in range(self.num_shards)]

    def finish(self) -> None:
        """Delete the records of the unfinished run, after its manifest was written."""
        shutil.rmtree(self._unfinished, ignore_errors=True)

    def _record_path(self, number: int) -> Path:
        return self._unfinished / Path(shard_name(number)).with_suffix(".json")


def _read(path: Path, schema: type[Schema]) -> Schema:
    remedy = "Delete the folder of the latents, and extract them again."
    return check_values(read_checked(path), schema, str(path), remedy)
