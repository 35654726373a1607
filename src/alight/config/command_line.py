"""Commands as text that a shell takes: options for all that differs from the defaults, quoted where needed."""

import shlex
from collections.abc import Collection, Iterable
from typing import Any

from alight.config.base import Section


def command_text(command: str, words: Iterable[str]) -> str:
    """A command of `alight` with its options, to be pasted into a shell."""
    return shlex.join(["alight", *command.split(), *words])


def option_words(config: Section, default: Section, prefix: str = "", without: Collection[str] = ()) -> list[str]:
    """The options that turn the default into the configuration.

    Args:
        config: wanted.
        default: of the same class.
        prefix: name of the section within the whole configuration; empty for the whole.
        without: names of fields that are left out.
    """
    words: list[str] = []
    for name in type(config).model_fields:
        value, usual = getattr(config, name), getattr(default, name)
        dotted = f"{prefix}.{name}" if prefix else name
        if name in without or value == usual:
            continue
        if isinstance(value, Section) and isinstance(usual, Section):
            words += option_words(value, usual, dotted)
        else:
            words += [f"--{dotted.replace('_', '-')}", *_value_words(value)]
    return words


def _value_words(value: Any) -> list[str]:
    """A value as the command line takes it."""
    if isinstance(value, dict):
        return [word for pair in value.items() for item in pair for word in _value_words(item)]
    if isinstance(value, list | tuple):
        return [word for item in value for word in _value_words(item)]
    return [f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)]
