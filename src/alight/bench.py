"""`alight bench` and `alight bench accelerator`: run the benchmarks of the repository that holds this package.

They hold a plain version of the same mathematics, and record what they measure beside themselves with the commit, so
they live with the sources and not in the wheel.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from alight.config import BenchAcceleratorConfig, BenchConfig
from alight.runtime.errors import InputError

REPOSITORY = Path(__file__).parents[2]


def run(config: BenchConfig | BenchAcceleratorConfig) -> Any:
    """Time what the configuration names, and give the tables as text and `as_data`.

    Raises:
        InputError: the repository or the device is not available.
    """
    found = next(
        (folder for folder in (REPOSITORY, Path.cwd()) if (folder / "benchmarks/baseline.py").is_file()), None
    )
    if found is None:
        raise InputError(
            "The benchmarks are in the repository of alight, not in the installed package. Run this command in a copy "
            "of the repository."
        )
    if str(found) not in sys.path:
        sys.path.insert(0, str(found))
    name = "accelerator" if isinstance(config, BenchAcceleratorConfig) else "run"
    return import_module(f"benchmarks.{name}").run(config)
