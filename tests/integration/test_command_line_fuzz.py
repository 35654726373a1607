"""Random words for every command: a result or one sentence, never a traceback, a hang, or a file elsewhere."""

import os
import random
import shutil
import signal
import sys
import tempfile
import unicodedata

import pytest
from PIL import Image

from alight.cli import main
from alight.completion import options
from alight.config.commands import COMMANDS

FEW, MANY = 4, 60  # tries of each command
SECONDS = 60  # that one of them may take
NUMBERS = [
    *("0", "-1", "1", "2.5", "1e30", "-1e30", "1e-320", "1e999", "nan", "inf", "-inf", "0x10", "1_000", "٣", "½"),
    *("1,2", "2147483648", "9223372036854775808", "9" * 400, "9" * 5000, "1e", "+", "--1"),
]
TEXTS = [
    *("", " ", "\0", "a\0b", "\n", "\t", "\r\n", "\x1b[2J", "\u202e", "\ud800", "\udcff", "\ufeff", "猫", "e\u0301"),
    *("None", "True", "false", "null", "[]", "{}", "-", "--", "--help", "--config", "%s%n", "$(ls)", "'", '"', "\\"),
    *("x" * 300, "x" * 5000, "猫" * 200, "a/" * 3000, "hf:", "hf:a/b", "hf:a/b:c", "timm:x", "digits", "dinov2-base"),
]
PATHS = [
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/stdin", "/dev", "/proc/self/mem", "/proc/self/environ", ".", ".."),
    *("~", "~/x", "~nobody-of-this-name/x", "../x", "/etc/passwd", "/etc/shadow/x", "{file}/x", "file://{file}"),
    *("{fifo}", "{folder}", "{file}", "{loop}", "{folder}/*", "https://example.invalid/x", "quickstart"),
]
HARMLESS = {  # what keeps a command without inputs from working for minutes
    "quickstart": ("--foundation.images.source", "{folder}"),
    "foundation train": ("--images.source", "{folder}"),
    "tokenizer train": ("--images.source", "{folder}"),
    "study alignment": ("--foundation.images.source", "{folder}"),
    "study frontier": ("--images.source", "{folder}"),
    "study ablation": ("--images.source", "{folder}"),
    "evaluate reference": ("--images.source", "{folder}"),
    "bench": ("--preset", "nothing"),
}
REAL = {  # commands that succeed in seconds as they stand here
    "sample": (
        *("--transformer", "{run}/transformer", "--tokenizer", "{run}/tokenizer", "--classes", "3"),
        *("--samples-per-class", "2", "--sampling.num-inference-steps", "2", "--trajectory-images", "0"),
    ),
    "evaluate": ("--samples", "{run}/samples", "--images.source", "digits", "--images.size", "32"),
    "evaluate reference": ("--images.source", "digits", "--images.size", "32"),
    "tokenizer evaluate": (
        *("--tokenizer", "{run}/tokenizer", "--images.source", "digits", "--images.size", "32"),
        *("--linear-map-images", "40"),
    ),
    "latents extract": ("--tokenizer", "{run}/tokenizer", "--images.source", "{images}", "--images.size", "32"),
    "latents inspect": ("--latents", "{run}/latents"),
    "tune": (
        *("--pipeline", "{run}/pipeline", "--images.source", "digits", "--images.size", "32", "--solvers", "euler"),
        *("--draw.samples-per-class", "1", "--draw.sampling.num-inference-steps", "1", "--guidance-scales", "1"),
        *("--guidance-intervals", "0", "1", "--timestep-shifts", "1", "--steps", "1"),
    ),
    "convert": ("--to", "published", "--source", "{run}/transformer"),
    "export": ("--pipeline", "{run}", "--reconstructions", "1"),
    "report": ("--folders", "{run}/report"),
    "info": ("--path", "{run}/samples"),
    "info images": ("--source", "{images}"),
}
SLOW = ("--push-to-hub", "--images.workers", "--density-runs")  # honest work of minutes, or of others
watched: dict[str, object] = {"root": None, "written": []}


def _watch(event, arguments):
    """Note every path that is opened for writing, made, moved or removed outside of the test's own folder."""
    root = watched["root"]
    if root is None:
        return
    paths = []
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        paths = [arguments[0]]
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.symlink", "os.link"):
        paths = [arguments[0]]
    elif event in ("os.rename", "os.link", "shutil.rmtree", "shutil.move"):
        paths = [each for each in arguments[:2] if isinstance(each, str | bytes | os.PathLike)]
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            full = os.path.realpath(os.fsdecode(path))
            if not full.startswith((root, "/dev/", "/proc/")) and "__pycache__" not in full:
                watched["written"].append((event, full))


sys.addaudithook(_watch)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A folder of its own to work in, with things in it that trouble programs."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("work", "home", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for variable, name in (("HOME", "home"), ("TMPDIR", "temporary"), ("ALIGHT_CACHE", "cache")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115 (ends with the test)
    yield {name: str(tmp_path / name) for name in ("folder", "file", "fifo", "loop")}
    assert not watched["written"]


def value(rng, choices):
    """A word for an option: one of its choices, or something else altogether."""
    kind = rng.random()
    if choices and kind < 0.3:
        return rng.choice(choices)
    if kind < 0.9:
        return rng.choice(rng.choice((NUMBERS, TEXTS, PATHS)))
    return "".join(
        chr(rng.choice((rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x110000)))) for _ in range(9)
    )


