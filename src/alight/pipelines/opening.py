"""Open a pipeline from the disk, without the remarks of the library below."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers.utils import logging as diffusers_logging

from alight.artifacts import find_pipeline
from alight.pipelines.lightning_dit import LightningDiTPipeline


def open_pipeline(folder: Path) -> LightningDiTPipeline:
    """The pipeline in a folder, on the CPU.

    Args:
        folder: of the pipeline, or of a whole run.

    Raises:
        InputError: there is none, or it is incomplete or damaged.
    """
    place = find_pipeline(folder)
    with quiet_diffusers():
        pipeline: LightningDiTPipeline = LightningDiTPipeline.from_pretrained(place)
    return pipeline


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Silence the progress bars and remarks of diffusers while a pipeline is opened; its errors are raised."""
    verbosity, bars = diffusers_logging.get_verbosity(), diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
        if bars:
            diffusers_logging.enable_progress_bar()
