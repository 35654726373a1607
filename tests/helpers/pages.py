"""Reads the pages of the documentation, and runs what they tell the reader to type.

A fenced block in `bash` or `python` runs, unless the line above it is an HTML comment that says why not:

    <!-- run: install -->   it installs the package
    <!-- run: gpu -->       it is meant for GPUs, or a cluster
    <!-- run: download -->  it needs files or a network that are not there
    <!-- run: long -->      it takes minutes
    <!-- run: server -->    it goes on until it is stopped

`<!-- run: tiny -->` lets it run with a few steps of a small model instead.
"""

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

NOT_RUN = {"install", "gpu", "download", "long", "server"}
TINY = {  # what a block that is marked as tiny runs with, at the end of each command
    "foundation train": "--model.hidden-size 48 --model.num-layers 1 --images.size 32 --training.steps 2 "
    "--training.global-batch-size 4",
    "tokenizer train": "--model.block-out-channels 32 32 32 32 --model.level-attention False --images.size 32 "
    "--model.mid-block-attention False --training.steps 2 --training.global-batch-size 4",
    "tokenizer evaluate": "--images.size 32 --linear-map-images 64",
    "latents extract": "--images.size 32",
    "transformer train": "--model.hidden-size 48 --model.num-layers 2 --model.num-heads 3 --training.steps 2 "
    "--training.global-batch-size 4",
    "evaluate": "--images.size 32",
    "sample": "--samples-per-class 1 --sampling.num-inference-steps 2",
    "plan": "--seconds 1",
    "tune": "--images.size 32 --draw.samples-per-class 1 --draw.sampling.num-inference-steps 1 --guidance-scales 1 "
    "--timestep-shifts 1 --solvers euler --steps 1 2",
}

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- run: (\w+) -->\n$")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, the mark above it, and its text."""

    where: str
    language: str
    mark: str | None
    text: str

    @property
    def runs(self) -> bool:
        """Whether a reader, and the test, can run it here and now."""
        return self.mark not in NOT_RUN

    def lines(self) -> Iterator[list[str]]:
        """The words of each line of shell, continued lines joined."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that someone could run, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        before, (language, code) = text[: fence.start()], fence.groups()
        if language in ("bash", "python"):
            mark = _MARK.search(before)
            where = f"{page.relative_to(REPOSITORY)}:{before.count(chr(10)) + 1}"
            found.append(Block(where, language, mark[1] if mark else None, code))
    return found


def links(page: Path) -> list[str]:
    """What a page links to or shows, without anchors, as far as it lies beside it."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in _LINK.findall(text)]
    return [target for target in targets if target and "://" not in target]


def command_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The name of an `alight` command, in one or two words, and its arguments; None if the line starts another."""
    from alight.config.commands import COMMANDS

    if words[0] == "alight":
        arguments = words[1:]
    elif words[0] == "torchrun" and "alight" in words:
        arguments = words[words.index("alight") + 1 :]
    else:
        return None
    two = " ".join(arguments[:2])
    return (two, arguments[2:]) if two in COMMANDS else (arguments[0], arguments[1:])


def run_blocks(folder: Path, page_blocks: list[Block]) -> str:
    """Run blocks one after the other in a folder, in this process; the Python ones of a page share their names.

    Returns:
        What went wrong first, and where; empty if nothing did.
    """
    os.chdir(folder)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in page_blocks:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            if block.language == "python":
                exec(compile(block.text, block.where, "exec"), names)
                continue
            for words in block.lines():
                code = _run_line(words, tiny=block.mark == "tiny")
                if code != 0:
                    return f"{block.where}: {shlex.join(words)} ended with {code}\n{said.getvalue()}"
    return ""


def _run_line(words: list[str], tiny: bool) -> int | str | None:
    from alight.cli import main

    command = command_of(words)
    if command is None or words[0] != "alight":
        return "an error: only alight commands run here; mark the block"
    name, arguments = command
    try:
        main([*name.split(), *arguments, *(shlex.split(TINY.get(name, "")) if tiny else [])])
    except SystemExit as stop:
        return stop.code
    return 0
