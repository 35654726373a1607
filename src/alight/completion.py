"""Shell completion: a script for bash, zsh or fish that knows every command, option and choice.

The script is written from the configurations, so it cannot know less or more than the command line does; and it holds
everything, so that pressing TAB starts no Python.
"""

import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from alight.config.base import Section
from alight.config.commands import COMMANDS
from alight.config.recipes import shipped_recipes
from alight.runtime.errors import InputError

COMMON = ("--config", "--quiet", "--verbose", "--json", "--help")


def completion_script(shell: str | None) -> str:
    """The script for a shell to read, in its start-up file for example.

    Raises:
        InputError: the shell is unknown.
    """
    writers: dict[str, Callable[[], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in writers:
        raise InputError(f"There is no completion for '{shell}'. Known shells are {', '.join(writers)}.")
    return writers[shell]()


def options(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every option of a configuration, `--optimizer.lr`, with the values it can have if they are few and fixed."""
    for name, field in kind.model_fields.items():
        option = f"{prefix}{name.replace('_', '-')}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from options(field.annotation, f"{option}.")
        elif not _is_for_recipes(field.annotation):
            yield f"--{option}", choices(field.annotation)


def _is_for_recipes(annotation: Any) -> bool:
    """Tell if a value is nested too deeply for a command line: a list of sections, or a mapping of mappings."""
    parts = get_args(annotation)
    nested = get_origin(annotation) is dict and get_origin(parts[1]) is dict
    return nested or any(isinstance(part, type) and issubclass(part, Section) for part in parts)


def choices(annotation: Any) -> tuple[str, ...]:
    """The values that a type leaves to choose from; none where they are too many to list."""
    if annotation is bool:
        return "True", "False"
    if annotation is type(None):
        return ("None",)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return tuple(map(str, arguments))
    if origin is Annotated:
        return choices(arguments[0])
    if origin is tuple:
        return choices(arguments[0])
    if origin in (Union, types.UnionType):
        parts = [choices(part) for part in arguments]
        return tuple(choice for part in parts for choice in part) if all(parts) else ()
    return ()


def _words(name: str) -> str:
    return " ".join([*COMMON, *(option for option, _ in options(COMMANDS[name].config))])


def _values() -> dict[str, dict[str, tuple[str, ...]]]:
    """By command, the options whose values can be completed."""
    recipes = shipped_recipes()
    return {
        name: {"--config": tuple(recipe for recipe, job in recipes.items() if job == name)}
        | {option: found for option, found in options(command.config) if found}
        for name, command in COMMANDS.items()
    }


def _first_words() -> str:
    return " ".join(dict.fromkeys(name.split()[0] for name in COMMANDS))


def _groups() -> dict[str, str]:
    """First words that need a second one, with those that there are."""
    pairs = [name.split() for name in COMMANDS if " " in name]
    return {first: " ".join(second for head, second in pairs if head == first) for first, _ in pairs}


def _cases(add: Callable[[str], str], offer: str) -> str:
    """The part that bash and zsh have in common: by command and the word before, what can come next."""
    pairs = "|".join(f'"{name}"' for name in COMMANDS if " " in name)
    lines = [f'  case "$first $second" in {pairs}) [ "$position" -gt 2 ] && command="$first $second" ;; esac']
    lines += ['  case "$position:$command|$previous" in', f'    1:*) {offer}="{_first_words()}" ;;']
    for first, seconds in _groups().items():
        own = f'-*) {offer}="{_words(first)}" ;; ' if first in COMMANDS else ""  # a command, and a group of commands
        lines.append(f'    2:{first}"|"*) case "$current" in {own}*) {offer}="{seconds}" ;; esac ;;')
    for name, completed in _values().items():
        for option, values in completed.items():
            lines.append(f'    *:"{name}|{option}") {offer}="{" ".join(values)}" ;;')
        lines.append(f'    *:"{name}|"*) case "$current" in -*) {offer}="{_words(name)}" ;; esac ;;')
    return "\n".join([*lines, "  esac", f"  {add(offer)}"])


def _bash() -> str:
    add = _cases(lambda offer: f'COMPREPLY=($(compgen -W "${offer}" -- "$current"))', "offer")
    return f"""# alight, completed in bash:  eval "$(alight --print-completion bash)"
_alight() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD - 1]}}" position="$COMP_CWORD"
  local first="${{COMP_WORDS[1]}}" second="${{COMP_WORDS[2]}}" command="${{COMP_WORDS[1]}}" offer=""
{add}
}}
complete -o bashdefault -o default -F _alight alight"""


def _zsh() -> str:
    add = _cases(lambda offer: f'[ -n "${offer}" ] && compadd -- ${{=offer}} || _files', "offer")
    return f"""# alight, completed in zsh:  eval "$(alight --print-completion zsh)"
_alight() {{
  local current="${{words[CURRENT]}}" previous="${{words[CURRENT - 1]}}" position="$((CURRENT - 1))"
  local first="${{words[2]}}" second="${{words[3]}}" command="${{words[2]}}" offer=""
{add}
}}
(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit }}
compdef _alight alight"""


def _fish() -> str:
    groups = _groups()
    lines = ["# alight, completed in fish:  alight --print-completion fish | source"]
    for first in _first_words().split():
        summary = COMMANDS[first].summary if first in COMMANDS else groups[first].replace(" ", ", ")
        lines.append(_fish_line("__fish_use_subcommand", f"-f -a {first}", summary))
    for first, seconds in groups.items():
        condition = f"__fish_seen_subcommand_from {first}; and not __fish_seen_subcommand_from {seconds}"
        lines += [
            _fish_line(condition, f"-f -a {second}", COMMANDS[f"{first} {second}"].summary)
            for second in seconds.split()
        ]
    for name, values in _values().items():
        condition = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in name.split())
        others = [first for first in groups if first != name and name in groups[first].split()]
        if others or name in groups:  # a word that stands for itself only without these
            condition += f"; and not __fish_seen_subcommand_from {' '.join([*others, groups.get(name, '')]).strip()}"
        for option in _words(name).split():
            offer = f"-x -a '{' '.join(values[option])}'" if option in values else "-r"
            flag = option in ("--quiet", "--verbose", "--json", "--help")
            lines.append(_fish_line(condition, f"-l {option.removeprefix('--')} {'-f' if flag else offer}"))
    return "\n".join(lines)


def _fish_line(condition: str, offer: str, description: str = "") -> str:
    said = f" -d '{description}'" if description else ""
    return f"complete -c alight -n '{condition}' {offer}{said}"
