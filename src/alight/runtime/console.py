"""Progress for the user: one logger, and progress bars that are off unless it is on.

The library never configures logging; the command line does, through `show_progress`. Until then bars are off.
"""

import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from alight.runtime.terminal import printable

log = logging.getLogger("alight")


class _BarFriendlyHandler(logging.Handler):
    """Prints lines above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(printable(self.format(record), keep="\n\t"), file=sys.stderr)


def show_progress(level: int = logging.INFO) -> None:
    """Print the package's messages and progress bars to the terminal's error stream."""
    if not log.handlers:
        log.addHandler(_BarFriendlyHandler())
    log.setLevel(level)
    log.propagate = False


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> "tqdm[Any]":
    """A progress bar with rate and ETA; off unless `show_progress` was called, and rarely updated in a file."""
    terminal = sys.stderr.isatty()
    return tqdm(
        iterable,
        disable=not log.isEnabledFor(logging.INFO),
        dynamic_ncols=terminal,
        mininterval=0.2 if terminal else 15.0,
        leave=False,
        **options,
    )
