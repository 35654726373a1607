"""`alight info`: what a file or folder is, and how it was made."""

from pathlib import Path

from alight.config import InfoConfig
from alight.config.recipes import find_recipe
from alight.runtime.errors import InputError
from alight.show.description import Description
from alight.show.files import describe_file
from alight.show.folders import describe_folder


def run(config: InfoConfig) -> Description:
    """Look at what the configuration names.

    Returns:
        Its kind, and what is known of it, as text and `as_data`.

    Raises:
        InputError: there is nothing of that name, or it is damaged.
    """
    if config.path is None:
        raise InputError("Say what to look at: a file or a folder, for example 'alight info runs/quickstart'.")
    try:
        is_folder, exists = config.path.is_dir(), config.path.exists()
        if is_folder:
            return describe_folder(config.path)
    except OSError as error:  # a path that is too long, a folder that may not be read
        raise InputError(f"{config.path!s:.300} cannot be read ({error.strerror}). Check the path.") from error
    return describe_file(config.path if exists else _recipe_of_that_name(config.path))


def _recipe_of_that_name(path: Path) -> Path:
    try:
        return find_recipe(path)
    except InputError as error:
        raise InputError(f"There is no file, no folder and no recipe {path}. Check the path.") from error
