"""The wheel: what is in it, and that it works where the repository is not."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from alight.config.recipes import recipes_folder

pytest.importorskip("hatchling", reason="building the wheel needs hatchling")
REPOSITORY = Path(__file__).parents[2]
SOURCES = ("src", "configs", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


def run(*command, **options):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the repository, and nothing of it is found by chance."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, target = REPOSITORY / name, folder / "sources" / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, ignore=ignored) if source.is_dir() else shutil.copy(source, target)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", folder / "sources", *options)
    shutil.rmtree(folder / "sources")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Run the installed package with Python's options, in another folder, with the present environment's libraries."""
    target, elsewhere = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("elsewhere")
    options = ("--no-deps", "--no-index", "--quiet", "--target", target)
    run(sys.executable, "-m", "pip", "install", *options, wheel)
    environment = os.environ | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def python(*arguments):
        return run(sys.executable, *arguments, cwd=elsewhere, env=environment)

    origin = python("-c", "import alight; print(alight.__file__)").stdout.strip()
    assert origin == str(target / "alight" / "__init__.py")
    return python, elsewhere


def test_everything_that_is_not_code_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    recipes = {path.relative_to(recipes_folder()).as_posix() for path in recipes_folder().rglob("*") if path.is_file()}
    assert {f"alight/configs/{name}" for name in recipes} <= names
    assert {"alight/py.typed", "alight/reporting/report.html", "alight/data/imagenet_classes.txt"} <= names
    licences = {name.rpartition("/")[2] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}
    package = REPOSITORY / "src" / "alight"
    code = {f"alight/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")}
    assert code <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "alight/tests"))]


def test_the_metadata_name_command_and_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = archive.read(f"{info}/METADATA").decode()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert "License-Expression: MIT" in metadata
    assert "alight = alight.cli:main" in entry_points


def test_the_installed_command_knows_its_recipes(installed):
    python, _ = installed
    assert "quickstart" in python("-m", "alight", "--help").stdout
    listed = python("-c", "from alight.config import recipes; print(*recipes.shipped_recipes())").stdout.split()
    assert {"quickstart", "imagenet/transformer_xl_64ep", "own_images/tokenizer"} <= set(listed)
    names = "from alight.data.class_names import imagenet_class_names as names; print(names()[1])"
    assert python("-c", names).stdout.startswith("goldfish")


def test_the_installed_package_runs_the_quickstart(installed, tiny_quickstart):
    python, folder = installed
    result = python("-m", "alight", *tiny_quickstart)
    assert result.stdout.strip() == "Report: runs/quickstart/report/report.html"
    assert (folder / "runs/quickstart/report/report.html").is_file()
