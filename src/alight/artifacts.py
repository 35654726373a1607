"""The on-disk artifacts of the arrow: folders that describe themselves and notice when a file of theirs has changed.

Every artifact holds an `alight.json` manifest: its kind, the configuration it was made with, the hashes of what it
was made from, its own hash, the hashes of its files, the versions in use and the time it took. The manifest is
written last, so a folder with a manifest is complete and one without is not an artifact. `outputs.py` writes them.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypedDict

from alight.config import as_before
from alight.config.commands import command_for
from alight.options import AUTO
from alight.runtime.checked_json import CHECKSUM, read_perhaps_checked, write_checked
from alight.runtime.console import progress_bar
from alight.runtime.errors import InputError
from alight.runtime.files import segmented_hash, write_text

MANIFEST = "alight.json"
PLURAL = ("latents", "samples")  # kinds of artifacts
STARTED = "started.json"  # names the kind of artifact that an unfinished folder is going to be
CONFIG_FILE, WEIGHTS_FILE = "config.json", "diffusion_pytorch_model.safetensors"  # of a model, as diffusers has it
PROJECTION_FILE, DISCRIMINATOR_FILE = "projection.safetensors", "discriminator.safetensors"  # beside a tokenizer
SAMPLES_RECORD, SAMPLES_GRID, SAMPLES_NPZ = "samples.json", "grid.png", "samples.npz"  # of samples
PIPELINE_INDEX = "model_index.json"  # of a pipeline, likewise
PIPELINE_OF_A_RUN = "pipeline"  # the folder of it in that of a whole run
FORMAT = 2
_FORMAT_WITHOUT_HASHES = 1  # version 0.1
TO_BE_EDITED = ("README.md",)  # people may rewrite the card of a model that they share
_SAME_RESULT = (  # where results go, what makes them, and how it is watched
    *("output", "device", "training.sharding", "training.tensorboard", "training.wandb_project"),
    *("samples_every", "sample_images", "samples_tokenizer", "preview_every", "preview_images"),
)
_LIBRARIES = ("alight", "torch", "diffusers", "transformers", "numpy", "scikit-learn", "pillow", "safetensors")
_verified: dict[str, tuple[tuple[int, ...], str]] = {}  # path -> identity of a file, and its hash, in this process


class Facts(TypedDict, total=False):
    """Fields of a manifest that later stages and reports use; any of them may be missing, and others may be there."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    average: dict[str, Any]
    class_names: list[str] | None
    converted_from: str
    converted_from_sha256: str
    count: int
    description: str
    foundation: str | None
    image_size: int
    images: str
    label_protocol: str
    latents_mean: list[float]
    latents_std: list[float]
    nfe: float | int
    parameters: int
    path: str
    prediction: str
    same_latents_as: list[str]
    size: list[int]
    source: str
    spaces: list[str]
    steps: int
    task: str


class _Manifest(BaseModel, strict=True, extra="ignore"):
    """The fields of a manifest, for checking; `Artifact` says what they mean."""

    format: int
    kind: str
    hash: str
    config: dict[str, Any]
    inputs: dict[str, str] = {}
    facts: Facts = {}
    files: dict[str, list[str]] = {}
    seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    versions: dict[str, str] = {}
    created: str = ""


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk and what its manifest says.

    Attributes:
        path: the folder.
        kind: foundation, tokenizer, latents, transformer, samples, report, reference or pipeline.
        config: the resolved configuration that made it.
        hash: identity of its payload (weights, or shards); what later stages record as their input.
        inputs: kind -> hash of the artifacts that it was made from.
        facts: what a later stage or the report needs to know, such as class names or step counts.
        files: name of every file -> its hashes, see `runtime.files.segmented_hash`; two while one file is replaced.
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
    files: dict[str, list[str]] = field(default_factory=dict)
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
            were, they = ("were", "they were") if self.kind in PLURAL else ("was", "it was")
            another, one, this = (
                ("other", "those", "these") if other.kind in PLURAL else ("another", "the one", "this one")
            )
            raise InputError(
                f"The {self.kind} in {self.path} {were} made with {another} {other.kind} ({expected[:12]}) than {one} "
                f"in {other.path} ({other.hash[:12]}). Give the {other.kind} that {they} made with, or make the "
                f"{self.kind} again from {this}."
            )


