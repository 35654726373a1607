"""Lineage from records: the tokenizer that a transformer was trained with, and the original of a copied artifact."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alight.artifacts import Artifact, is_complete, read_manifest
from alight.config import ImagesConfig
from alight.runtime.console import log
from alight.runtime.errors import InputError

USUAL_TOKENIZER = Path("runs/tokenizer")  # the default output of 'alight tokenizer train'


def require_tokenizer_of(transformer: Artifact) -> Path:
    """Find the tokenizer that a transformer was trained with, or one with the same latents.

    The transformer names its latents, and these name their tokenizer. Folders beside the transformer are tried too.

    Raises:
        InputError: it is not found; names the tokenizer to give.
    """
    expected = transformer.inputs.get("tokenizer", "")
    for folder in _tokenizer_folders(transformer):
        record = _record(folder, "tokenizer")
        if record is not None and _gives_latents_of(record, expected):
            return folder
    named = next(_recorded_folders(transformer), None)
    which = f" ({expected[:12]})" if expected else ""
    where = f" ({named})" if named is not None else ""
    raise InputError(
        f"The tokenizer{which} that the transformer in {transformer.path} was trained with is neither in the recorded "
        f"place{where} nor beside it. Give its folder with --tokenizer."
    )


def record_of(bare: Artifact, places: Sequence[Path], transformer: Artifact | None = None) -> Artifact | None:
    """Find the finished artifact with the same weights as a copy, by their hash.

    Returns:
        The artifact, or None if it is not found.
    """
    folders = [place / bare.kind for place in places]
    for place in places:
        folders += sorted(path.parent for path in place.glob("*/alight.json"))
    if bare.kind == "tokenizer" and transformer is not None:
        folders += _tokenizer_folders(transformer)
    for folder in dict.fromkeys(folders):
        record = _record(folder, bare.kind)
        if record is not None and record.hash == bare.hash:
            return record
    return None


def warn_of_other_squares(tokenizer: Artifact, images: ImagesConfig) -> None:
    """Say so where images are made square or opaque in another way than those that a tokenizer was trained on.

    It then sees borders or backgrounds that it does not know.
    """
    recorded = tokenizer.config.get("images")
    trained = recorded if isinstance(recorded, dict) else {}
    other = {
        "background": trained.get("background", images.background) != images.background,
        "crop": (trained.get("crop", images.crop) == "pad") != (images.crop == "pad"),
    }
    for option in (option for option, differs in other.items() if differs):
        log.warning(
            "The tokenizer in %s was trained on images with --images.%s %s, and these have %s.",
            tokenizer.path,
            option,
            trained[option],
            getattr(images, option),
        )


def _tokenizer_folders(transformer: Artifact) -> Iterator[Path]:
    yield from _recorded_folders(transformer)
    yield transformer.path.parent / "tokenizer"
    yield USUAL_TOKENIZER


def _recorded_folders(transformer: Artifact) -> Iterator[Path]:
    """The places of the tokenizer by the records of the transformer, then by those of its latents."""
    yield from _places(transformer.config.get("tokenizer"), transformer.path)
    for folder in _places(transformer.config.get("latents"), transformer.path):
        latents = _record(folder, "latents")
        if latents is not None and latents.hash == transformer.inputs.get("latents"):
            yield from _places(latents.config.get("tokenizer"), latents.path)


def _places(recorded: Any, owner: Path) -> Iterator[Path]:
    """A recorded folder in its original place, and beside its owner, in case both were moved."""
    if isinstance(recorded, str) and recorded and "\0" not in recorded:
        yield Path(recorded)
        yield owner.parent / Path(recorded).name


def _record(folder: Path, kind: str) -> Artifact | None:
    try:
        record = read_manifest(folder) if is_complete(folder) else None
    except InputError as error:
        log.warning("%s is skipped: %s", folder, error)
        return None
    except OSError:  # a path that is not valid on this file system
        return None
    return record if record is not None and record.kind == kind else None


def _gives_latents_of(record: Artifact, expected: str) -> bool:
    return not expected or expected in (record.hash, *record.facts.get("same_latents_as", ()))
