"""The best settings, stored where a pipeline finds them, or in the report where the pipeline cannot be written."""

import json
import os
import tempfile
from pathlib import Path

from alight.artifacts import PIPELINE_INDEX, replace_file
from alight.config import SolverConfig, TuneConfig
from alight.pipelines.selection import Selection
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.files import write_text
from alight.runtime.reading import read_json_object

SETTINGS_FILE = "recommended_sampling.json"  # of a report


def reason_against_storing(folder: Path) -> str | None:
    """The reason why a search could not write its result into a pipeline; None if it can."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".probe"):
            return None
    except OSError as error:
        return os.strerror(error.errno).lower() if error.errno is not None else str(error)


def warn_if_not_to_be_stored(folder: Path, output: Path, doubt: str | None) -> None:
    """Warn before a search that its result will be in the report alone, or nowhere because of a doubt about it."""
    if doubt is not None:
        log.warning("tune: The best settings will not be stored in %s: %s.", folder, doubt)
    elif reason := reason_against_storing(folder):
        log.warning(
            "tune: %s cannot be written (%s), so the best settings will not be stored there, but in %s.",
            *(folder, reason, output / SETTINGS_FILE),
        )


def storing_note(config: TuneConfig, stored: bool, doubt: str | None, average: float | None = None) -> str:
    """The place where the best settings are stored, or the reason why they are not, as a sentence.

    Args:
        config: of the search.
        stored: whether the pipeline holds them.
        doubt: reason against them, or None.
        average: width of the average that they were found with; None = the weights of the pipeline.
    """
    if not config.store:
        return "They are not stored, as --store False asks."
    if doubt is not None:
        return f"They are not stored, because they cannot be trusted: {doubt}."
    if average is not None:
        return (
            f"They are stored in {SETTINGS_FILE} beside this page and not in the pipeline, whose weights are others: "
            f"'alight average RUN --width {average:g} --output FOLDER' writes the transformer that they are for."
        )
    place = f"in {config.pipeline} as recommended_sampling" if stored else f"in {SETTINGS_FILE} beside this page"
    return f"They are stored {place}."


def stored_settings(folder: Path, settings: SolverConfig, selection: Selection) -> bool:
    """Write settings and the record of their search into the index of a pipeline; `recommended_sampling` reads them.

    Returns:
        True if they are there; a failing disk is a warning, since the search is worth more than its last step.
    """
    try:
        index = read_json_object(folder / PIPELINE_INDEX, "Restore it, or write the pipeline again.")
        index |= {"recommended_sampling": settings.model_dump(mode="json"), "selection": selection}
        replace_file(folder, PIPELINE_INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    except (InputError, OSError) as error:
        log.warning("tune: The best settings are not stored in the pipeline. %s", error)
        return False
    return True


def write_settings(folder: Path, settings: SolverConfig) -> None:
    """Write settings into a report, as the arguments of a call of the pipeline."""
    text = json.dumps(settings.model_dump(mode="json"), indent=2, sort_keys=True)
    write_text(folder / SETTINGS_FILE, f"{text}\n")
