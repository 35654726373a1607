"""Every command that writes, against folders that are not its own: nothing of anybody's is lost or mixed."""

import errno
import fcntl
import json
import os
import shutil

import pytest

from alight.artifacts import is_complete, read_artifact, read_manifest, verify_files
from alight.cli import main
from helpers import warm

FOREIGN = [
    *("report.html", "report.json", "grid.png", "config.json", "diffusion_pytorch_model.safetensors", "index.json"),
    *("README.md", "pipeline.py", "samples.npz", "transformer/config.json", "images/000000.png", "training/notes.txt"),
    *("latents_00000.safetensors", "unfinished/notes.txt", "foundation/notes.txt", "report/report.html"),
]
DIGITS = ("--images.source", "digits", "--images.size", "32")
STEPS = ("--training.steps", "2", "--training.global-batch-size", "4")
DRAW = ("--draw.samples-per-class", "1", "--draw.sampling.num-inference-steps", "2")


def commands(run):
    """Each writer with inputs of a finished run, by name: its words, and the folder that it is made from."""
    tokenizer, latents, transformer = run / "tokenizer", run / "latents", run / "transformer"
    tiny = (
        "--model.hidden-size",
        "16",
        "--model.num-layers",
        "1",
        "--model.num-heads",
        "2",
        "--model.patch-size",
        "1",
    )
    return {
        "foundation": (("foundation", "train", *DIGITS, *STEPS), None),
        "tokenizer": (("tokenizer", "train", *DIGITS, *STEPS, "--init-from", tokenizer), tokenizer),
        "latents": (("latents", "extract", *DIGITS, "--flips", "True", "--tokenizer", tokenizer), tokenizer),
        "transformer": (
            ("transformer", "train", "--latents", latents, *STEPS, "--model.preset", "None", *tiny),
            latents,
        ),
        "samples": (
            ("sample", "--transformer", transformer, "--tokenizer", tokenizer, "--samples-per-class", "1")
            + ("--sampling.num-inference-steps", "2"),
            transformer,
        ),
        "report": (("evaluate", "--samples", run / "samples", *DIGITS), run / "samples"),
        "tokenizer report": (
            ("tokenizer", "evaluate", "--tokenizer", tokenizer, *DIGITS),
            tokenizer,
        ),
        "latents report": (("latents", "inspect", "--latents", latents), latents),
        "reference": (("evaluate", "reference", "--latents", latents, "--tokenizer", tokenizer), latents),
        "tune": (("tune", run / "pipeline", *DIGITS, *DRAW, "--store", "False"), run / "pipeline"),
        "export": (("export", run, "--reconstructions", "0"), run),
        "published latents": (
            ("convert", "--kind", "latents", "--to", "published", "--source", latents),
            latents,
        ),
    }


NAMES = list(commands(__import__("pathlib").Path()))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def own_run(finished_quickstart, tmp_path_factory):
    """A finished run that these tests may point commands at."""
    return shutil.copytree(finished_quickstart[0], tmp_path_factory.mktemp("run") / "run")


@pytest.mark.parametrize("name", [*NAMES, "quickstart", "study"])
def test_files_of_somebody_else_are_never_touched(own_run, refused, tiny_quickstart, tmp_path, name):
    words = {"quickstart": (tiny_quickstart, None), "study": (("tokenizer", "study"), None)} | commands(own_run)
    folder = tmp_path / "mine"
    for file in FOREIGN:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(f"precious {file}")
    before = contents(folder)
    assert "new or an empty folder" in refused(*words[name][0], "--output", folder)
    assert contents(folder) == before


@pytest.mark.parametrize("name", [name for name in NAMES if name != "foundation"])
def test_inputs_and_the_folders_around_them_are_never_outputs(own_run, refused, name):
    words, source = commands(own_run)[name]
    before = contents(own_run)
    for output in (source, source.parent, source / "new", source / ".." / source.name):
        refused(*words, "--output", output)
    assert contents(own_run) == before


