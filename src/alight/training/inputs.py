"""The inputs of a training run, recorded by hash: compared when it goes on, and when it is finished already."""

from collections.abc import Mapping
from pathlib import Path

from alight.artifacts import MANIFEST, Artifact, read_artifact
from alight.config import ImagesConfig
from alight.data.images import ImageSource
from alight.data.loading import open_source
from alight.models.pretrained import WEIGHTS_FILE
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash

IMAGES, INIT_FROM = "images", "init_from"
_NAMES = {IMAGES: "the images", INIT_FROM: "the weights of init_from", "foundation": "the foundation model"}
_FOUNDATION_WEIGHTS = "model.safetensors"


def changed_inputs(recorded: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """The inputs whose hashes differ, each as a phrase; those that only one side knows are not compared."""
    return [
        f"{_NAMES.get(name, f'the {name}')} ({recorded[name][:12]} -> {digest[:12]})"
        for name, digest in found.items()
        if name in recorded and recorded[name] != digest
    ]


def require_same_inputs(recorded: Mapping[str, str], found: Mapping[str, str], folder: Path) -> None:
    """Refuse to go on with other inputs than an unfinished run was begun with.

    Raises:
        InputError: names what has changed.
    """
    if changed := changed_inputs(recorded, found):
        raise InputError(
            f"{folder} holds a run that was begun with other inputs; what has changed since: {'; '.join(changed)}. "
            "Restore them, or choose another --output to use them as they are now."
        )


def require_unchanged(artifact: Artifact, found: Mapping[str, str]) -> None:
    """Refuse to keep a finished artifact that was made from other inputs than those that are there now.

    Raises:
        InputError: names what has changed.
    """
    recorded = {name: value for name, value in {**artifact.facts, **artifact.inputs}.items() if isinstance(value, str)}
    if changed := changed_inputs(recorded, found):
        raise InputError(
            f"The finished {artifact.kind} in {artifact.path} was made from inputs that have changed since: "
            f"{'; '.join(changed)}. Choose another --output to use them as they are now, or restore them."
        )


def image_inputs(config: ImagesConfig, source: ImageSource | None = None) -> dict[str, str]:
    """The fingerprint of the training images; none, with a warning, where they cannot be opened any more."""
    try:
        return {IMAGES: (source or open_source(config, "train")).fingerprint}
    except InputError as error:
        if source is not None:
            raise
        log.warning("The images cannot be compared with those of the finished run: %s", error)
        return {}


def foundation_inputs(name: str | None) -> dict[str, str]:
    """The hash of a foundation model in a folder; a model of the hub is known by its name alone."""
    folder = Path(name) if name is not None else None
    if folder is None or not folder.is_dir():
        return {}
    if (folder / MANIFEST).is_file():
        return {"foundation": read_artifact(folder, "foundation", verify=False).hash}
    weights = next((folder / file for file in (_FOUNDATION_WEIGHTS, WEIGHTS_FILE) if (folder / file).is_file()), None)
    return {"foundation": file_hash(weights)} if weights is not None else {}