def a_kind(kind: str) -> str:
    """A kind with its article, for sentences."""
    return kind if kind in PLURAL else f"a {kind}"


def sample_path(folder: Path, number: int) -> Path:
    """The image of a number in a samples artifact."""
    return folder / "images" / f"{number:06d}.png"


# --- opening ------------------------------------------------------------------------------------------------------


def is_complete(folder: Path) -> bool:
    """Tell if the folder holds a finished artifact."""
    return (folder / MANIFEST).is_file()


def read_artifact(folder: Path, kind: str, verify: bool = True) -> Artifact:
    """Open a finished artifact, after comparing all its files with their hashes.

    A file is hashed once per process, unless it changes; of several processes on one machine, the first does it.

    Args:
        folder: of the artifact.
        kind: that it must have.
        verify: False = read the manifest alone.

    Raises:
        InputError: the folder is missing, unfinished or of another kind, or a file is missing or has changed.
    """
    make = command_for(kind)
    if not folder.is_dir():
        raise InputError(f"There is no {kind} folder {folder}. Check the path, or make one with 'alight {make}'.")
    if not is_complete(folder):
        raise InputError(
            f"{folder} is not a finished {kind}: it has no {MANIFEST}. If its run was interrupted, start "
            f"'alight {make}' with the same --output again. Published files come in by 'alight convert'."
        )
    artifact = read_manifest(folder)
    if artifact.kind != kind:
        raise InputError(
            f"{folder} holds {a_kind(artifact.kind)}, not {a_kind(kind)}. Check which folder you meant to give."
        )
    if verify:
        verify_files(artifact)
    return artifact


def read_manifest(folder: Path) -> Artifact:
    """Read the manifest of a folder of any kind; its files are not looked at.

    Raises:
        InputError: it cannot be read, does not match its checksum, or has fields of wrong types.
    """
    path = folder / MANIFEST
    values, checked = read_perhaps_checked(path)
    try:
        artifact = Artifact(path=folder, **dict(_Manifest.model_validate(values)))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(f"{path} cannot be read ({reason}). Restore it, or make {folder} again.") from error
    if artifact.format > FORMAT:
        raise InputError(f"{folder} was written by a newer alight (format {artifact.format}). Upgrade alight.")
    if artifact.format > _FORMAT_WITHOUT_HASHES and not checked:
        raise InputError(f"{path} holds no {CHECKSUM}, so it is not what was written. Restore it, or make it again.")
    return artifact


def verify_files(artifact: Artifact) -> None:
    """Compare the files of an artifact with the hashes in its manifest.

    Raises:
        InputError: a file is missing, cannot be read, or has changed.
    """
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:  # the first process of the machine does it for all
        return
    for name in progress_bar(artifact.files, desc=f"verify {artifact.path.name}", unit="file", delay=2):
        path = artifact.path / _plain(name, artifact.path)
        try:
            found = _hash_once(path)
        except FileNotFoundError:
            raise InputError(
                f"{artifact.path} is not whole: {name} is missing. Restore it, or make the {artifact.kind} again."
            ) from None
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}). Check the file and the disk.") from error
        if found not in artifact.files[name]:
            raise InputError(
                f"{path} is not what was written: it was damaged, or changed by hand. Restore it, or make the "
                f"{artifact.kind} again."
            )


def verify_folder(folder: Path) -> None:
    """Verify a folder that may be an artifact; folders of others have no manifest and pass.

    Raises:
        InputError: it is an artifact, and a file of it is missing or has changed.
    """
    if is_complete(folder):
        verify_files(read_manifest(folder))


