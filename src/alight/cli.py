"""The command line: one subcommand per stage; parse, build the configuration, call the stage.

Nothing heavy is imported before a stage runs, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from itertools import pairwise
from typing import Any, NamedTuple, get_args

from alight.config.base import Section, is_secret
from alight.config.commands import COMMANDS, FORMER_NAMES
from alight.config.recipes import explain, laid_over, override, read_recipe, validate
from alight.options import suggestion
from alight.runtime.errors import EXIT_BUG, InputError, exit_code, is_out_of_memory
from alight.runtime.terminal import paint, printable, printable_lines, shortened

EXIT_BROKEN_PIPE = 141  # the shell's convention for a process that wrote to a program which had gone
LONGEST_WORD = 100_000  # characters of an argument
COMPLETION = "--print-completion"
_COLOUR = re.compile(r"\033\[[0-9;]*m")


class OutputOptions(NamedTuple):
    """Options of every command that are about its output."""

    quiet: bool = False  # results only
    verbose: bool = False  # also the whole configuration, and where in the code a mistake was noticed
    as_json: bool = False  # the result for programs


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code: 0, 2 for a user's mistake, 130 or 143 after a signal."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # a name that the console cannot show is shown in escapes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if _processes() > 1:  # a lost connection is reported in one paragraph, not by torch with its addresses
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        code = dispatch(words)
    except KeyboardInterrupt as interrupt:
        print("alight: interrupted.", file=sys.stderr)
        code = exit_code(interrupt)
    except Exception as error:
        code = _failed(error, words)
    if code and _processes() > 1:
        from alight.runtime.watch import leave_at_once

        leave_at_once(code)  # the interpreter's end would wait for the other processes
    sys.exit(code)


def _failed(error: Exception, words: list[str]) -> int:
    """Say why the command has failed, in one paragraph unless it is a bug, and return the exit code."""
    if isinstance(error, BrokenPipeError):  # the reader of the output has closed it; nothing is left to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    if isinstance(error, InputError):
        message = str(error)
    elif is_out_of_memory(error):
        reason = shortened(" ".join(str(error).split()) or "the memory is full")
        remedy = "Take smaller batches, a smaller model or smaller images, or a machine with more memory."
        message = f"Out of memory: {reason}. {remedy}"
    elif isinstance(error, OSError):  # a disk, a network file system or a removed file, where no stage knows more
        message = f"{error.filename or 'A file'} failed: {error.strerror or error}. Check the disk and the path; what "
        message += "was finished before is unchanged, and --verbose shows where it happened."
    elif _processes() == 1:
        raise error
    else:
        message = f"{type(error).__name__}, a mistake in the program, as the lines above say."
    code = exit_code(error)
    if not _said_by_another_process(error):
        _say(message, with_traceback="--verbose" in words or code == EXIT_BUG)
    return code


def _say(message: str, with_traceback: bool) -> None:
    """Print one paragraph, after the place in the code where that is asked for."""
    if with_traceback:
        print(printable(traceback.format_exc(), keep="\n\t"), end="", file=sys.stderr)
    rank = f"rank {os.environ.get('RANK', '0')}: " if _processes() > 1 else ""
    print(f"{paint('alight:', 'red', sys.stderr)} {rank}{printable(message)}", file=sys.stderr)


def _processes() -> int:
    """The number of processes of the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _said_by_another_process(error: Exception) -> bool:
    """True where the same mistake, made in all processes of the job, has been printed by one of them."""
    if _processes() == 1:
        return False
    from alight.runtime.watch import said_by_another_process

    return said_by_another_process(error)


