"""Folders: artifacts, finished or not, runs, models and pipelines of diffusers, and any other folder."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from alight.artifacts import CONFIG_FILE, MANIFEST, PIPELINE_INDEX, Artifact, is_complete, read_artifact
from alight.data.image_store import IMAGE_EXTENSIONS
from alight.data.sample_folder import UNFINISHED
from alight.runtime.errors import InputError
from alight.runtime.reading import read_json_object
from alight.runtime.units import duration, size_text
from alight.show.description import Description
from alight.show.files import weights_details

TRAINING = "training"
COUNTED_FILES, SHOWN_TYPES = 1_000_000, 20  # of a folder without records
ARROW = ("foundation", "tokenizer", "latents", "transformer", "pipeline", "samples", "reference", "report")


def describe_folder(folder: Path) -> Description:
    """Describe a folder as the first that fits: artifact, unfinished artifact, pipeline, model, run, any folder.

    Raises:
        InputError: its records cannot be read.
    """
    if is_complete(folder):
        return _artifact(folder)
    if checkpoints := _checkpoints(folder):
        step, path = checkpoints[-1]
        details = {"last checkpoint": path.name, "steps done": step, "to go on": "run the same command again"}
        return Description(folder, "an unfinished training run", details)
    if (folder / ".metadata").is_file() and (folder / "progress.pt").is_file():
        return _sharded_checkpoint(folder)
    if (folder / UNFINISHED).is_file():
        return _unfinished_samples(folder)
    if (folder / PIPELINE_INDEX).is_file():
        return _pipeline(folder)
    if (folder / CONFIG_FILE).is_file():
        config = read_json(folder / CONFIG_FILE)
        kind = config.pop("_class_name", None) or config.get("model_type", "model")
        return Description(folder, f"a model ({kind})", weights_of(folder) | {"configuration": config})
    artifacts = [read_artifact(path, _kind(path)) for path in sorted(folder.iterdir()) if is_complete(path)]
    if artifacts:
        artifacts.sort(key=lambda artifact: (str(artifact.created), _place(artifact.kind)))
        return Description(folder, "a run", {artifact.path.name: _in_short(artifact) for artifact in artifacts})
    return _anything(folder)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    Raises:
        InputError: it does not.
    """
    return read_json_object(path, "Restore the file.")


def weights_of(folder: Path) -> dict[str, Any]:
    """The weights files in a folder, by name."""
    return {path.name: weights_details(path) for path in sorted(folder.glob("*.safetensors"))}


def _place(kind: str) -> int:
    """Order of a kind of artifact in a run; several can be finished within one second."""
    return ARROW.index(kind) if kind in ARROW else len(ARROW)


def _kind(folder: Path) -> str:
    return str(read_json(folder / MANIFEST).get("kind"))


def _artifact(folder: Path) -> Description:
    artifact = read_artifact(folder, _kind(folder))
    details: dict[str, Any] = {
        "hash": artifact.hash,
        "made": artifact.created,
        "time": duration(artifact.seconds),
        "made from": artifact.inputs,
        "facts": artifact.facts,
        "files": {path.name: size_text(path.stat().st_size) for path in sorted(folder.iterdir()) if path.is_file()},
    }
    if checkpoints := _checkpoints(folder):
        from alight.training.checkpoint import checkpoint_size  # needs torch, which is slow to import

        details["checkpoints"] = {path.name: size_text(checkpoint_size(path)) for _, path in checkpoints}
    details |= {"configuration": artifact.config, "versions": artifact.versions}
    return Description(folder, f"a {artifact.kind} artifact", {key: value for key, value in details.items() if value})


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    if not (folder / TRAINING).is_dir():
        return []
    from alight.training.checkpoint import list_checkpoints  # needs torch, which is slow to import

    return list_checkpoints(folder / TRAINING)


def _sharded_checkpoint(folder: Path) -> Description:
    from alight.training.checkpoint import checkpoint_size, read_outline  # likewise

    content, shapes = read_outline(folder)
    tensors = Counter(str(path[0]) for path in shapes)
    details: dict[str, Any] = {
        "size": size_text(checkpoint_size(folder)),
        "step": content.get("step"),
        "time": duration(content.get("seconds", 0.0)),
        "tensors": dict(tensors),
        "files": {path.name: size_text(path.stat().st_size) for path in sorted(folder.iterdir()) if path.is_file()},
        "configuration": content.get("config", {}),
    }
    return Description(folder, "a checkpoint of a sharded training run of alight", details)


def _in_short(artifact: Artifact) -> dict[str, Any]:
    brief: dict[str, Any] = {
        key: artifact.facts[key] for key in ("steps", "count", "parameters", "nfe") if key in artifact.facts
    }
    return {"kind": artifact.kind, "hash": artifact.hash[:12], "time": duration(artifact.seconds), **brief}


def _unfinished_samples(folder: Path) -> Description:
    state = read_json(folder / UNFINISHED)
    seconds = state.get("seconds", 0.0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:
        raise InputError(f"{folder / UNFINISHED} has seconds {seconds!r:.100}, which is not a time. Restore the file.")
    details = {
        "images so far": sum(1 for _ in (folder / "images").glob("*.png")),
        "time so far": duration(float(seconds)),
        "to go on": "run the same command again",
        "made from": state.get("inputs", {}),
        "configuration": state.get("config", {}),
    }
    return Description(folder, "unfinished samples", details)


def _pipeline(folder: Path) -> Description:
    index = read_json(folder / PIPELINE_INDEX)
    name = index.pop("_class_name", "pipeline")
    parts = {key: value for key, value in index.items() if _is_part(folder, key, value)}
    details: dict[str, Any] = {
        "class": ".".join(map(str, name)) if isinstance(name, list) else name,
        "settings": {key: value for key, value in index.items() if key not in parts and not key.startswith("_")},
    }
    for key, (library, kind) in parts.items():
        details[key] = {"class": f"{library}.{kind}", **weights_of(folder / key)}
    return Description(folder, "a pipeline in the layout of diffusers", details)


def _is_part(folder: Path, key: str, value: Any) -> bool:
    """Tell if an entry of the index names the library and the class of a subfolder."""
    names_a_class = isinstance(value, list) and len(value) == 2
    return names_a_class and key == Path(key).name and "\0" not in key and (folder / key).is_dir()


def _anything(folder: Path) -> Description:
    files: list[str] = []
    subfolders = None
    for _, folders, names in os.walk(folder):  # skips unreadable folders
        subfolders = len(folders) if subfolders is None else subfolders
        files += names
        if len(files) > COUNTED_FILES:
            break
    types = Counter(Path(name).suffix.lower() or "without suffix" for name in files)
    count = len(files) if len(files) <= COUNTED_FILES else f"more than {COUNTED_FILES:,}"
    details = {"files": count, "subfolders": subfolders or 0, "by type": dict(types.most_common(SHOWN_TYPES))}
    if any(extension in IMAGE_EXTENSIONS for extension in types):
        details["images"] = f"'alight info images {folder}' describes them"
    return Description(folder, "a folder without records of alight", details)