@pytest.mark.parametrize("name", ["latents", "samples", "export", "report"])
@pytest.mark.parametrize("tries", [2, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_two_processes_never_write_into_one_folder(own_run, tmp_path, name, tries):
    words = [str(word) for word in commands(own_run)[name][0]]
    for number in range(tries):
        output = tmp_path / str(number)
        processes = [warm.AlightProcess([*words, "--output", str(output)]) for _ in range(2)]
        errors = [process.communicate()[1] for process in processes]
        codes = sorted(process.returncode for process in processes)
        assert codes in ([0, 0], [0, 2]), errors  # the second one is refused, or comes when the first is done
        assert not any("Traceback" in text for text in errors), errors
        if is_complete(output):
            verify_files(read_manifest(output))
        assert not [path.name for path in output.rglob(".*")]


def test_two_different_extractions_never_mix(own_run, tmp_path):
    for number in range(4):
        output = str(tmp_path / str(number))
        words = [str(word) for word in commands(own_run)["latents"][0]]
        processes = [
            warm.AlightProcess([*words, "--shard-size", size, "--seed", seed, "--output", output])
            for size, seed in (("100", "0"), ("70", "1"))
        ]
        errors = [process.communicate()[1] for process in processes]
        assert sorted(process.returncode for process in processes) == [0, 2], errors
        artifact = read_artifact(tmp_path / str(number), "latents")
        index = json.loads((tmp_path / str(number) / "index.json").read_text())
        assert index["shards"][0]["count"] == artifact.config["shard_size"]


def test_a_quickstart_without_its_pipeline_makes_it_again(alight, tiny_quickstart, tmp_path):
    words, pipeline = [*tiny_quickstart, "--output", tmp_path / "run"], tmp_path / "run" / "pipeline"
    assert alight(*words).returncode == 0
    whole = contents(pipeline)
    (pipeline / "alight.json").unlink()  # as a process leaves it that is killed while the pipeline is written
    (pipeline / "started.json").write_text('{"kind": "pipeline"}')
    shutil.rmtree(pipeline / "tokenizer")
    for _ in range(2):
        result = alight(*words)
        assert result.returncode == 0, result.stderr
        again = contents(pipeline)
        assert again.keys() == whole.keys()
        assert all(again[name] == data for name, data in whole.items() if name != "alight.json")
        shutil.rmtree(pipeline)


FAULTS = [errno.EIO, errno.ESTALE, errno.EXDEV, errno.EINVAL, errno.ENOSPC, errno.ENOLCK, errno.EOPNOTSUPP]


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("name", ["latents", "samples", "export", "report"])
def test_a_failing_disk_is_one_paragraph_and_the_next_run_succeeds(
    own_run, tmp_path, monkeypatch, capsys, name, number
):
    words = [str(word) for word in (*commands(own_run)[name][0], "--output", tmp_path / "run")]
    call = "flock" if number in (errno.ENOLCK, errno.EOPNOTSUPP) else "fsync" if number == errno.EINVAL else "replace"
    before = contents(own_run)

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl if call == "flock" else os, call, fail)
        code, errors = run_here(words, capsys)
    if call == "flock":
        assert code == 0, errors  # without locks the work goes on
    else:
        assert code == 2, errors
        assert "Traceback" not in errors
        assert "Cannot write to" in errors
        code, errors = run_here(words, capsys)
        assert code == 0, errors
    assert contents(own_run) == before
    assert not [path for path in (tmp_path / "run").rglob(".*")]


def run_here(words, capsys):
    with pytest.raises(SystemExit) as left:
        main(words)
    return left.value.code, capsys.readouterr().err


def test_an_error_of_the_system_that_no_stage_expects_is_a_sentence(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/somewhere/images")

    monkeypatch.setattr("alight.show.info.run", fail)
    code, errors = run_here(["info", str(tmp_path)], capsys)
    assert code == 2
    assert errors.count("\n") == 1
    assert "/somewhere/images" in errors
