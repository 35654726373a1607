"""The examples run, from another folder, with tiny settings."""

import contextlib
import io
import multiprocessing
import os
import runpy
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.pictures import write_photographs

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_script(name: str, arguments: list[str], folder: Path) -> str:
    """Run an example as `python NAME ARGUMENTS` would in a folder; returns what it printed."""
    os.chdir(folder)
    sys.argv = [name, *arguments]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return said.getvalue()


@pytest.fixture(scope="module")
def run_example():
    """Runs examples in a process of their own, one after the other, so that torch is imported once."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:

        def run(name: str, *arguments: object, cwd: Path) -> str:
            return pool.submit(run_script, name, list(map(str, arguments)), cwd).result(timeout=300)

        yield run


def test_minimal_flow(run_example, tmp_path):
    said = run_example("minimal_flow.py", "--steps", 2, "--output", "digits.png", cwd=tmp_path)
    assert "step    1  mse" in said
    picture = np.asarray(Image.open(tmp_path / "digits.png"))
    assert picture.shape == (10 * 34 - 2, 12 * 34 - 2, 4)
    assert picture[..., 0].std() > 0


def test_train_on_folder(run_example, tmp_path):
    write_photographs(tmp_path / "photographs-of-mine", number=8, size=(50, 60))
    said = run_example("train_on_folder.py", "photographs-of-mine", "--effort", 0.004, "--output", "out", cwd=tmp_path)
    assert said.strip().endswith("Report: out/report/report.html")
    assert (tmp_path / "out" / "report" / "report.html").is_file()
    assert (tmp_path / "out" / "pipeline" / "model_index.json").is_file()


def test_sample_pipeline(run_example, finished_quickstart, tmp_path):
    arguments = ["--classes", "3", "7", "--per-class", 3, "--steps", 2, "--output", "grid.png"]
    said = run_example("sample_pipeline.py", finished_quickstart[0] / "pipeline", *arguments, cwd=tmp_path)
    assert said.startswith("6 images, ")
    assert Image.open(tmp_path / "grid.png").size == (3 * 34 - 2, 2 * 34 - 2)


def test_tour(finished_quickstart, tmp_path, monkeypatch):
    """Every cell runs on a fresh quickstart, and the outputs that are kept are those of these cells."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient, of the extra 'dev', runs notebooks")
    pytest.importorskip("ipykernel", reason="ipykernel, of the extra 'dev', runs notebooks")
    import nbformat

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(finished_quickstart[0])
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    kept = [len(_shown(cell)) for cell in notebook.cells]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert [len(_shown(cell)) for cell in notebook.cells] == kept
    assert sum(kept) == 4, "the notebook in the repository has lost its outputs"


def _shown(cell) -> list:
    """The pictures of a cell; text may come in pieces."""
    return [output for output in cell.get("outputs", []) if output["output_type"] == "display_data"]
