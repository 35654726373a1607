"""The command line's output: JSON for programs, quiet and verbose, colour, completion, and quick help."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time

import pytest

from alight.cli import OutputOptions, main, parse
from alight.completion import completion_script, options
from alight.config.commands import COMMANDS
from alight.runtime.errors import InputError
from helpers.command_line import alight_command


def complete_in_bash(tmp_path, *words):
    """What bash offers for the last of these words."""
    script = tmp_path / "completion.bash"
    script.write_text(completion_script("bash"))
    code = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _alight; printf "%s\\n" "${COMPREPLY[@]}"'
    command = ["bash", "-c", code, "bash", str(script), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def in_a_terminal(*arguments, **environment):
    """What `alight ...` writes to a terminal."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm"} | environment
    process = subprocess.Popen(alight_command(*arguments), stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    text = b""
    while True:
        try:
            block = os.read(master, 4096)
        except OSError:  # Linux: the other side was closed
            break
        if not block:
            break
        text += block
    process.wait(timeout=60)
    os.close(master)
    return text.decode()


# --- results ----------------------------------------------------------------------------------------------------


def test_an_artifact_as_json(alight, finished_quickstart, tiny_quickstart):
    result = alight(*tiny_quickstart, "--output", finished_quickstart[0], "--json", "--quiet")
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert (data["kind"], data["path"]) == ("report", str(finished_quickstart[0] / "report"))
    assert {"hash", "inputs", "facts", "seconds"} <= set(data)
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["latents", "inspect", "--latents", "{run}/latents"], {"kind", "path", "hash", "facts", "figures"}),
        (["info", "{run}"], {"kind", "path", "tokenizer"}),
        (["report", "{run}"], {"reports"}),
        (["convert", "--to", "published", "--source", "{run}/transformer", "--output", "{new}"], {"kind", "path"}),
    ],
)
def test_other_results_as_json(finished_quickstart, tmp_path, capsys, arguments, keys):
    words = [word.format(run=finished_quickstart[0], new=tmp_path / "model.pt") for word in arguments]
    with pytest.raises(SystemExit) as left:
        main([*words, "--json", "--quiet"])
    assert left.value.code == 0
    assert keys <= set(json.loads(capsys.readouterr().out))


def test_verbose_shows_the_configuration_and_where_a_mistake_was_noticed(alight, finished_quickstart):
    result = alight("report", finished_quickstart[0], "--verbose")
    assert '"folders"' in result.stderr
    assert "Conditions" in result.stdout
    wrong = alight("report", "nowhere", "--verbose")
    assert wrong.returncode == 2
    assert "Traceback" in wrong.stderr
    assert wrong.stderr.splitlines()[-1].startswith("alight: There is no finished report")


def test_quiet_and_verbose_exclude_each_other():
    with pytest.raises(InputError, match="contradict"):
        parse("report", ["--quiet", "--verbose"])
    assert parse("report", ["a", "b", "--json"])[1] == OutputOptions(as_json=True)


def test_the_main_option_needs_no_name():
    assert list(map(str, parse("report", ["a", "b"])[0].folders)) == ["a", "b"]
    assert parse("report", ["--folders", "a", "b"])[0] == parse("report", ["a", "b"])[0]
    for name, command in COMMANDS.items():
        assert not command.operand or command.operand in dict(options(COMMANDS[name].config))


# --- the terminal -----------------------------------------------------------------------------------------------


def test_colour_is_for_terminals_that_want_it(alight):
    assert "\033[31malight:\033[0m" in in_a_terminal("nonsense")
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\033[" not in in_a_terminal("nonsense", **environment)
    assert "\033[" not in alight("nonsense").stderr


def test_a_reader_who_leaves_early_is_no_error(finished_quickstart):
    code = '"$1" -m alight info "$2" | head -1; echo "${PIPESTATUS[0]}"'
    command = ["bash", "-c", code, "bash", sys.executable, finished_quickstart[0] / "samples"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Traceback" not in result.stderr
    assert result.stdout.splitlines()[-1] in ("0", "141")


@pytest.mark.parametrize("arguments", [["--help"], ["transformer", "train", "--help"]])
def test_help_is_quick(arguments):
    """Processor time, which does not depend on what else the machine does; a machine of its own takes a third."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(alight_command(*arguments), check=True, capture_output=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert min(spent, time.perf_counter() - started) < 1.2


# --- completion -------------------------------------------------------------------------------------------------


def test_every_option_that_completion_offers_is_known_to_the_command_line(capsys):
    for name, kind in ((name, command.config) for name, command in COMMANDS.items()):
        with pytest.raises(SystemExit):
            parse(name, ["--help"])
        shown = set(re.findall(r"--[a-z0-9.-]+", capsys.readouterr().out))
        assert {option for option, _ in options(kind)} <= shown, name


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["alight", "to"], {"tokenizer"}),
        (["alight", "latents", ""], {"extract", "inspect", "meter"}),
        (["alight", "sample", "--lab"], {"--labels"}),
        (["alight", "sample", "--labels", ""], {"balanced", "random"}),
        (["alight", "sample", "--npz", ""], {"True", "False"}),
        (["alight", "tokenizer", "train", "--optimizer.l"], {"--optimizer.lr", "--optimizer.lr-factors"}),
        (["alight", "latents", "extract", "--config", "own"], {"own_images/latents"}),
        (["alight", "bench", ""], {"accelerator"}),
        (["alight", "evaluate", "--sp"], {"--split"}),
        (["alight", "evaluate", "--device", "cpu", "--sp"], {"--split"}),
        (["alight", "evaluate", ""], {"reference"}),  # a command, and the first word of another
        (["alight", "evaluate", "reference", "--config", ""], set()),
    ],
)
def test_bash_completes(tmp_path, words, offered):
    assert set(complete_in_bash(tmp_path, *words)) == offered


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize(
    ("line", "offered"),
    [("alight sample --labels ", "balanced"), ("alight tok", "tokenizer"), ("alight evaluate --sp", "--split")],
)
def test_fish_completes(tmp_path, line, offered):
    (tmp_path / "completion.fish").write_text(completion_script("fish"))
    code = f"source '{tmp_path}/completion.fish'; complete -C '{line}'"
    result = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True, check=True)
    assert offered in result.stdout.split()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_completes(tmp_path):
    """The function is called as zsh would, with a `compadd` that prints."""
    (tmp_path / "completion.zsh").write_text(completion_script("zsh"))
    code = f"""compdef() {{ }}; compadd() {{ shift; print -l -- "$@" }}
    source '{tmp_path}/completion.zsh'
    words=(alight sample --labels ''); CURRENT=4; _alight"""
    result = subprocess.run(["zsh", "-f", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["balanced", "random"]


def test_an_unknown_shell_is_refused(refused):
    assert "bash, zsh, fish" in refused("--print-completion", "tcsh")