def dispatch(arguments: list[str]) -> int:
    """Find the command, build its configuration from recipe and overrides, and run it."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"alight {metadata.version('alight')}")
        return 0
    if arguments[0].startswith(COMPLETION):
        from alight.completion import completion_script

        print(completion_script(_take_option(arguments, COMPLETION, "bash, zsh or fish")[0]))
        return 0
    name, rest = _split_command(arguments)
    command = COMMANDS[name]
    config, output = parse(name, rest)
    rank = int(os.environ.get("RANK", "0"))
    if _processes() > 1 and not command.distributed:
        raise InputError(f"'alight {name}' runs in one process. Start it without torchrun.")
    _set_up_logging(output if rank == 0 else OutputOptions(quiet=True))
    shown = _without_secrets(config.model_dump(mode="json"))
    logging.getLogger("alight").debug("%s: %s", name, json.dumps(shown, indent=2))
    run: Callable[[Any], Any] = import_module(command.module).run
    before = _manifests(config)
    result = run(config)
    if rank == 0:
        if output.as_json:
            print(json.dumps(result.as_data(), indent=2, allow_nan=False))
        else:
            text = command.report.format(path=result.path) if command.report else str(result)
            kept = command.report and before and _manifests(config) == before
            print(printable_lines(f"{text} (finished already, nothing was done)" if kept else text, sys.stdout))
            if not output.quiet:
                _propose_next(name, config, rest)
        sys.stdout.flush()
    return int(getattr(result, "exit_code", 0))


def _manifests(config: Section) -> dict[str, int]:
    """The manifests of the output and of the stages in it, with their times, which tell if a run has done anything."""
    from alight.artifacts import MANIFEST

    output = getattr(config, "output", None)
    found = [output / MANIFEST, *output.glob(f"*/{MANIFEST}")] if output is not None else []
    return {str(path): path.stat().st_mtime_ns for path in found if path.is_file()}


def _propose_next(name: str, config: Section, arguments: list[str]) -> None:
    """Show the command that follows where messages go, so that the output holds the result alone."""
    from alight.next_command import next_command

    recipe = _take_option(arguments, "--config", "")[0]
    if following := next_command(name, config, recipe):
        logging.getLogger("alight").info("Next: %s", following)


def parse(name: str, arguments: list[str]) -> tuple[Section, OutputOptions]:
    """The configuration of a command: its defaults, then the recipe, then dotted overrides.

    Raises:
        InputError: something in it is wrong; names the error and the remedy.
    """
    import tyro
    from pydantic import ValidationError

    arguments, output = _take_output_options(arguments)
    recipe, arguments = _take_option(arguments, "--config", "the path or the name of a recipe")
    command, source = COMMANDS[name], f"alight {name}"
    kind, operand = command.config, command.operand
    values: dict[str, Any] = {}
    recipe = recipe or command.recipe
    if recipe is not None:
        job, values = read_recipe(recipe)
        source = recipe
        if job != name:
            raise InputError(f"The recipe {recipe} is for 'alight {job}', not for 'alight {name}'.")
    default = validate(kind, values, source)
    words = _spell_out_flags(kind, _name_operand(operand, arguments))
    _refuse_unusable(words)
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            config = tyro.cli(
                kind,
                prog=f"alight {name} {operand.removeprefix('--').upper()}".rstrip(),
                description=f"{kind.__doc__}\n\nA recipe (--config FILE, or the name of a shipped one) changes "
                "the defaults shown here; options change the recipe. --quiet shows results only, --verbose more than "
                "usual, --json the result for programs.",
                default=default,
                args=words,
                config=(tyro.conf.FlagConversionOff,),
            )
    except ValidationError as error:
        raise InputError(_explained(kind, default, words, error)) from error
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, ValidationError):
            cause = cause.__context__
        if cause is not None:  # tyro printed the refusal of a section in a box; say it like every other mistake
            raise InputError(_explained(kind, default, words, cause)) from stop
        sys.stderr.write(printable(_COLOUR.sub("", boxed.getvalue()), keep="\n\t"))
        raise
    return config, output


def _refuse_unusable(words: list[str]) -> None:
    """Refuse words that no option can have as a value, before one of them becomes something else."""
    for before, word in pairwise(["", *words]):
        option = before if before.startswith("--") and "=" not in before else word.partition("=")[0]
        if word == "" or (word.startswith("--") and word.endswith("=")):
            raise InputError(
                f"An empty text stands in place of a value after '{shortened(option or before)}'; a shell variable "
                "that is not set may be the cause. Give a value, or leave the option out."
            )
        if "\0" in word or len(word) > LONGEST_WORD:
            reason = "holds a NUL character" if "\0" in word else f"has {len(word):,} characters"
            raise InputError(f"The word '{shortened(word)}' {reason}. Give a value that can be used.")


def _explained(kind: type[Section], default: Section, words: list[str], error: Any) -> str:
    """The complaint about options; a section that is built alone does not know where in the configuration it is.

    So the options are laid over the configuration and validated once more, as a whole.
    """
    from pydantic import ValidationError

    values: dict[str, Any] = {}
    for index, word in enumerate(words):
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            following = itertools.takewhile(lambda each: not each.startswith("--"), words[index + 1 :])
            given = [value] if equals else list(following)
            dotted = option.removeprefix("--").replace("-", "_")
            with contextlib.suppress(InputError):
                override(values, dotted, _as_value(kind, dotted, given))
    try:
        kind.model_validate(laid_over(default.model_dump(), values))
    except ValidationError as whole:
        return explain(kind, whole)
    return explain(kind, error)


def _as_value(kind: type[Section], dotted: str, given: list[str]) -> Any:
    """The words after an option as a recipe would have them."""
    words = [None if word == "None" else word for word in given]
    *parents, leaf = dotted.split(".")
    section: Any = kind
    for parent in parents:
        field = section.model_fields.get(parent)
        section = field.annotation if field is not None and hasattr(field.annotation, "model_fields") else Section
    text = str(section.model_fields[leaf].annotation) if leaf in section.model_fields else ""
    if text.startswith("dict"):
        return dict(zip(words[::2], words[1::2], strict=False))
    if "tuple" in text and words != [None]:
        return words
    return words[0] if len(words) == 1 else words


def _without_secrets(values: Any) -> Any:
    """The same, with stars in place of passwords and tokens."""
    if isinstance(values, dict):
        return {
            key: "***" if is_secret(str(key)) and value is not None else _without_secrets(value)
            for key, value in values.items()
        }
    return [_without_secrets(item) for item in values] if isinstance(values, list) else values


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: alight COMMAND [--config RECIPE] [--KEY VALUE ...] [--json] [--quiet | --verbose]",
            "",
            "Aligned latents and LightningDiT: train a tokenizer and a transformer on its latents, sample, measure.",
            "",
            *lines,
            "",
            "alight COMMAND --help lists every option with its default; alight --version says which version this is.",
            "alight --print-completion bash, zsh or fish prints what lets the shell complete all of it.",
        ]
    )


def _split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """The command's one or two words, and the rest."""
    for words in (2, 1):
        name = " ".join(arguments[:words])
        name = FORMER_NAMES.get(name, name)
        if name in COMMANDS:
            return name, arguments[words:]
    given = " ".join(word for word in arguments[:2] if not word.startswith("-"))
    group = [name for name in COMMANDS if name.split()[0] == arguments[0]]
    if group and given in (arguments[0], ""):
        raise InputError(f"'alight {arguments[0]}' needs one more word: {', '.join(group)}.")
    raise InputError(
        f"There is no command '{given or arguments[0]}'.{suggestion(given, COMMANDS)} 'alight --help' lists them."
    )


