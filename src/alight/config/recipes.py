"""Recipes: YAML files, and the shipped ones among them, that fill the typed configuration of a job.

A recipe's `job` key names the command it is for. A misspelt key, a wrong type or a contradiction is named together
with its nearest valid neighbour.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from alight.config.base import Section, is_secret
from alight.config.commands import COMMANDS, FORMER_NAMES
from alight.runtime.errors import InputError
from alight.runtime.reading import read_json_object, require_regular
from alight.runtime.terminal import shortened
from alight.runtime.yaml_reading import YAML_LIMIT, read_yaml

SectionT = TypeVar("SectionT", bound=Section)
_MANIFEST = "alight.json"  # of a finished artifact
_TELLING = ("foundation train", "tokenizer train", "latents extract", "transformer train", "sample")
COMPLAINTS = 8  # of a recipe that are told
COMPARED_LENGTH = 60  # of a word for which a similar one is looked for; comparing takes time by its square


def recipes_folder() -> Path:
    """The folder of the shipped recipes: inside an installed package, or beside the sources."""
    packaged = Path(__file__).parents[1] / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "configs"


def shipped_names() -> list[str]:
    """The names of the shipped recipes, in order."""
    folder = recipes_folder()
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def shipped_recipes() -> dict[str, str]:
    """The shipped recipes by name, each with the job it is for."""
    folder = recipes_folder()
    return {name: read_recipe(folder / f"{name}.yaml")[0] for name in shipped_names()}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe, given as a path or as the name of a shipped recipe such as `quickstart`.

    Raises:
        InputError: if there is neither, or it is no regular file; names the nearest shipped recipe.
    """
    given, folder = os.path.expanduser(name), recipes_folder()
    for candidate in (given, str(folder / given), f"{folder / given}.yaml"):
        if os.path.isfile(candidate):  # False, too, for what no path can be
            return Path(candidate)
    if os.path.exists(given):
        require_regular(Path(given), YAML_LIMIT)
    shipped = shipped_names()
    raise InputError(
        f"There is no recipe '{shortened(name)}'.{_nearest(str(name), shipped)} Shipped are: {', '.join(shipped)}."
    )


def read_recipe(name: str | Path) -> tuple[str, dict[str, Any]]:
    """The job of a recipe and its values, not yet validated; a finished foundation, tokenizer, ... is one, too.

    Raises:
        InputError: if the file is not YAML, is not a mapping, or names no known job.
    """
    record = Path(os.path.expanduser(name)) / _MANIFEST
    if os.path.isfile(record):
        return _recorded(record)
    path = find_recipe(name)
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no keys. A recipe is a mapping such as 'job: tokenizer train'.")
    if values.get("job") is None:
        likely = " or ".join(f"'job: {job}'" for job in _likely_jobs(values))
        remedy = f"Its keys suggest {likely}." if likely else f"Known jobs: {', '.join(COMMANDS)}."
        raise InputError(
            f"{path} must say which command it is for, but a line 'job: ...' is missing or empty. {remedy}"
        )
    job = values.pop("job")
    job = FORMER_NAMES.get(job, job) if isinstance(job, str) else job
    if not isinstance(job, str) or job not in COMMANDS:
        found = f"'{shortened(job)}'" if isinstance(job, str) else _in_words(job)
        raise InputError(
            f"{path} must say which command it is for, in a line 'job: ...'; found {found}."
            f"{_nearest(job, list(COMMANDS)) if isinstance(job, str) else ''} Known jobs: {', '.join(COMMANDS)}."
        )
    return job, values


def _recorded(record: Path) -> tuple[str, dict[str, Any]]:
    """The job that made a finished artifact, and the configuration that its manifest records."""
    values = read_json_object(record, "Restore it, or give a recipe.")
    job = next((name for name, command in COMMANDS.items() if command.makes == values.get("kind")), None)
    config = values.get("config")
    if job is None or job not in _TELLING or not isinstance(config, dict):
        raise InputError(
            f"{record.parent} is no recipe: only a folder that one of these has made is one: {', '.join(_TELLING)}. "
            "Give a YAML file, or the name of a shipped recipe."
        )
    return job, config


def _likely_jobs(values: Mapping[Any, Any]) -> list[str]:
    """The jobs which know most of the keys."""
    known = {job: sum(key in command.config.model_fields for key in values) for job, command in COMMANDS.items()}
    most = max(known.values())
    return [job for job, count in known.items() if count == most and most > 0][:5]


