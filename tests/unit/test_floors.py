"""The oldest versions that are declared are versions that were tried, and the ones in use are not older."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]
TRIED = {"diffusers": "0.41"}  # below, diffusers opens no pipeline of this package
FOLDER = "ALIGHT_FLOORS"  # where `pip install --target` put packages at their oldest version


def floors():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pairs = [each.split(">=") for each in project["dependencies"]]
    return {name: Version(oldest) for name, oldest in pairs}


def test_no_version_is_declared_that_was_never_tried():
    assert {name: floors()[name] for name in TRIED} == {name: Version(oldest) for name, oldest in TRIED.items()}


def test_the_packages_in_use_are_as_new_as_declared():
    older = {name: version(name) for name, oldest in floors().items() if Version(version(name)) < oldest}
    assert not older


@pytest.mark.skipif(FOLDER not in os.environ, reason=f"set {FOLDER} to a folder with packages at their oldest version")
def test_pipelines_open_with_the_oldest_packages():
    paths = [os.environ[FOLDER], str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop(FOLDER)
    found = subprocess.run(
        [sys.executable, "-c", "import diffusers; print(diffusers.__version__)"],
        **{"env": environment, "capture_output": True, "text": True, "check": True},
    )
    assert Version(found.stdout.strip()).release[:2] == floors()["diffusers"].release
    tests = [str(ROOT / "tests" / "unit" / name) for name in ("test_opening.py", "test_pipeline.py")]
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", *tests], env=environment, check=True, cwd=ROOT)
