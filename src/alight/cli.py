"""The command line: one subcommand per stage; parse, build the configuration, call the stage.

Nothing heavy is imported before a stage runs, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from itertools import pairwise
from typing import Any

from alight.config import JOBS, Section
from alight.recipes import explain, read_recipe, validate
from alight.runtime.errors import InputError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # the shell's convention for a process ended by Ctrl-C


@dataclass(frozen=True)
class Command:
    """A subcommand: where its code is, and what it is for."""

    module: str  # has a function `run(config)`
    summary: str
    report: str = ""  # what to say when it is done; {path} is the artifact's folder, empty = what `run` returns
    distributed: bool = False  # whether several processes can share the work
    answers: bool = False  # whether `run` returns an answer with `as_data`, which --json prints, and an `exit_code`
    operand: str = ""  # the option that a first word without dashes stands for


COMMANDS = {
    "quickstart": Command(
        "alight.quickstart",
        "the whole arrow on embedded digits, in minutes, without a GPU",
        "Report: {path}/report.html",
    ),
    "foundation train": Command(
        "alight.stages.train_foundation", "a small vision foundation model of your own images", "Foundation: {path}"
    ),
    "tokenizer train": Command(
        "alight.stages.train_tokenizer",
        "a tokenizer aligned with a foundation model",
        "Tokenizer: {path}",
        distributed=True,
    ),
    "tokenizer evaluate": Command(
        "alight.stages.evaluate_tokenizer",
        "how well tokenizers reconstruct images, side by side",
        "Report: {path}/report.html",
        distributed=True,
    ),
    "tokenizer study": Command(
        "alight.study", "what alignment changes: a plain and an aligned tokenizer", "Report: {path}/report.html"
    ),
    "latents extract": Command(
        "alight.stages.extract_latents", "images to latents, once", "Latents: {path}", distributed=True
    ),
    "latents inspect": Command("alight.stages.inspect_latents", "what is in a folder of latents"),
    "transformer train": Command(
        "alight.stages.train_transformer", "LightningDiT on latents", "Transformer: {path}", distributed=True
    ),
    "sample": Command(
        "alight.stages.generate_samples",
        "images from a trained transformer",
        "Samples: {path}/images",
        distributed=True,
    ),
    "evaluate": Command("alight.stages.evaluate", "figures and a report", "Report: {path}/report.html"),
    "convert": Command("alight.stages.convert", "published checkpoints and latents, in and out", "Converted: {path}"),
    "plan": Command("alight.plan.estimate", "what a training recipe costs on this machine", answers=True),
    "doctor": Command("alight.doctor.examine", "what is wrong, and its mend", answers=True),
    "serve": Command("alight.web.serve", "a pipeline in the browser", operand="--pipeline"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code: 0, 2 for a user's mistake, 130 or 143 after a signal."""
    try:
        code = dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except InputError as error:
        print(f"alight: {error}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt as interrupt:
        print("alight: interrupted.", file=sys.stderr)
        code = getattr(interrupt, "exit_code", EXIT_INTERRUPTED)
    sys.exit(code)


def dispatch(arguments: list[str]) -> int:
    """Find the command, build its configuration from recipe and overrides, and run it."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"alight {metadata.version('alight')}")
        return 0
    name, rest = _split_command(arguments)
    command = COMMANDS[name]
    if command.operand and rest and not rest[0].startswith("-"):
        rest = [command.operand, *rest]
    as_json = command.answers and "--json" in rest
    config, quiet = parse(name, [argument for argument in rest if not (as_json and argument == "--json")])
    rank, world_size = (int(os.environ.get(key, default)) for key, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if world_size > 1 and not command.distributed:
        raise InputError(f"'alight {name}' runs in one process. Start it without torchrun.")
    _set_up_logging(quiet or rank > 0)
    run: Callable[[Any], Any] = import_module(command.module).run
    result = run(config)
    if rank == 0:
        if as_json:
            print(json.dumps(result.as_data(), indent=2, allow_nan=False))
        else:
            print(command.report.format(path=result.path) if command.report else result)
    return result.exit_code if command.answers else 0


def parse(name: str, arguments: list[str]) -> tuple[Section, bool]:
    """The configuration of a command: its defaults, then the recipe, then dotted overrides."""
    import tyro
    from pydantic import ValidationError

    recipe, arguments = _take_option(arguments, "--config")
    quiet = "--quiet" in arguments
    arguments = [argument for argument in arguments if argument != "--quiet"]
    kind, source = JOBS[name], f"alight {name}"
    values: dict[str, Any] = {}
    if recipe is None and name == "quickstart":
        recipe = "quickstart"
    if recipe is not None:
        job, values = read_recipe(recipe)
        source = recipe
        if job != name:
            raise InputError(f"The recipe {recipe} is for 'alight {job}', not for 'alight {name}'.")
    default = validate(kind, values, source)
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            config = tyro.cli(
                kind,
                prog=f"alight {name}",
                description=f"{kind.__doc__}\n\nA recipe (--config FILE, or the name of a shipped one) changes "
                "the defaults shown here; options change the recipe. --quiet shows results only.",
                default=default,
                args=_spell_out_flags(kind, arguments),
                config=(tyro.conf.FlagConversionOff,),
            )
    except ValidationError as error:
        raise InputError(explain(kind, error)) from error
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, ValidationError):
            cause = cause.__context__
        if cause is not None:  # tyro printed the refusal of a section in a box; say it like every other mistake
            raise InputError(explain(kind, cause)) from stop
        sys.stderr.write(boxed.getvalue())
        raise
    return config, quiet


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: alight COMMAND [--config RECIPE] [--KEY VALUE ...]",
            "",
            "Aligned latents and LightningDiT: train a tokenizer and a transformer on its latents, sample, measure.",
            "",
            *lines,
            "",
            "alight COMMAND --help lists every option with its default; alight --version says which version this is.",
        ]
    )


def _split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """The command's one or two words, and the rest."""
    import difflib

    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name, arguments[words:]
    given = " ".join(word for word in arguments[:2] if not word.startswith("-"))
    group = [name for name in COMMANDS if name.split()[0] == arguments[0]]
    nearest = difflib.get_close_matches(given, COMMANDS, n=1, cutoff=0.4)
    if group and given in (arguments[0], ""):
        raise InputError(f"'alight {arguments[0]}' needs one more word: {', '.join(group)}.")
    raise InputError(
        f"There is no command '{given or arguments[0]}'.{f' Did you mean {nearest[0]!r}?' if nearest else ''} "
        "'alight --help' lists them."
    )


def _spell_out_flags(kind: type[Section], arguments: list[str]) -> list[str]:
    """Let what is on or off stand alone: `--network` is `--network True`."""
    switches = {f"--{name.replace('_', '-')}" for name, field in kind.model_fields.items() if field.annotation is bool}
    spelt = []
    for argument, following in pairwise([*arguments, "--"]):
        spelt += [argument, "True"] if argument in switches and following.startswith("--") else [argument]
    return spelt


def _take_option(arguments: list[str], name: str) -> tuple[str | None, list[str]]:
    """Take `--name VALUE` or `--name=VALUE` out of the arguments."""
    for index, argument in enumerate(arguments):
        if argument == name:
            if index + 1 >= len(arguments):
                raise InputError(f"{name} needs a value: the path or the name of a recipe.")
            return arguments[index + 1], arguments[:index] + arguments[index + 2 :]
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}="), arguments[:index] + arguments[index + 1 :]
    return None, arguments


def _set_up_logging(quiet: bool) -> None:
    from alight.runtime.console import show_progress

    show_progress(logging.WARNING if quiet else logging.INFO)
