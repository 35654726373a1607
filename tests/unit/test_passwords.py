"""The password of the browser app: where it comes from, and where it never appears."""

import logging
import os
import pty
import subprocess
import sys

import pytest

from alight.config import ServeConfig
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.web.passwords import LARGEST_FILE, credentials


@pytest.fixture
def secret_file(tmp_path):
    path = tmp_path / "password"
    path.write_text("from the file\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


def test_the_password_comes_from_a_file_or_the_environment_without_a_warning(secret_file, monkeypatch, warnings):
    monkeypatch.setenv("ALIGHT_PASSWORD", "from the environment")
    assert credentials(ServeConfig(user="ada")) == ("ada", "from the environment")
    assert "ALIGHT_PASSWORD" not in os.environ
    assert credentials(ServeConfig(user="ada", password_file=secret_file)) == ("ada", "from the file")
    assert credentials(ServeConfig()) is None
    assert not warnings.records


def test_a_password_on_the_command_line_works_with_a_warning_that_does_not_repeat_it(warnings):
    assert credentials(ServeConfig(user="ada", password="löve:lace")) == ("ada", "löve:lace")
    assert "--password-file" in warnings.text
    assert "löve" not in warnings.text


def test_a_password_file_that_others_can_read_is_named(secret_file, warnings):
    secret_file.chmod(0o644)
    assert credentials(ServeConfig(user="ada", password_file=secret_file))
    assert f"chmod 600 {secret_file}" in warnings.text
    assert "from the file" not in warnings.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"\xff\xfe", "UTF-8"),
        (b"two\nlines\n", "2 lines"),
        (b"x" * (LARGEST_FILE + 1), "bytes"),
    ],
)
def test_a_password_file_with_something_else_is_refused(secret_file, content, said):
    secret_file.write_bytes(content)
    with pytest.raises(InputError, match=said):
        credentials(ServeConfig(user="ada", password_file=secret_file))


def test_a_password_without_a_user_protects_nothing_and_is_refused(monkeypatch):
    monkeypatch.setenv("ALIGHT_PASSWORD", "lovelace")
    with pytest.raises(InputError, match="ALIGHT_PASSWORD is set, but there is no user"):
        credentials(ServeConfig())


def test_the_password_is_in_no_dump_of_the_configuration():
    config = ServeConfig(user="ada", password="lovelace")
    assert "lovelace" not in config.model_dump_json() + repr(config) + str(config)
    assert config.password == "lovelace"


@pytest.mark.parametrize("options", ["", "password='-'"])
def test_a_terminal_is_asked_and_shows_nothing_of_the_answer(options):
    code = (
        "from alight.config import ServeConfig; from alight.web.passwords import credentials; "
        f"print(credentials(ServeConfig(user='ada', {options})) == ('ada', 'lovelace'))"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"Password for ada" not in seen:
        seen += os.read(ours, 1000)
    os.write(ours, b"lovelace\n")
    while b"True" not in seen and b"False" not in seen and process.poll() is None:
        seen += os.read(ours, 1000)
    assert process.wait(timeout=60) == 0
    os.close(ours)
    assert b"True" in seen
    assert b"lovelace" not in seen
