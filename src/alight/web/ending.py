"""Immediate exit of the server on a second signal, even during a computation."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_at_once(files: Path) -> Callable[[int, FrameType | None], NoReturn]:
    """A signal handler that removes the temporary files and ends the process without waiting for its threads.

    A thread inside a matrix product cannot be interrupted, and a normal exit would wait for it.
    """

    def end(number: int, _: FrameType | None) -> NoReturn:
        shutil.rmtree(files, ignore_errors=True)
        os.write(2, b"alight: interrupted.\n")
        os._exit(128 + number)

    return end
