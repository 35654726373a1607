"""A user who pastes every proposed command, from a folder of images to a pipeline in the browser."""

import json
import logging
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from alight import cli
from alight.artifacts import find_pipeline, read_artifact
from alight.evaluation.generation_assessment import transformer_advice
from alight.runtime.console import log
from helpers.pictures import digit_images

TOY = {  # what makes each command quick, without changing which folders and images it works on
    "tokenizer train": "--model.block-out-channels 8 8 8 --model.norm-num-groups 4 --model.latent-channels 4 "
    "--model.layers-per-block 1 --model.level-attention False --model.mid-block-attention False "
    "--reconstruction.adversarial-weight 0 --training.steps 2 --training.global-batch-size 4",
    "transformer train": "--model.preset None --model.hidden-size 16 --model.num-layers 1 --model.num-heads 2 "
    "--model.patch-size 1 --training.steps 2 --training.global-batch-size 4 --training.ema-decay None",
    "sample": "--samples-per-class 12 --sampling.num-inference-steps 2",
    "tune": "--draw.samples-per-class 4 --guidance-scales 1 2 --guidance-intervals 0 1 --timestep-shifts 1 "
    "--solvers euler --steps 2",
}
START = (
    "alight foundation train --images.source 'my images' --images.size 32 --model.hidden-size 16 --model.num-layers 1 "
    "--model.num-heads 2 --model.patch-size 8 --training.steps 2 --training.global-batch-size 4"
)
CHAIN = (
    *("foundation train", "tokenizer train", "tokenizer evaluate", "latents extract", "transformer train", "sample"),
    *("evaluate", "export", "serve"),
)


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    """Two classes of 24 pictures, in a folder with a space in its name."""
    monkeypatch.chdir(tmp_path)
    for number, pixels in enumerate(digit_images()[:48]):
        path = Path("my images") / f"kind {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.squeeze()).resize((32, 32)).convert("RGB").save(path)
    return Path("my images")


@pytest.fixture(autouse=True)
def messages_as_before():
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    yield
    log.handlers[:] = handlers
    log.setLevel(level)
    log.propagate = propagate


def command_of(words: list[str]) -> str:
    return next(name for name in (" ".join(words[:2]), words[0]) if name in cli.COMMANDS)


def advised(*reports: str) -> list[str]:
    """The commands in the advice of reports, and that for a transformer which is trained too little."""
    transformer = read_artifact(Path("runs/transformer"), "transformer")
    answers = [json.loads(Path(report, "report.json").read_text())["answer"] for report in reports]
    advice = [text for answer in answers for text in answer["advice"]]
    found = re.findall(r"'(alight [^']+)'", " ".join([*advice, *transformer_advice(transformer, later=False)]))
    assert {command_of(command.split()[1:]) for command in found} == {"tokenizer train", "transformer train"}
    return list(dict.fromkeys(found))


def run(command: str, capfd, toy: bool = True) -> tuple[str, str | None]:
    """Run a command as pasted, with its toy options, and give its name and the proposed one."""
    words = shlex.split(command)[1:]
    name = command_of(words)
    capfd.readouterr()
    assert cli.dispatch([*words, *shlex.split(TOY.get(name, "") if toy else "")]) == 0
    shown = capfd.readouterr()
    assert "Next:" not in shown.out
    proposed = [line.removeprefix("Next: ") for line in shown.err.splitlines() if line.startswith("Next: ")]
    return name, proposed[-1] if proposed else None


def test_every_proposed_command_runs_as_pasted(images, capfd):
    done, command = [], START
    while command is not None and command_of(shlex.split(command)[1:]) != "serve":
        name, command = run(command, capfd)
        done.append(name)
        assert len(done) <= len(CHAIN)
    assert (*done, "serve") == CHAIN
    for advice in advised("runs/tokenizer-report", "runs/report"):
        run(advice, capfd, toy=False)  # goes on with the settings of the run
    config, _ = cli.parse("serve", shlex.split(command)[2:])
    assert find_pipeline(config.pipeline).is_dir()
    assert logging.getLogger("alight") is log


def test_a_command_that_finds_its_output_finished_says_so_and_goes_on_to_the_next(images, capfd):
    proposed = []
    for told in (False, True):
        capfd.readouterr()
        assert cli.dispatch(shlex.split(START)[1:]) == 0
        shown = capfd.readouterr()
        assert ("(finished already, nothing was done)" in shown.out) == told
        assert ("Nothing was done" in shown.err) == told
        proposed.append([line for line in shown.err.splitlines() if line.startswith("Next: ")])
    assert proposed[0] == proposed[1] != []


def test_results_alone_are_shown_where_that_is_asked_for(images, capfd):
    for option in ("--quiet", "--json"):
        assert cli.dispatch([*shlex.split(START)[1:], option]) == 0
        shown = capfd.readouterr()
        assert "Next:" not in shown.out + shown.err
