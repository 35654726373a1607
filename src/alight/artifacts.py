"""The on-disk artifacts of the arrow: folders that describe themselves, written whole or not at all.

Every artifact holds an `alight.json` manifest: its kind, the configuration it was made with, the hashes of what it
was made from, its own hash, the versions in use and the time it took. The manifest is written last, by rename, so
a folder with a manifest is complete and one without is not an artifact.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from alight.runtime.errors import InputError
from alight.runtime.files import disk_reason, explained_disk_errors, sync_folder, write_text

MANIFEST = "alight.json"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "diffusion_pytorch_model.safetensors"  # of a model, as diffusers has it
PIPELINE_INDEX = "model_index.json"  # of a pipeline, likewise
PIPELINE_OF_A_RUN = "pipeline"  # the folder of it in that of a whole run
FORMAT = 1
_PARTIAL = ".partial"
_SAME_RESULT = (  # where results go, what makes them, and how it is watched
    *("output", "device", "training.tensorboard", "training.wandb_project"),
    *("samples_every", "sample_images", "samples_tokenizer"),
)
_COMMANDS = {  # that make an artifact, where its name does not say it
    "samples": "sample",
    "report": "evaluate",
    "latents": "latents extract",
    "reference": "evaluate reference",
    "pipeline": "export",
}
_LIBRARIES = ("alight", "torch", "diffusers", "transformers", "numpy", "scikit-learn", "pillow", "safetensors")


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk and what its manifest says.

    Attributes:
        path: the folder.
        kind: foundation, tokenizer, latents, transformer, samples, report or pipeline.
        config: the resolved configuration that made it.
        hash: identity of its payload (weights, or shards); what later stages record as their input.
        inputs: kind -> hash of the artifacts that it was made from.
        facts: what a later stage or the report needs to know, such as class names or step counts.
        seconds: how long it took to make, over all its interruptions.
        versions: of the libraries in use.
        created: UTC time in ISO format.
    """

    path: Path
    kind: str
    config: dict[str, Any]
    hash: str
    inputs: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    format: int = FORMAT

    def as_data(self) -> dict[str, Any]:
        """For programs: what it is, where, and what it says of itself."""
        return {
            "kind": self.kind,
            "path": str(self.path),
            "hash": self.hash,
            "inputs": self.inputs,
            "facts": self.facts,
            "seconds": self.seconds,
        }

    def require_input(self, other: Artifact) -> None:
        """Refuse to combine this artifact with another one than it was made from.

        A tokenizer of which only the decoder was trained on gives the latents of the one before, and is as good.

        Raises:
            InputError: names both folders and both hashes.
        """
        expected = self.inputs.get(other.kind)
        if expected and expected not in (other.hash, *other.facts.get("same_latents_as", ())):
            raise InputError(
                f"The {self.kind} in {self.path} was made with another {other.kind} ({expected[:12]}) than the one in "
                f"{other.path} ({other.hash[:12]}). Give the {other.kind} that it was made with, or make the "
                f"{self.kind} again from this one."
            )


def is_complete(folder: Path) -> bool:
    """Whether the folder holds a finished artifact."""
    return (folder / MANIFEST).is_file()


def read_artifact(folder: Path, kind: str) -> Artifact:
    """Open a finished artifact.

    Raises:
        InputError: if the folder is missing, unfinished, of another kind or has an unreadable manifest.
    """
    make = _COMMANDS.get(kind, f"{kind} train")
    if not folder.is_dir():
        raise InputError(f"There is no {kind} folder {folder}. Check the path, or make one with 'alight {make}'.")
    if not is_complete(folder):
        raise InputError(
            f"{folder} is not a finished {kind}: it has no {MANIFEST}. If its run was interrupted, start "
            f"'alight {make}' with the same --output again. Published files come in by 'alight convert'."
        )
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        known = {item.name for item in dataclasses.fields(Artifact)} - {"path"}
        artifact = Artifact(path=folder, **{key: value for key, value in values.items() if key in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / MANIFEST} cannot be read ({error}). Make the {kind} again.") from error
    if artifact.format > FORMAT:
        raise InputError(f"{folder} was written by a newer alight (format {artifact.format}). Upgrade alight.")
    if artifact.kind != kind:
        raise InputError(f"{folder} holds a {artifact.kind}, not a {kind}. Check which folder you meant to give.")
    return artifact


def find_pipeline(folder: Path) -> Path:
    """The folder of a pipeline: the one that is given, or the one in the folder of a whole run.

    Raises:
        InputError: there is none.
    """
    for place in (folder, folder / PIPELINE_OF_A_RUN):
        if (place / PIPELINE_INDEX).is_file():
            return place
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Check the path, or make a pipeline with 'alight quickstart'.")
    raise InputError(
        f"{folder} holds no pipeline: there is no {PIPELINE_INDEX} in it, nor in {folder / PIPELINE_OF_A_RUN}. Give "
        "the folder of a quickstart, or one that LightningDiTPipeline.save_pretrained wrote; LightningDiTPipeline."
        "from_artifacts joins a transformer with its tokenizer."
    )


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """A staging folder whose content moves into `folder` when the block ends well, and vanishes when it does not.

    Raises:
        InputError: if the disk is full or the folder cannot be written.
    """
    staging = folder / _PARTIAL
    existed = folder.exists()
    try:
        with explained_disk_errors(folder):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            yield staging
            for item in sorted(staging.iterdir(), key=lambda path: path.name == MANIFEST):
                target = folder / item.name
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(item, target)
            sync_folder(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def write_manifest(
    staging: Path,
    kind: str,
    config: Mapping[str, Any],
    payload_hash: str,
    inputs: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
) -> None:
    """Write the manifest of an artifact into its staging folder."""
    values = {
        "format": FORMAT,
        "kind": kind,
        "hash": payload_hash,
        "inputs": dict(inputs or {}),
        "facts": dict(facts or {}),
        "config": dict(config),
        "seconds": round(seconds, 3),
        "versions": library_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_text(staging / MANIFEST, json.dumps(values, indent=2, allow_nan=False) + "\n")


def check_output(folder: Path, config: Mapping[str, Any], kind: str) -> None:
    """Find out before any work starts whether results can be written, and whether they would mix with others.

    Raises:
        InputError: if the folder cannot be written, or holds an artifact of another kind or configuration.
    """
    if is_complete(folder):
        difference = differences(read_artifact(folder, kind).config, config)
        if difference:
            raise InputError(
                f"{folder} already holds a {kind} made with another configuration ({'; '.join(difference[:4])}"
                f"{'; ...' if len(difference) > 4 else ''}). Choose another --output, or delete that folder."
            )
    existed = folder.exists()
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * 4096)
    except OSError as error:
        reason = disk_reason(error) or f"{error.strerror}; choose another --output"
        raise InputError(f"Cannot write to {folder}: {reason}.") from error
    finally:
        if folder.is_dir():
            probe.unlink(missing_ok=True)
            if not existed and not any(folder.iterdir()):
                folder.rmdir()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys in which two configurations differ, as 'key: old -> new', as far as they matter to results."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after, name = old.get(key), new.get(key), f"{prefix}{key}"
        if name in _SAME_RESULT:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{name}.")
        elif before != after:
            found.append(f"{name}: {before} -> {after}")
    return found


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries whose numerics matter."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
