"""The doctor on the files of runs: damaged weights, shards and checkpoints are found, odd folders are no traceback."""

import json
import os
import random
import shutil
import struct

import pytest
import torch
from safetensors.torch import save_file

from alight.artifacts import write_manifest
from alight.config import DoctorConfig, TrainTransformerConfig
from alight.doctor.artifact_check import safetensors_complaint
from alight.doctor.findings import attempt
from alight.doctor.run_check import run_findings
from alight.outputs import writing_folder
from alight.runtime.files import file_hash
from alight.training.checkpoint import save_checkpoint
from helpers.written import WEIGHTS, write_latents


def write_weights(folder, kind, name=WEIGHTS, **config):
    with writing_folder(folder) as staging:
        tensors = {"a": torch.randn(20, 5), "b": torch.arange(7), "c": torch.zeros(3, dtype=torch.bfloat16)}
        save_file(tensors, staging / name)
        write_manifest(staging, kind, config, file_hash(staging / name))


def write_log(folder):
    (folder / "training").mkdir(parents=True, exist_ok=True)
    lines = [{"step": 10 * (n + 1), "mse": 1.0, "loss": 1.0, "grad_norm": 1.0} for n in range(30)]
    (folder / "training" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = TrainTransformerConfig(latents=folder.parent / "latents").model_dump(mode="json")
    progress = {"state": {}, "config": config, "seconds": 1.0, "non_finite": 0}
    for step in (200, 300):
        save_checkpoint(folder / "training", step, progress, keep=2)
    return config


@pytest.fixture
def run(tmp_path):
    """The folder of a whole run, with every kind of artifact that records a hash."""
    folder = tmp_path / "run"
    config = write_log(folder / "transformer")
    write_weights(folder / "transformer", "transformer", **config)
    write_weights(folder / "tokenizer", "tokenizer")
    write_weights(folder / "foundation", "foundation", "model.safetensors")
    write_latents(folder / "latents", count=40)
    (folder / "pipeline" / "transformer").mkdir(parents=True)
    save_file({"a": torch.randn(20, 5)}, folder / "pipeline" / "transformer" / WEIGHTS)
    return folder


def examine(folder):
    return attempt("run", lambda: run_findings(folder, None))


def problems(folder):
    return [finding for finding in examine(folder) if finding.verdict == "problem"]


DAMAGED = ("transformer/" + WEIGHTS, "tokenizer/" + WEIGHTS, "foundation/model.safetensors")
SHARDS = ("latents/latents_00000.safetensors", "latents/latents_00002.safetensors")
PARTS = ("pipeline/transformer/" + WEIGHTS,)


def test_a_healthy_run_has_no_problems(run):
    assert not problems(run)
    assert not problems(run / "transformer")
    said = " ".join(finding.sentence for finding in examine(run))
    for kind in ("transformer", "tokenizer", "foundation", "latents"):
        assert f"The files of the {kind} in {run / kind} are intact" in said
    assert "2 are intact, the newest of step 300" in said


@pytest.mark.parametrize("keep", [0, 4, 8, 60, 0.5, -1])
@pytest.mark.parametrize("name", DAMAGED + SHARDS + PARTS)
def test_weights_and_shards_that_are_cut_off_are_a_problem(run, name, keep):
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    (found,) = (finding for finding in problems(run) if finding.subject == "files")
    assert str(run / name) in found.sentence


@pytest.mark.parametrize("name", DAMAGED + SHARDS)
def test_a_flipped_bit_in_weights_and_shards_is_a_problem(run, name):
    content = bytearray((run / name).read_bytes())
    content[-3] ^= 4
    (run / name).write_bytes(content)
    (found,) = problems(run)
    assert "damaged" in found.sentence
    assert str(run / name) in found.sentence


@pytest.mark.parametrize("name", DAMAGED + SHARDS)
def test_missing_weights_and_shards_are_a_problem(run, name):
    (run / name).unlink()
    (found,) = (finding for finding in problems(run) if finding.subject == "files")
    assert str((run / name).parent) in found.sentence


def test_a_damaged_checkpoint_is_a_warning_and_no_whole_one_is_a_problem(run):
    place = run / "transformer" / "training"
    newest, older = sorted(place.glob("*.pt"), reverse=True)
    newest.write_bytes(newest.read_bytes()[:100])
    findings = {finding.subject: finding for finding in examine(run / "transformer")}
    assert findings["checkpoints"].verdict == "warning"
    assert "1 of 2 are damaged (of step 300)" in findings["checkpoints"].sentence
    older.with_suffix(".sha256").unlink()
    findings = {finding.subject: finding for finding in examine(run / "transformer")}
    assert findings["checkpoints"].verdict == "problem"


def test_a_manifest_of_any_shape_gives_findings(run):
    manifest = run / "transformer" / "alight.json"
    values = json.loads(manifest.read_text())
    shapes = [
        *(None, [], 7, "text", {}, values | {"kind": None}, values | {"kind": ["transformer"]}),
        *(values | {"config": each} for each in (None, [], "text", {"training": 3}, {"latents": 5})),
        *(
            values | {name: each}
            for name in ("hash", "facts", "inputs", "seconds")
            for each in (None, 3, [1], {"a": []})
        ),
    ]
    for shape in shapes:
        manifest.write_text(json.dumps(shape))
        for folder in (run, run / "transformer"):
            assert examine(folder)
    for text in (b"", b"\xff\xfe", b"{", 100_000 * b"[", b'{"kind": ' + 6000 * b"9" + b"}"):
        manifest.write_bytes(text)
        found = problems(run)
        assert found
        assert not any("Error" in finding.sentence for finding in found)


def test_random_damage_of_a_run_gives_findings_and_never_a_traceback(run):
    rng = random.Random(0)
    files = sorted(path for path in run.rglob("*") if path.is_file())
    for _ in range(120):
        path = rng.choice(files)
        content = path.read_bytes()
        changed = bytearray(content)
        match rng.randrange(4):
            case 0:
                changed = changed[: rng.randrange(len(changed) + 1)]
            case 1:
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            case 2:
                start = rng.randrange(len(changed))
                changed[start : start + 20] = rng.randbytes(rng.randrange(40))
            case 3:
                changed = bytearray(rng.randbytes(50))
        path.write_bytes(changed)
        for finding in (*examine(run), *examine(run / "transformer")):
            assert "could not be checked" not in finding.sentence, (path, finding)
        path.write_bytes(content)


def test_odd_folders_give_findings(tmp_path):
    empty, file, odd = tmp_path / "empty", tmp_path / "file", tmp_path / "odd"
    empty.mkdir()
    file.write_text("text")
    (odd / "training" / "log.jsonl").mkdir(parents=True)
    (odd / "alight.json").mkdir()
    fifo = tmp_path / "fifo"
    (fifo / "training").mkdir(parents=True)
    os.mkfifo(fifo / "alight.json")
    os.mkfifo(fifo / "training" / "log.jsonl")
    os.mkfifo(fifo / "model.safetensors")
    for folder in (empty, file, odd, fifo, tmp_path / "none", tmp_path):
        found = problems(folder)
        assert found, folder
        assert not any("could not be checked" in finding.sentence for finding in found), found


def test_the_command_finds_truncated_weights(run):
    from alight.doctor import examine as doctor

    (run / "transformer" / WEIGHTS).write_bytes(b"")
    result = doctor.run(DoctorConfig(run=run / "transformer", device="cpu"))
    assert result.exit_code == 1
    assert "damaged" in str(result)


# --- the structure of safetensors ---------------------------------------------------------------------------------


def file_of(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start, end, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (b"not json", 0),
        (b"\xff\xff", 0),
        (b"[]", 0),
        (b"[" * 50_000, 0),
        ({"a": 1}, 0),
        ({"a": {}}, 0),
        ({"a": entry(0, 8) | {"data_offsets": [0, "8"]}}, 8),
        ({"a": entry(0, 8) | {"data_offsets": [8, 0]}}, 8),
        ({"a": entry(0, 8) | {"shape": None}}, 8),
        ({"a": entry(0, 8) | {"shape": [-2]}}, 8),
        ({"a": entry(0, 8, shape=[3])}, 8),
        ({"a": entry(0, 8, dtype=["F32"])}, 8),
        ({"a": entry(4, 8)}, 8),
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12),
        ({"a": entry(0, 8)}, 7),
        ({"a": entry(0, 8)}, 9),
    ],
    ids=range(16),
)
def test_a_file_that_is_no_safetensors_file_is_told(tmp_path, header, size):
    assert safetensors_complaint(file_of(tmp_path / "x.safetensors", header, bytes(size))) is not None


def test_complete_files_have_no_complaint(tmp_path):
    path = tmp_path / "x.safetensors"
    for tensors in ({}, {"a": torch.zeros(0)}, {"a": torch.zeros(2, 3), "b": torch.ones(5, dtype=torch.bool)}):
        save_file(tensors, path, metadata={"format": "pt"})
        assert safetensors_complaint(path) is None
    file_of(path, {"a": entry(0, 8, dtype="F4_OF_TOMORROW")}, bytes(8))
    assert safetensors_complaint(path) is None
    shutil.copy(path, tmp_path / "y.safetensors")
