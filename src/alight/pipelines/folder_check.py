"""The files that describe the parts of a pipeline, checked by a schema before diffusers acts on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, JsonValue, with_config
from typing_extensions import TypedDict

from alight.artifacts import PIPELINE_INDEX
from alight.flow import PATHS, SolverSettings
from alight.options import Prediction, names_of
from alight.pipelines.selection import Selection
from alight.runtime.errors import InputError
from alight.runtime.reading import read_json

COMPONENTS = {
    "tokenizer": (["alight", "VAVAE"], ["alight", "RepresentationAutoencoder"]),
    "transformer": (["alight", "LightningDiT"],),
    "scheduler": (["diffusers", "FlowMatchEulerDiscreteScheduler"],),
}
PREDICTIONS = names_of(Prediction)
SCHEDULER = "scheduler/scheduler_config.json"
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")
_REMEDY = "Restore the file, or write the pipeline again."


@with_config(_STRICT)
class PipelineIndex(TypedDict):
    """`model_index.json`, as far as this pipeline reads it."""

    tokenizer: NotRequired[list[str | None]]
    transformer: NotRequired[list[str | None]]
    scheduler: NotRequired[list[str | None]]
    class_names: NotRequired[list[str] | None]
    path: NotRequired[str]
    prediction: NotRequired[str]
    recommended_sampling: NotRequired[dict[str, JsonValue] | None]
    selection: NotRequired[Selection | None]
    trained_guidance_scale: NotRequired[float | None]


@with_config(_STRICT)
class SchedulerConfig(TypedDict):
    """`scheduler_config.json`, as far as this pipeline reads it."""

    shift: Annotated[float, Field(gt=0)]
    num_train_timesteps: NotRequired[Annotated[int, Field(ge=1, le=1_000_000)]]


def check_pipeline_folder(folder: Path, given: Collection[str], call: Callable[..., Any]) -> None:
    """Refuse a folder that does not describe a pipeline of this package.

    Args:
        folder: of the pipeline.
        given: components that the caller brings along, so that the folder need not hold them.
        call: of the pipeline; recommended settings must be among its arguments.

    Raises:
        InputError: a file is missing or damaged, or names other classes than this package's.
    """
    path = folder / PIPELINE_INDEX
    index = read_json(path, PipelineIndex, _REMEDY)
    held: dict[str, Any] = dict(index)
    kind = held.get("_class_name", "LightningDiTPipeline")
    kind = kind[-1] if isinstance(kind, list) and kind else kind
    if kind != "LightningDiTPipeline":
        raise InputError(f"{path} describes a {kind!r}, not a LightningDiTPipeline. Check which folder you meant.")
    for name, known in COMPONENTS.items():
        if name not in given and held.get(name) not in known:
            expected = " or ".join(map(".".join, known))
            raise InputError(
                f"{path} names {held.get(name)} as its {name}, where this pipeline takes {expected} alone. {_REMEDY}"
            )
    if index.get("path", "linear") not in PATHS or index.get("prediction", "velocity") not in PREDICTIONS:
        raise InputError(
            f"{path} has the path {index.get('path')!r} and the prediction {index.get('prediction')!r}; known are "
            f"{', '.join(PATHS)} and {', '.join(PREDICTIONS)}. {_REMEDY}"
        )
    unknown = (
        set(index.get("recommended_sampling") or ())
        - set(inspect.signature(call).parameters)
        - SolverSettings.__optional_keys__
    )
    if unknown:
        raise InputError(f"{path} recommends the settings {', '.join(sorted(unknown))}, which do not exist. {_REMEDY}")
    if "scheduler" not in given:
        read_json(folder / SCHEDULER, SchedulerConfig, _REMEDY)