def find_pipeline(folder: Path) -> Path:
    """The folder of a pipeline: the one that is given, or the one in the folder of a whole run.

    Raises:
        InputError: there is none, or it is not finished.
    """
    for place in (folder, folder / PIPELINE_OF_A_RUN):
        if (place / STARTED).is_file():
            raise InputError(f"The pipeline in {place} is not finished. Run the command that began it again.")
        if (place / PIPELINE_INDEX).is_file():
            return place
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Check the path, or make a pipeline with 'alight quickstart'.")
    raise InputError(
        f"{folder} holds no pipeline: there is no {PIPELINE_INDEX} in it, nor in {folder / PIPELINE_OF_A_RUN}. Give "
        "the folder of a quickstart, or one that LightningDiTPipeline.save_pretrained wrote; LightningDiTPipeline."
        "from_artifacts joins a transformer with its tokenizer."
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys in which two configurations differ, as 'key: old -> new', as far as they matter to results."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after, name = old.get(key), new.get(key), f"{prefix}{key}"
        if (
            name in _SAME_RESULT
            or key == "compile"  # changes no more than the device does
            or (key == "precision" and AUTO in (before, after))  # of a study, which leaves it to its runs
            or f".{name}".endswith(".images.upscale")  # images that pass without it are the same with it
            or (key not in new and as_before(name, before))
            or (key not in old and as_before(name, after))
        ):
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{name}.")
        elif before != after:
            found.append(f"{name}: {before} -> {after}")
    return found


# --- writing ------------------------------------------------------------------------------------------------------


def write_manifest(
    staging: Path,
    kind: str,
    config: Mapping[str, Any],
    payload_hash: str,
    inputs: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    seconds: float = 0.0,
    beside: Iterable[Path] = (),
) -> None:
    """Write the manifest of an artifact into its staging folder, with the hashes of all files there.

    Args:
        staging: the folder that holds the files.
        kind: as the other values, see `Artifact`.
        config: the resolved configuration.
        payload_hash: the artifact's own hash.
        inputs: kind -> hash of what it was made from.
        facts: for later stages and reports.
        seconds: that it took.
        beside: files that lie in the artifact's own folder, the parent of `staging`, already.
    """
    written = {str(PurePosixPath(path.relative_to(staging))): path for path in staging.rglob("*") if path.is_file()}
    written |= {str(PurePosixPath(path.relative_to(staging.parent))): path for path in beside}
    hashed = sorted(set(written) - {MANIFEST, *TO_BE_EDITED})
    values = {
        "format": FORMAT,
        "kind": kind,
        "hash": payload_hash,
        "inputs": dict(inputs or {}),
        "facts": dict(facts or {}),
        "config": dict(config),
        "files": {name: [_hash_once(written[name])] for name in hashed},
        "seconds": round(seconds, 3),
        "versions": library_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_checked(staging / MANIFEST, values)


def replace_file(folder: Path, name: str, text: str) -> None:
    """Replace a small text file of a folder; the manifest, if there is one, follows.

    In between the manifest accepts both contents, so a process that is killed leaves a folder that opens.

    Raises:
        InputError: the disk refuses; the earlier file stays.
    """
    if not is_complete(folder):
        write_text(folder / name, text)
        return
    values, _ = read_perhaps_checked(folder / MANIFEST)
    files = values.get("files", {})
    new = sha256(text.encode()).hexdigest()
    if files:
        write_checked(folder / MANIFEST, values | {"files": files | {name: [*files.get(name, [])[-1:], new]}})
    write_text(folder / name, text)
    if files:
        write_checked(folder / MANIFEST, values | {"files": files | {name: [new]}})


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries whose numerics matter."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


# --- hashes of files ----------------------------------------------------------------------------------------------


def _hash_once(path: Path) -> str:
    """The hash of a file, computed again only after its size, time or place on the disk has changed."""
    status = path.stat()
    identity = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    key = str(path.resolve())
    known = _verified.get(key)
    if known is None or known[0] != identity:
        known = _verified[key] = identity, segmented_hash(path)
    return known[1]


def _plain(name: str, folder: Path) -> str:
    """Refuse names that lead out of the folder."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or "\0" in name:
        raise InputError(f"The manifest of {folder} names a file outside of it ({name!r}). Make the folder again.")
    return name
