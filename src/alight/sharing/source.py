"""The weights to share, and the records that belong to exactly these weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel, Field, JsonValue

from alight.artifacts import CONFIG_FILE, PIPELINE_INDEX, WEIGHTS_FILE, Artifact, is_complete, read_artifact
from alight.config import ExportConfig
from alight.lineage import record_of, require_tokenizer_of
from alight.models.weight_files import find_weights, weights_hash
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.reading import read_json, read_json_object

_ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:[^/\s'\"]+/)*([^/\s'\"]+)")  # within a sentence; not within a URL


class _Figure(BaseModel, strict=True, extra="allow"):
    """The fields of a report's figure that the card shows."""

    name: str
    label: str
    value: float | None
    digits: int = Field(ge=0, le=20)
    unit: str
    conditions: dict[str, JsonValue]
    headline: bool = True
    compare: "_Figure | None" = None


class _Report(BaseModel, strict=True, extra="allow"):
    figures: list[_Figure]
    notes: list[str] = []
    configuration: dict[str, JsonValue] = {}


@dataclass(frozen=True)
class Source:
    """The folders of the networks.

    Attributes:
        tokenizer: its folder.
        transformer: its folder; None if only a tokenizer is shared.
        pipeline: the folder of a pipeline that holds both, if they come in one.
        run: the folder that holds the folders of the whole run, if there is one.
    """

    tokenizer: Path
    transformer: Path | None = None
    pipeline: Path | None = None
    run: Path | None = None

    @property
    def folders(self) -> dict[str, Path]:
        """By kind."""
        found = {"tokenizer": self.tokenizer, "transformer": self.transformer}
        return {kind: folder for kind, folder in found.items() if folder is not None}


def find_source(config: ExportConfig) -> Source:
    """Find the networks of the configuration's pipeline, or of its transformer and tokenizer.

    Raises:
        InputError: no folder was given, or it holds nothing that can be shared.
    """
    folder = config.pipeline
    if folder is None and config.transformer is None and config.tokenizer is None:
        raise InputError("Give the folder to export, for example 'alight export runs/quickstart'.")
    if folder is None:
        tokenizer = config.tokenizer
        if tokenizer is None:
            assert config.transformer is not None  # checked above
            tokenizer = require_tokenizer_of(read_artifact(config.transformer, "transformer", verify=False))
        return Source(tokenizer, config.transformer, run=(config.transformer or tokenizer).parent)
    if (folder / PIPELINE_INDEX).is_file():
        return Source(folder / "tokenizer", folder / "transformer", pipeline=folder, run=folder.parent)
    if is_complete(folder) or (folder / CONFIG_FILE).is_file():
        return _single_model(folder)
    if (folder / "tokenizer").is_dir():
        transformer = folder / "transformer"
        return Source(folder / "tokenizer", transformer if transformer.is_dir() else None, run=folder)
    raise InputError(
        f"{folder} is not a pipeline, a run or a tokenizer: it has no {PIPELINE_INDEX}, no {CONFIG_FILE} and no "
        "subfolder 'tokenizer'. Give a folder that 'alight quickstart' or save_pretrained wrote, or --transformer "
        "and --tokenizer."
    )


def _single_model(folder: Path) -> Source:
    path = folder / CONFIG_FILE
    kind = read_json_object(path, "Restore it.").get("_class_name") if path.is_file() else None
    if kind == "LightningDiT":
        raise InputError(
            f"{folder} holds a transformer, which needs its tokenizer to make images. Give it as --transformer "
            f"{folder}, with --tokenizer FOLDER if its records do not name the tokenizer."
        )
    return Source(folder, run=folder.parent)


def records_of(source: Source) -> dict[str, Artifact]:
    """The manifest of each network, from its folder or beside the pipeline; with hash alone if there is none.

    Raises:
        InputError: a manifest is damaged, or does not match the weights beside it.
    """
    records = {}
    for kind, folder in source.folders.items():
        record = read_artifact(folder, kind) if is_complete(folder) else None
        if not find_weights(folder):
            raise InputError(f"{folder} holds no {kind}: it has no {WEIGHTS_FILE}. Give a finished one.")
        digest = weights_hash(folder)
        if record is not None:
            records[kind] = record
            if record.hash != digest:
                raise InputError(
                    f"The weights in {folder} do not match its manifest. Restore the file, or create the {kind} again."
                )
        else:
            records[kind] = Artifact(path=folder, kind=kind, config={}, hash=digest)
    for kind, bare in records.items():
        if not bare.config:
            found = record_of(bare, [source.run or bare.path.parent], records.get("transformer"))
            records[kind] = found or bare
    return records


def samples_of(source: Source, records: Mapping[str, Artifact], named: Path | None) -> Artifact | None:
    """Samples of exactly these networks: the given ones, or those of the same run.

    Raises:
        InputError: the given ones were made by other networks.
    """
    if named is not None:
        samples = read_artifact(named, "samples")
        for record in records.values():
            samples.require_input(record)
        return samples
    beside = source.run / "samples" if source.run is not None else None
    if "transformer" not in records or beside is None or not is_complete(beside):
        return None
    samples = read_artifact(beside, "samples")
    same = all(samples.inputs.get(kind) == record.hash for kind, record in records.items())
    return samples if same and "guide" not in samples.inputs else None


def figures_of(source: Source, records: Mapping[str, Artifact], named: Path | None) -> dict[str, Any] | None:
    """A report reduced to the figures of exactly these networks: the given one, or that of the same run.

    Raises:
        InputError: the given one is not a report, or is about other networks.
    """
    folder = named or (source.run / "report" if source.run is not None else Path())
    path = folder if folder.suffix == ".json" else folder / "report.json"
    if named is None and not path.is_file():
        return None
    try:
        report = read_json(path, _Report, "Give the folder of a finished report.").model_dump()
    except InputError as error:
        raise InputError(f"{path.parent} has no report of alight: {error}") from error
    figures = [figure for figure in report["figures"] if _measures(figure["conditions"], records)]
    if not figures:
        message = f"The report {path} is about other networks."
        if named is not None:
            raise InputError(f"{message} Give the report of the exported networks.")
        log.warning("%s It is left out.", message)
        return None
    return report | {"figures": figures}


def _measures(conditions: Mapping[str, Any], records: Mapping[str, Artifact]) -> bool:
    """Tell if a figure names these networks, by the beginnings of their hashes, and no other."""
    named = {kind: conditions[kind] for kind in ("tokenizer", "transformer") if kind in conditions}
    return bool(named) and all(
        kind in records and isinstance(beginning, str) and records[kind].hash.startswith(beginning)
        for kind, beginning in named.items()
    )


def nested(values: Any, *keys: str) -> Any:
    """A value within nested records; None if a key is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def portable(value: Any) -> Any:
    """The same with every absolute path reduced to its last part."""
    match value:
        case Mapping():
            return {key: portable(item) for key, item in value.items()}
        case list() | tuple():
            return [portable(item) for item in value]
        case str() if PurePath(value).is_absolute():
            return PurePath(value).name
        case str():
            return _ABSOLUTE_PATH.sub(r"\1", value)
        case _:
            return value
