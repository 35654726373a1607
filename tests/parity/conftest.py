"""Recorded inputs and outputs of the published model: where they lie, and how one case is read."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """The folder of recordings; every test that needs it is skipped where it is absent."""
    folder = os.environ.get("ALIGHT_PARITY_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"no recordings of the published model at {folder or 'a known place'} (set ALIGHT_PARITY_DIR)")
    return Path(folder)


@pytest.fixture(scope="session")
def read_case(parity_dir: Path):
    """`read_case("transformer/base")` gives the case's tensors and its JSON description."""

    def read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors = parity_dir / f"{name}.safetensors"
        description = parity_dir / f"{name}.json"
        return (
            load_file(tensors) if tensors.exists() else {},
            json.loads(description.read_text()) if description.exists() else {},
        )

    return read
