"""Which pipelines are to be served, found before anything heavy is imported."""

from pathlib import Path

from alight.artifacts import find_pipeline
from alight.config import ServeConfig
from alight.runtime.errors import InputError


def pipeline_folders(config: ServeConfig) -> list[Path]:
    """The folders that were given for one pipeline or two, both with a pipeline in them.

    Raises:
        InputError: none was given, or one of them holds none.
    """
    if config.pipeline is None:
        raise InputError("Which pipeline? Give its folder: 'alight serve runs/quickstart'.")
    folders = [config.pipeline, *([config.compare] if config.compare else [])]
    for folder in folders:
        find_pipeline(folder)
    return folders