def _spell_out_flags(kind: type[Section], arguments: list[str]) -> list[str]:
    """Let what is on or off stand alone: `--network` is `--network True`."""
    switches = {
        f"--{name.replace('_', '-')}" for name, field in kind.model_fields.items() if _is_switch(field.annotation)
    }
    spelt = []
    for argument, following in pairwise([*arguments, "--"]):
        spelt += [argument, "True"] if argument in switches and following.startswith("--") else [argument]
    return spelt


def _is_switch(annotation: Any) -> bool:
    """Tell if a key is on or off, perhaps also `auto`."""
    return annotation is bool or bool in get_args(annotation)


def _name_operand(option: str, arguments: list[str]) -> list[str]:
    """Words before the first option are the value of the command's main option."""
    given = bool(option and arguments and not arguments[0].startswith("-"))
    return [option, *arguments] if given else arguments


def _take_output_options(arguments: list[str]) -> tuple[list[str], OutputOptions]:
    """Take what is about the output out of the arguments."""
    flags = {"--quiet": "quiet", "--verbose": "verbose", "--json": "as_json"}
    output = OutputOptions(**{name: flag in arguments for flag, name in flags.items()})
    if output.quiet and output.verbose:
        raise InputError("--quiet and --verbose contradict each other; give one of them.")
    return [argument for argument in arguments if argument not in flags], output


def _take_option(arguments: list[str], name: str, meaning: str) -> tuple[str | None, list[str]]:
    """Take `--name VALUE` or `--name=VALUE` out of the arguments."""
    for index, argument in enumerate(arguments):
        if argument == name:
            if index + 1 >= len(arguments):
                raise InputError(f"{name} needs a value: {meaning}.")
            return arguments[index + 1], arguments[:index] + arguments[index + 2 :]
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}="), arguments[:index] + arguments[index + 1 :]
    return None, arguments


def _set_up_logging(output: OutputOptions) -> None:
    from alight.runtime.console import show_progress

    show_progress(logging.DEBUG if output.verbose else logging.WARNING if output.quiet else logging.INFO)