def words(rng, name):
    """A command with a few options of its own and random values."""
    known = [(option, found) for option, found in options(COMMANDS[name].config) if not option.endswith("output")]
    known = [(option, found) for option, found in known if option not in ("--network", "--push-to-hub")]
    chosen = rng.sample(known, min(len(known), rng.randrange(5)))
    given = [word for option, choices in chosen for word in (option, *_some(rng, choices))]
    if rng.random() < 0.15:
        given += ["--config", value(rng, ())]
    if rng.random() < 0.1:
        given.insert(0, value(rng, ()))
    given += [rng.choice(("--quiet", "--json", "--verbose", "--quiet", "--quiet"))]
    option, harmless = HARMLESS.get(name, ("", ""))
    return [*name.split(), *given, *([option, harmless] if option else [])]


def _some(rng, choices):
    return [value(rng, choices) for _ in range(rng.choice((1, 1, 1, 1, 0, 2, 3)))]


def placed(word, places):
    """A word with the place that it names."""
    for name, path in places.items():
        word = word.replace(f"{{{name}}}", path)
    return word


def ended(arguments, capsys):
    """The exit code of a command, and what it wrote to the error stream."""

    def stop(*_):
        raise AssertionError(f"{arguments} takes more than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with pytest.raises(SystemExit) as left:
            main(arguments)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return left.value.code, capsys.readouterr().err


TRIES = pytest.mark.parametrize("tries", [FEW, pytest.param(MANY, marks=pytest.mark.exhaustive)], ids=["few", "many"])


def attempt(arguments, name, root, capsys):
    """Run a command and check its manners; returns the exit code."""
    watched["root"], watched["written"] = str(root), []
    try:
        code, error = ended(arguments, capsys)
    except BaseException as unexpected:
        raise AssertionError(f"{arguments}: {unexpected!r}") from unexpected
    finally:
        watched["root"] = None
    assert code in (0, 2) or (name == "doctor" and code == 1), arguments
    assert "Traceback" not in error or "--verbose" in arguments, (arguments, error)
    assert not watched["written"], (arguments, watched["written"])
    assert not [each for each in error if unicodedata.category(each) == "Cc" and each not in "\n\t\r"], arguments
    return code


@TRIES
@pytest.mark.parametrize("name", COMMANDS)
def test_random_words_end_in_a_result_or_a_sentence(tries, name, places, tmp_path, capsys):
    rng = random.Random(f"{name}{tries}")
    codes = []
    for number in range(tries):
        arguments = [placed(word, places) for word in words(rng, name)]
        if "output" in COMMANDS[name].config.model_fields:
            arguments += ["--output", str(tmp_path / f"output{number}")]
        codes.append(attempt(arguments, name, tmp_path, capsys))
    assert 2 in codes or tries == FEW


@TRIES
@pytest.mark.parametrize("name", REAL)
def test_one_random_option_beside_real_inputs(tries, name, places, finished_quickstart, tmp_path, capsys):
    rng = random.Random(f"real {name}{tries}")
    places["run"] = str(shutil.copytree(finished_quickstart[0], tmp_path / "run"))
    places["images"] = str(tmp_path / "images")
    for number in range(3):
        (tmp_path / "images" / str(number)).mkdir(parents=True)
        Image.new("RGB", (32, 32), (80 * number, 9, 9)).save(tmp_path / "images" / str(number) / "a.png")
    known = [(option, found) for option, found in options(COMMANDS[name].config) if not option.endswith("output")]
    known = [(option, found) for option, found in known if option not in SLOW]
    codes = []
    for number in range(tries):
        option, choices = rng.choice(known)
        given = [option, *_some(rng, choices)] if number else []
        if number and rng.random() < 0.4:  # one part of the run in place of another
            parts = [f"{{run}}/{part}" for part in ("tokenizer", "latents", "transformer", "samples", "report", "")]
            given[1:] = [rng.choice(parts)]
        output = (
            ["--output", str(tmp_path / f"output{number}")] if "output" in COMMANDS[name].config.model_fields else []
        )
        arguments = [placed(word, places) for word in (*name.split(), *REAL[name], *given, *output, "--quiet")]
        codes.append(attempt(arguments, name, tmp_path, capsys))
    assert codes[0] == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_outputs_of_every_name_stay_where_they_belong(name, places, tmp_path, capsys):
    """Names that no file can have are refused; the others are taken as they are."""
    if "output" not in COMMANDS[name].config.model_fields:
        pytest.skip("writes nothing")
    option, harmless = HARMLESS.get(name, ("", ""))
    for output in ("", "\0", "a\0b", "\ud800", "x" * 300, "猫" * 90, "a/" * 3000, "~nobody-of-this-name/x"):
        given = f"{tmp_path}/{output}" if output and not output.startswith("~") else output
        watched["root"], watched["written"] = str(tmp_path), []
        try:
            extra = [option, placed(harmless, places)] if option else []
            code, error = ended([*name.split(), *extra, "--output", given], capsys)
        finally:
            watched["root"] = None
        assert code == 2
        assert "Traceback" not in error
        assert "output" in error, (output[:10], error)
        assert not watched["written"]