def load_config(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Any:
    """Read a recipe into the typed configuration of its job.

    Args:
        name: path of a YAML file, or the name of a shipped recipe.
        overrides: dotted keys and their values, such as `{"optimizer.lr": 5e-4}`.

    Returns:
        An instance of the job's class, for example `TrainTokenizerConfig`.

    Raises:
        InputError: names the key that is unknown, has the wrong type or contradicts another, and the remedy.
    """
    job, values = read_recipe(name)
    for dotted, value in (overrides or {}).items():
        override(values, dotted, value)
    return validate(COMMANDS[job].config, values, source=str(name))


def override(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key of nested values.

    Raises:
        InputError: a part of the key is a value already, and no section.
    """
    *parents, leaf = dotted.split(".")
    section = values
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise InputError(f"'{shortened(dotted)}' cannot be set: '{shortened(parent)}' is a value, not a section.")
    section[leaf] = value


def validate(kind: type[SectionT], values: Mapping[str, Any], source: str) -> SectionT:
    """Build a configuration, with one paragraph for everything that is wrong with it.

    Keys that a section leaves out keep the job's own defaults, which may differ from those of the section elsewhere.

    Raises:
        InputError: names the keys.
    """
    try:
        return kind.model_validate(laid_over(kind().model_dump(), values))
    except ValidationError as error:
        raise InputError(f"{source}: {explain(kind, error)}") from error


def laid_over(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested defaults with the values that are given in their places."""
    merged = dict(defaults)
    for name, value in values.items():
        default = merged.get(name)
        both = isinstance(default, Mapping) and isinstance(value, Mapping)
        merged[name] = laid_over(default, value) if both else value  # type: ignore[arg-type]
    return merged


def changes(config: Section, default: Section) -> dict[str, Any]:
    """The values, as plain data, that turn the default into the configuration when they are laid over it."""
    return _changed(config.model_dump(mode="json"), default.model_dump(mode="json"))


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        usual = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(usual, Mapping) and usual.keys() == value.keys():
            if inner := _changed(value, usual):
                found[name] = inner
        elif value != usual:
            found[name] = value
    return found


# --- complaints ---------------------------------------------------------------------------------------------------


def explain(kind: type[BaseModel], error: ValidationError) -> str:
    """The complaints of pydantic in one paragraph, with the nearest valid key for every unknown one."""
    found = _joined(error.errors(include_url=False))
    complaints: list[str] = []
    for item in found[:COMPLAINTS]:
        complaint, _, known = _complaint(kind, item).partition(" Known here:")
        told = any(known in each for each in complaints)
        complaints.append(complaint if told or not known else f"{complaint} Known here:{known}")
    if len(found) > COMPLAINTS:
        complaints.append(f"And {len(found) - COMPLAINTS:,} more complaints of this kind.")
    return " ".join(complaints)


def _joined(found: Sequence[Any]) -> list[Any]:
    """The complaints, where those about a value that may be a number or a word, such as 'auto', are one."""
    words = {item["loc"][:-1]: item for item in found if str(*item["loc"][-1:]).startswith("literal[")}
    joined = []
    for item in found:
        place = item["loc"][:-1]
        if place not in words:
            joined.append(item)
        elif item is not words[place]:
            joined.append({**item, "loc": place, "msg": f"{item['msg']}, or {words[place]['ctx']['expected']}"})
    parents = {item["loc"][:length] for item in joined for length in range(len(item["loc"]))}
    return [item for item in joined if item["loc"] not in parents]  # a list without its bad elements may be too short


def _complaint(kind: type[BaseModel], item: Any) -> str:
    location = item["loc"]
    path = shortened(".".join(str(part) for part in location))
    match item["type"]:
        case "extra_forbidden":
            known = _keys_at(kind, location[:-1])
            prefix = "".join(f"{part}." for part in location[:-1])
            nearest = _nearest(str(location[-1]), known, prefix)
            return f"unknown key '{path}'.{nearest or ' Known here: ' + ', '.join(known) + '.'}"
        case "value_error":
            return f"{path + ': ' if path else ''}{str(item['ctx']['error']).rstrip('.')}."
        case "model_type" | "dict_type" if known := _keys_at(kind, location):
            return f"'{path}' is {_in_words(item['input'])}; it must be a section with keys such as {known[0]}."
        case _:
            hint = " (nothing is written null in a recipe)" if item["input"] == "None" else ""
            given = "" if is_secret(path) else f" is {_in_words(item['input'])}{hint}"
            return f"'{path}'{given}: {item['msg'].lower()}."


def _in_words(value: Any) -> str:
    """A value within a message."""
    if isinstance(value, Mapping):
        return "a section with keys"
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"a list of {len(value):,}"
    return shortened(repr(value))


def _keys_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at a place; none where it is no section."""
    for part in location:
        if isinstance(part, int):  # of a list of sections
            continue
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        section = next(_sections(annotation), None)
        if section is None:
            return []
        kind = section
    return list(kind.model_fields)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _nearest(given: str, known: list[str], prefix: str = "") -> str:
    match = difflib.get_close_matches(given, known, n=1, cutoff=0.5) if len(given) <= COMPARED_LENGTH else []
    return f" Did you mean '{prefix}{match[0]}'?" if match else ""
