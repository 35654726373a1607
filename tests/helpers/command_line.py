"""The command line in a new interpreter; `helpers.warm` is the quicker way where nothing depends on its beginning."""

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def alight_command(*arguments: object) -> list[str]:
    """The words that run `alight ...` with this interpreter."""
    return [sys.executable, "-m", "alight", *map(str, arguments)]


def run_alight(
    *arguments: object, cwd: Path | None = None, timeout: float = 300, text: bool = True, **environment: str
) -> subprocess.CompletedProcess:
    """Run `alight ...` to its end; nothing is checked."""
    return subprocess.run(
        alight_command(*arguments),
        cwd=cwd,
        env=os.environ | ENVIRONMENT | environment,
        capture_output=True,
        text=text,
        timeout=timeout,
        check=False,
    )
