"""The command that follows a finished one, ready to paste: `FOLLOWING` is the table.

A command goes on with the recipe beside the one that was used, where its folder holds exactly one for the next
command, and with the images, folders and options that are already known.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from alight.artifacts import STARTED, Artifact, differences, find_pipeline, is_complete, read_manifest
from alight.config import ImagesConfig
from alight.config.base import Section
from alight.config.command_line import command_text, option_words
from alight.config.commands import COMMANDS
from alight.config.recipes import find_recipe, read_recipe, recipes_folder, validate
from alight.config.tokenizer import SMALLEST_DISCRIMINATED
from alight.lineage import require_tokenizer_of
from alight.options import EMBEDDED
from alight.runtime.errors import InputError
from alight.runtime.reading import read_json_object

Following = tuple[str, dict[str, Any]] | None  # the command, and the fields of its configuration that are known


def next_command(name: str, config: Any, recipe: str | None = None) -> str | None:
    """The text of the command that follows.

    Args:
        name: of the finished command.
        config: of it.
        recipe: that it was started with.

    Returns:
        None where nothing follows, or where the records that it needs are gone.
    """
    follow = FOLLOWING.get(name)
    with suppress(InputError, OSError):
        following = follow(config) if follow is not None else None
        if following is not None:
            return _text(*following, recipe, getattr(config, "folder", None) or config.output)
    return None


# --- one row each -------------------------------------------------------------------------------------------------


def _after_foundation(config: Any) -> Following:
    return "tokenizer train", {"images": config.images, "alignment.foundation": str(config.output)}


def _after_tokenizer(config: Any) -> Following:
    known = {"tokenizer": config.output, "images": _centre_crops(config.images), "split": _split(config.images)}
    return "tokenizer evaluate", known


def _after_tokenizer_report(config: Any) -> Following:
    known = {"tokenizer": config.tokenizer, "images": _centre_crops(config.images)}
    if not is_complete(config.tokenizer):  # of others, whose statistics are those of other images
        known["statistics"] = "data"
    if config.images.source == "digits":
        known["flips"] = False
    return "latents extract", known


def _after_latents(config: Any) -> Following:
    return "transformer train", {"latents": config.output}


def _after_transformer(config: Any) -> Following:
    tokenizer = require_tokenizer_of(read_manifest(config.output))
    return "sample", {"transformer": config.output, "tokenizer": tokenizer}


def _after_samples(config: Any) -> Following:
    known: dict[str, Any] = {"samples": config.output, "transformer": None, "tokenizer": config.tokenizer}
    if config.checkpoint is not None or not is_complete(config.transformer):  # a checkpoint of a run
        return None
    transformer = read_manifest(config.transformer)
    known["transformer"] = config.transformer
    known["tokenizer"] = config.tokenizer or require_tokenizer_of(transformer)
    images = _images_of(transformer)
    return ("evaluate", known | {"images": images, "split": _split(images)}) if images is not None else None


def _after_report(config: Any) -> Following:
    if config.pipeline is not None:
        return _tuning(config.pipeline, config.images)
    with suppress(InputError):
        return _tuning(find_pipeline(config.output.parent), config.images)
    if config.transformer is None:
        return None
    return "export", {"transformer": config.transformer, "tokenizer": config.tokenizer}


def _tuning(pipeline: Path, images: ImagesConfig) -> Following:
    return "tune", {"pipeline": pipeline, "images": images}


def _after_tuning(config: Any) -> Following:
    return "serve", {"pipeline": config.pipeline}


def _after_run(config: Any) -> Following:
    find_pipeline(config.output)  # or it refuses
    return "serve", {"pipeline": config.output}


def _after_start(config: Any) -> Following:
    if config.plan_only:
        known = {name: getattr(config, name) for name in config.model_fields_set - {"plan_only"}}
        return "start", known if _can_start(config) else known | {"output": _unused(config.folder)}
    find_pipeline(config.folder)  # or it refuses
    return "serve", {"pipeline": config.folder}


FOLLOWING: dict[str, Callable[[Any], Following]] = {
    "foundation train": _after_foundation,
    "tokenizer train": _after_tokenizer,
    "tokenizer evaluate": _after_tokenizer_report,
    "latents extract": _after_latents,
    "transformer train": _after_transformer,
    "sample": _after_samples,
    "evaluate": _after_report,
    "tune": _after_tuning,
    "average": _after_transformer,
    "export": _after_run,
    "quickstart": _after_run,
    "start": _after_start,
}


# --- images -------------------------------------------------------------------------------------------------------


def _centre_crops(images: ImagesConfig) -> ImagesConfig:
    """The same images as they are measured and encoded, without augmentation."""
    changes: dict[str, Any] = {"horizontal_flip": False}
    return images.model_copy(update=changes | ({"crop": "center"} if images.crop == "random" else {}))


def _split(images: ImagesConfig) -> str:
    """The images to measure: held-out ones where there are any."""
    return "held_out" if images.source in EMBEDDED or images.held_out_fraction else "all"


def _images_of(transformer: Artifact) -> ImagesConfig | None:
    """The images whose latents a transformer was trained on, where the records are there."""
    latents = Path(transformer.config.get("latents") or "")
    for folder in (latents, transformer.path.parent / latents.name):
        if is_complete(folder):
            record = read_manifest(folder)
            if record.kind == "latents" and isinstance(record.config.get("images"), dict):
                return validate(ImagesConfig, record.config["images"], str(folder))
    return None


# --- text ---------------------------------------------------------------------------------------------------------


def _text(name: str, known: dict[str, Any], recipe: str | None, beside: Path) -> str:
    """The command with the known fields laid over its recipe, or over its defaults."""
    command = COMMANDS[name]
    words, base = _base(name, recipe)
    wanted: Any = base
    for dotted, value in known.items():
        section, _, field = dotted.rpartition(".")
        if section:
            value, field = getattr(wanted, section).model_copy(update={field: value}), section
        wanted = wanted.model_copy(update={field: value})
    if name == "tokenizer train" and wanted.images.size < SMALLEST_DISCRIMINATED:
        without = wanted.reconstruction.model_copy(update={"adversarial_weight": 0.0})
        wanted = wanted.model_copy(update={"reconstruction": without})
    if getattr(wanted, "output", None) is not None:
        wanted = wanted.model_copy(update={"output": _free(beside.parent / wanted.output.name, wanted)})
    validate(command.config, wanted.model_dump(), name)
    operand = command.operand.removeprefix("--")
    if operand and operand in known:
        words = [str(known[operand]), *words]
    return command_text(name, [*words, *option_words(wanted, base, without=(operand,) if operand else ())])


def _base(name: str, recipe: str | None) -> tuple[list[str], Section]:
    """The recipe for a command in the folder of another one, as options and as a configuration; else the defaults."""
    kind = COMMANDS[name].config
    folder, shipped = find_recipe(recipe).parent if recipe else recipes_folder(), recipes_folder()
    if folder.resolve() != shipped.resolve():
        found = [path for path in sorted(folder.glob("*.yaml")) if _job(path) == name]
        if len(found) == 1:
            (path,) = found
            within = path.resolve().is_relative_to(shipped.resolve())
            text = str(path.resolve().relative_to(shipped.resolve()).with_suffix("")) if within else str(path)
            return ["--config", text], validate(kind, read_recipe(path)[1], text)
    return [], kind()


def _job(path: Path) -> str | None:
    """The command that a recipe is for; None where the file is no recipe."""
    with suppress(InputError):
        return read_recipe(path)[0]
    return None


def _can_start(config: Any) -> bool:
    """Tell if the folder of a start is new, or holds one with the same options."""
    if not config.folder.exists():
        return True
    stored = read_json_object(config.folder / "start.json", "").get("request", {})
    return not differences(stored, config.model_dump(mode="json", exclude={"output", "plan_only"}))


def _unused(folder: Path) -> Path:
    """The first folder with a number behind its name that does not exist."""
    return next(place for number in count(2) if not (place := folder.with_name(f"{folder.name}-{number}")).exists())


def _free(folder: Path, wanted: Section) -> Path:
    """The folder, or the first with a number behind its name that the command can write to."""
    number, place = 1, folder
    while not _is_usable(place, wanted):
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")
    return place


def _is_usable(folder: Path, wanted: Section) -> bool:
    """Tell if a folder is free, unfinished, or the result of this very command on the same inputs."""
    if not is_complete(folder):
        return not folder.is_dir() or not any(folder.iterdir()) or (folder / STARTED).is_file()
    held = read_manifest(folder)
    if differences(held.config, wanted.model_dump(mode="json") | {"output": held.config.get("output")}):
        return False
    sources = [getattr(wanted, kind, None) for kind in ("tokenizer", "latents", "transformer", "samples")]
    records = [read_manifest(source) for source in sources if source is not None and is_complete(source)]
    return all(held.inputs.get(record.kind, record.hash) == record.hash for record in records)
