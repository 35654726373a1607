"""The user and the password of the server, read from a private place."""

import getpass
import os
import stat
import sys
from pathlib import Path

from alight.config import ServeConfig
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.reading import read_bytes

VARIABLE = "ALIGHT_PASSWORD"
ASK = "-"  # in place of a password: ask for it
LARGEST_FILE = 4096  # bytes of a password file


def credentials(config: ServeConfig) -> tuple[str, str] | None:
    """User and password; None = no authentication.

    The password comes from the option, a file, the environment, or else the terminal.

    Raises:
        InputError: there is a user without a password or a password without a user, or a file cannot be read.
    """
    variable = os.environ.pop(VARIABLE, None)  # child processes must not inherit it
    if config.user is None:
        if variable is not None:
            raise InputError(
                f"{VARIABLE} is set, but there is no user: give both user and password (--user NAME), or unset it."
            )
        return None
    password = _given(config, variable)
    if not password:
        raise InputError("The password is empty. Choose another one.")
    return config.user, password


def _given(config: ServeConfig, variable: str | None) -> str:
    if config.password_file is not None:
        return _from_file(config.password_file)
    if config.password not in (None, ASK):
        log.warning(
            "Anyone on this machine can read a password on the command line. Use --password-file FILE, the "
            "environment variable %s, or --password - to be asked for it.",
            VARIABLE,
        )
        return str(config.password)
    if config.password is None and variable is not None:
        return variable
    if not sys.stdin.isatty():
        raise InputError(
            f"Give both user and password: set the environment variable {VARIABLE}, or name a file with "
            "--password-file. A prompt for the password needs a terminal."
        )
    return getpass.getpass(f"Password for {config.user}: ")


def _from_file(path: Path) -> str:
    """The first line of a file."""
    try:
        text = read_bytes(path, LARGEST_FILE).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"The password file {path} is not in UTF-8. Write only the password into it.") from None
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("Others can read the password file %s: chmod 600 %s", path, path)
    lines = text.splitlines()
    if len(lines) > 1:
        raise InputError(f"The password file {path} has {len(lines)} lines. Write only the password into it.")
    return lines[0] if lines else ""
