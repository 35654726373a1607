"""The folder for data that can be computed or downloaded again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The cache folder: `$ALIGHT_CACHE`, `$XDG_CACHE_HOME/alight` or `~/.cache/alight`."""
    if chosen := os.environ.get("ALIGHT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "alight"
