"""Where what can be computed or downloaded again is kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where to keep what can be had again: `$ALIGHT_CACHE`, `$XDG_CACHE_HOME/alight` or `~/.cache/alight`."""
    if chosen := os.environ.get("ALIGHT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "alight"
