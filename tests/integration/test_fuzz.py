"""Damage of every kind to every file of a run: it is found, or the result is the same to the bit."""

import json
import random
import shutil

import pytest

from helpers import warm

VALUES = [
    *(None, [], {}, 0, -1, 1.5, True, "", "x", [[]], 10**400),
    *("\ud800", "../../../x", "/etc/passwd", {"a": {"b": []}}),
]
COMMANDS = {  # where a damaged file is read: the command, and the folder of its result
    "tokenizer": ("sample", "latents", "info"),
    "latents": ("train", "inspect", "info"),
    "transformer": ("sample", "info", "export"),
    "samples": ("evaluate", "info"),
    "report": ("info", "report"),
    "pipeline": ("export", "evaluate pipeline", "info"),
}
SECONDS = 60  # for a command that takes two; a hang is what this finds


@pytest.fixture(scope="module")
def run(finished_quickstart, tmp_path_factory):
    """A finished run that these tests may damage."""
    return shutil.copytree(finished_quickstart[0], tmp_path_factory.mktemp("fuzz") / "run")


def words(command, run, part, output):
    """The words of a command that reads `run / part`."""
    few = ("--sampling.num-inference-steps", "2")
    tokenizer = ("--tokenizer", run / "tokenizer")
    digits = ("--images.source", "digits", "--images.size", "32")
    sizes = {"model.preset": None, "model.hidden-size": 16, "model.num-layers": 1, "model.num-heads": 2}
    sizes |= {"model.patch-size": 1, "training.steps": 1, "training.global-batch-size": 4}
    tiny = [word for name, size in sizes.items() for word in (f"--{name}", size)]
    return {
        "sample": (
            "sample",
            "--transformer",
            run / "transformer",
            *tokenizer,
            "--samples-per-class",
            1,
            *few,
            *output,
        ),
        "latents": ("latents", "extract", *digits, *tokenizer, *output),
        "train": ("transformer", "train", "--latents", run / "latents", *tiny, *output),
        "inspect": ("latents", "inspect", "--latents", run / "latents"),
        "evaluate": ("evaluate", "--samples", run / "samples", *digits, *output),
        "evaluate pipeline": (
            *("evaluate", "--pipeline", run / "pipeline", *digits, "--draw.samples-per-class", 1),
            *("--draw.sampling.num-inference-steps", 2, *output),
        ),
        "export": ("export", run / "pipeline", "--reconstructions", 0, *output),
        "info": ("info", run / part),
        "report": ("report", run / "report"),
    }[command]


def results(folder):
    """The files that must not change without a word: weights, latents and images."""
    kept = ("*.safetensors", "images/*.png")
    return {str(path.relative_to(folder)): path.read_bytes() for kind in kept for path in folder.rglob(kind)}


def damage(path, rng):
    """Change a file at random: bits, length, or a value of its JSON."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(["bit", "cut", "byte", "value", "value", "value"] if path.suffix == ".json" else ["bit", "cut"])
    if kind == "bit" or not data:
        data = data or bytearray(b"\0")
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[rng.randrange(len(data))] = rng.choice(b'{}[]",:0 \xff\x00')
    elif kind == "cut":
        data = data[: rng.randrange(len(data))]
    else:
        data = bytearray(json.dumps(changed(json.loads(data), rng)).encode())
    path.write_bytes(data)
    return kind


def changed(value, rng, depth=0):
    """A copy of JSON values in which one of them is replaced, removed or added."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15 * depth:
        return rng.choice(VALUES)
    copy = value.copy()
    key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    match rng.randrange(6):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, dict):
            copy["more"] = rng.choice(VALUES)
        case _:
            copy[key] = changed(copy[key], rng, depth + 1)
    return copy


@pytest.mark.parametrize(
    ("first", "mutations"), [(0, 24), pytest.param(1000, 500, marks=pytest.mark.exhaustive)], ids=["few", "many"]
)
def test_damage_is_found_or_harmless(run, tmp_path, first, mutations):
    expected = {}
    for part, commands in COMMANDS.items():
        for command in commands:
            output = tmp_path / "whole" / part / command
            result = execute(command, run, part, output)
            assert result.returncode == 0, (command, result.stderr)
            expected[part, command] = results(output)
    around = snapshot(run.parent)
    for seed in range(first, first + mutations):
        rng = random.Random(seed)
        part = rng.choice(list(COMMANDS))
        files = sorted(path for path in (run / part).rglob("*") if path.is_file() and "training" not in path.parts)
        path, command = rng.choice(files), rng.choice(COMMANDS[part])
        intact, output = path.read_bytes(), tmp_path / str(seed)
        kind = damage(path, rng)
        told = (seed, str(path.relative_to(run)), kind, command)
        result = execute(command, run, part, output)
        assert result.returncode in (0, 2), (told, result.stderr)
        assert "Traceback" not in result.stderr, (told, result.stderr)
        if result.returncode == 0:
            assert results(output) == expected[part, command], (told, result.stderr)
        path.write_bytes(intact)
        assert snapshot(run.parent) == around, told
        shutil.rmtree(output, ignore_errors=True)


def execute(command, run, part, output):
    """Run it in a process of its own; a command without a result gets no output."""
    target = () if command in ("info", "report", "inspect") else ("--output", output)
    return warm.run([str(word) for word in words(command, run, part, target)], timeout=SECONDS)


def snapshot(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
