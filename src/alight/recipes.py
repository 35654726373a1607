"""Recipes: YAML files, and the shipped ones among them, that fill the typed configuration of a job.

A recipe's `job` key names the command it is for. A misspelt key, a wrong type or a contradiction is named together
with its nearest valid neighbour.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from alight.config import JOBS, Section
from alight.runtime.errors import InputError

SectionT = TypeVar("SectionT", bound=Section)


class _RecipeLoader(yaml.SafeLoader):
    """YAML in which `1e-4` is a number and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(f"The key '{key}' stands twice at line {node.start_mark.line + 1}; keep one of them.")
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def recipes_folder() -> Path:
    """Where the shipped recipes lie: inside an installed package, or beside the sources."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def shipped_recipes() -> dict[str, str]:
    """The names of the shipped recipes, in order, each with the job it is for."""
    folder = recipes_folder()
    names = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
    return {name: read_recipe(folder / f"{name}.yaml")[0] for name in names}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe, given as a path or as the name of a shipped recipe such as `quickstart`.

    Raises:
        InputError: if there is neither; names the nearest shipped recipe.
    """
    given, folder = Path(name), recipes_folder()
    for candidate in (given, folder / given, folder / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    shipped = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
    raise InputError(f"There is no recipe '{name}'.{_nearest(str(name), shipped)} Shipped are: {', '.join(shipped)}.")


def read_recipe(name: str | Path) -> tuple[str, dict[str, Any]]:
    """The job of a recipe and its values, not yet validated.

    Raises:
        InputError: if the file is not YAML, is not a mapping, or names no known job.
    """
    path = find_recipe(name)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_RecipeLoader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}. Mend the file.") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no keys. A recipe is a mapping such as 'job: tokenizer train'.")
    job = values.pop("job", None)
    if job not in JOBS:
        raise InputError(
            f"{path} must say which command it is for with a line 'job: ...'; found {job!r}."
            f"{_nearest(str(job), list(JOBS))} Known jobs: {', '.join(JOBS)}."
        )
    return job, values


def load_config(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Any:
    """Read a recipe into the typed configuration of its job.

    Args:
        name: path of a YAML file, or the name of a shipped recipe.
        overrides: dotted keys and their values, such as `{"optimizer.lr": 5e-4}`.

    Returns:
        An instance of the job's class, for example `TrainTokenizerConfig`.

    Raises:
        InputError: names the key that is unknown, has the wrong type or contradicts another, and its mend.
    """
    job, values = read_recipe(name)
    for dotted, value in (overrides or {}).items():
        *parents, leaf = dotted.split(".")
        section = values
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value
    return validate(JOBS[job], values, source=str(name))


def validate(kind: type[SectionT], values: Mapping[str, Any], source: str) -> SectionT:
    """Build a configuration, with one paragraph for everything that is wrong with it.

    What a section leaves out is as in the job's own defaults, which may differ from those of the section elsewhere.
    """
    try:
        return kind.model_validate(_laid_over(kind().model_dump(), values))
    except ValidationError as error:
        raise InputError(f"{source}: {explain(kind, error)}") from error


def _laid_over(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(defaults)
    for name, value in values.items():
        default = merged.get(name)
        both = isinstance(default, Mapping) and isinstance(value, Mapping)
        merged[name] = _laid_over(default, value) if both else value  # type: ignore[arg-type]
    return merged


def explain(kind: type[BaseModel], error: ValidationError) -> str:
    """Pydantic's complaints in one paragraph, with the nearest valid key for every unknown one."""
    complaints = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _keys_at(kind, item["loc"][:-1])
            prefix = "".join(f"{part}." for part in item["loc"][:-1])
            nearest = _nearest(str(item["loc"][-1]), known, prefix)
            complaints.append(f"unknown key '{path}'.{nearest or ' Known here: ' + ', '.join(known) + '.'}")
        elif item["type"] == "value_error":
            complaints.append(f"{path + ': ' if path else ''}{str(item['ctx']['error']).rstrip('.')}.")
        else:
            complaints.append(f"'{path}' is {item['input']!r}: {item['msg'].lower()}.")
    return " ".join(complaints)


def _keys_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        annotation = kind.model_fields[str(part)].annotation if str(part) in kind.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        kind = annotation
    return list(kind.model_fields)


def _nearest(given: str, known: list[str], prefix: str = "") -> str:
    match = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f" Did you mean '{prefix}{match[0]}'?" if match else ""
