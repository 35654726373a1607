"""The folders of the pipelines to serve, checked before anything heavy is imported."""

from pathlib import Path

from alight.artifacts import find_pipeline
from alight.config import ServeConfig
from alight.runtime.errors import InputError


def pipeline_folders(config: ServeConfig) -> list[Path]:
    """The folders of the one or two pipelines.

    Raises:
        InputError: no folder was given, or one holds no pipeline.
    """
    if config.pipeline is None:
        raise InputError("Give the folder of a pipeline: 'alight serve runs/quickstart'.")
    folders = [config.pipeline, *([config.compare] if config.compare else [])]
    for folder in folders:
        find_pipeline(folder)
    return folders
