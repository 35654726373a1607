"""`alight info`: describe a file or folder, and how it was made."""

from pathlib import Path

from alight.config import InfoConfig
from alight.config.recipes import find_recipe
from alight.runtime.errors import InputError
from alight.show.description import Description
from alight.show.files import describe_file
from alight.show.folders import describe_folder


def run(config: InfoConfig) -> Description:
    """Describe the file, folder or recipe that the configuration names.

    Raises:
        InputError: it does not exist, or is damaged.
    """
    if config.path is None:
        raise InputError("Give a file or a folder, for example 'alight info runs/quickstart'.")
    try:
        is_folder, exists = config.path.is_dir(), config.path.exists()
        if is_folder:
            return describe_folder(config.path)
    except OSError as error:  # a path that is too long, or a folder without permission
        raise InputError(f"{config.path!s:.300} cannot be read ({error.strerror}). Check the path.") from error
    return describe_file(config.path if exists else _recipe_of_that_name(config.path))


def _recipe_of_that_name(path: Path) -> Path:
    try:
        return find_recipe(path)
    except InputError as error:
        raise InputError(f"There is no file, folder or recipe {path}. Check the path.") from error
