"""The command line: complaints with their section, nothing in a name that steers the terminal, no secret in a log."""

import io
import json
import logging

import pytest

from alight.cli import main, parse
from alight.config import ServeConfig
from alight.config.base import Section
from alight.runtime.console import show_progress
from alight.runtime.errors import InputError
from alight.runtime.terminal import printable, printable_lines
from helpers.command_line import run_alight


def complaint(capsys, *arguments):
    """The complaint of the command line about a mistake."""
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error or "--verbose" in arguments
    return error


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("transformer train --optimizer.lr -1", "'optimizer.lr' is '-1'"),
        ("transformer train --optimizer.lr=-1", "'optimizer.lr' is '-1'"),
        ("quickstart --tokenizer.optimizer.lr 0", "'tokenizer.optimizer.lr' is '0'"),
        ("transformer train --training.micro-batch-size 3", "training: global_batch_size 256 is not a multiple"),
        ("transformer train --model.hidden-size 64", "model: preset LightningDiT-B/1 already sets hidden_size"),
        ("transformer train --optimizer.betas 0.5 2", "'optimizer.betas.1' is '2'"),
        ("sample --sampling.guidance-scale 1e30", "'sampling.guidance_scale' is '1e30'"),
        ("sample --sampling.guidance-scale nan", "'sampling.guidance_scale' is 'nan'"),
        ("sample --sampling.guidance-interval 0.5 0.2", "sampling: guidance_interval"),
        (
            "transformer train --flow.timestep-shift -1",
            "'flow.timestep_shift' is '-1': input should be greater than 0, or",
        ),
        ("evaluate --draw.sampling.timestep-shift 1e30", "'draw.sampling.timestep_shift' is '1e30'"),
        ("sample --class-counts a 0", "'class_counts.a' is '0'"),
        ("sample --seed 99999999999999999999", "'seed' is '99999999999999999999'"),
        ("tune --guidance-scales 1 inf", "'guidance_scales.1' is 'inf'"),
        ("plan --recipe imagenet/transformer_xl_64ep --processes 100000", "cannot be divided evenly"),
    ],
)
def test_a_complaint_names_the_option_with_its_section(capsys, arguments, expected):
    assert expected in complaint(capsys, *arguments.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--output", ""], "An empty text stands in place of a value after '--output'"),
        (["--output="], "An empty text stands in place of a value after '--output'"),
        (["--classes", "a", ""], "An empty text"),
        (["--output", "a\0b"], "holds a NUL character"),
        (["--output", "x" * 300], "has a name of 300 bytes"),
        (["--output", "x" * 200_000], "has 200,000 characters"),
        (["--output", "\udcff"], "output: the text is not valid UTF-8"),
        (["--config", "x" * 5_000], "There is no recipe 'xxx"),
        (["--config", "a\0b"], "There is no recipe"),
        (["--config", "/dev/zero"], "/dev/zero is not a regular file"),
        (["--config", "/"], "/ is not a regular file"),
    ],
)
def test_words_that_cannot_be_values_are_refused_in_one_sentence(capsys, words, expected):
    error = complaint(capsys, "sample", *words)
    assert expected in error
    assert len(error) < 1_500


def test_the_home_folder_is_expanded_behind_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config, _ = parse("sample", ["--output=~/x"])
    assert config.output == tmp_path / "x"


def test_too_little_memory_is_one_sentence(capsys, monkeypatch):
    import numpy

    def run(config):
        return numpy.ones((2**31, 2**31), dtype=numpy.int8)  # which no machine has

    monkeypatch.setattr("alight.show.reports.run", run)
    error = complaint(capsys, "report", "x")
    assert error.startswith("alight: Out of memory: Unable to allocate")
    assert "Take smaller batches" in error


# --- the console --------------------------------------------------------------------------------------------------


def test_nothing_in_a_name_steers_the_terminal(capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('job: sample\n"a\\e[2J\\e]0;title\\a\\u202Eb\\nc": 3\n')
    error = complaint(capsys, "sample", "--config", str(recipe))
    assert r"unknown key 'a\x1b[2J\x1b]0;title\x07\u202eb\nc'" in error
    for word in ("\033[31m", "\x9b31m", "\r", "\b"):
        assert word not in complaint(capsys, f"sample{word}")
        assert word not in complaint(capsys, "sample", f"--nothing{word}")
        assert word not in complaint(capsys, "report", f"nowhere{word}", "--verbose" if word == "\b" else "--quiet")


def test_nothing_in_a_name_steers_the_terminal_through_the_log(capsys):
    show_progress(logging.INFO)
    logging.getLogger("alight").info("class %s\nnext", "a\033[2Jb")
    assert capsys.readouterr().err == "class a\\x1b[2Jb\nnext\n"


def test_printable_keeps_what_languages_need():
    kept = "Café, 猫, שלום, नमस्ते, می‌خواهم, 👩‍🔬 ✓"
    assert printable(kept) == kept
    assert printable("\x1b\x9b\x7f\u2028\u202e\ud800\n", keep="\n") == "\\x1b\\x9b\\x7f\\u2028\\u202e\\ud800\n"


def test_colours_of_results_stay_and_nothing_else(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for name, value in (("TERM", "xterm"), ("NO_COLOR", "")):
        monkeypatch.setenv(name, value)
    text = "\033[1mheading\033[0m\n\033[2J"
    assert printable_lines(text, Terminal()) == "\033[1mheading\033[0m\n\\x1b[2J"
    assert "\033" not in printable_lines(text, io.StringIO())


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C"}],
    ids=["ascii", "cp1252", "C"],
)
def test_names_beyond_the_encoding_of_the_console_are_shown_in_escapes(tmp_path, environment):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("# 猫 čeština\njob: sample\nclasses: [猫, čeština]\n", encoding="utf-8")
    for words, code in ((["info", recipe], 0), (["sample", "--help"], 0), (["info", tmp_path / "猫"], 2)):
        result = run_alight(*words, timeout=120, text=False, **environment)
        assert result.returncode == code, result.stderr
        assert b"Traceback" not in result.stderr
        if words[0] == "info":
            assert b"\\u732b" in result.stdout + result.stderr or "猫".encode() in result.stdout + result.stderr


# --- secrets ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("password" not in ServeConfig.model_fields, reason="no field holds a password")
def test_the_verbose_log_shows_no_secret(capsys):
    error = complaint(capsys, "serve", "--user", "me", "--password", "hunter2", "--verbose")
    assert "hunter2" not in error.split("Traceback")[0]
    assert '"password": "***"' in error
    assert '"user": "me"' in error


def test_fields_of_secrets_are_found_by_name():
    from alight.cli import _without_secrets

    class Inner(Section):
        hub_token: str = "abc"
        tokenizer: str = "kept"
        token: str | None = None

    shown = _without_secrets({"a": [Inner().model_dump()], "password_again": 3})
    assert json.loads(json.dumps(shown)) == {
        "a": [{"hub_token": "***", "tokenizer": "kept", "token": None}],
        "password_again": "***",
    }


def test_a_refusal_of_the_parser_itself_is_shown_whole(capsys):
    for words in (["--seed", "many"], ["--sampling.num-inference-steps", "2.5"], ["--guidence", "2"]):
        assert words[0] in complaint(capsys, "sample", *words) or "guide" in words[0]


def test_input_errors_hold_one_paragraph():
    with pytest.raises(InputError) as caught:
        parse("sample", ["--sampling.solver", "none\nat all"])
    assert "at all" in printable(str(caught.value))
    assert "\n" not in printable(str(caught.value))
