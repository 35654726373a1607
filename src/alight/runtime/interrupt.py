"""Defer an interrupt until the current step is complete."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal ended the work gracefully.

    Attributes:
        exit_code: the shell's convention for a process that a signal ended: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], int]]:
    """Within the block, SIGINT and SIGTERM are only recorded; the yielded function returns the number, 0 = none.

    A second signal acts at once. Outside the main thread, signals are not deferred.
    """
    came = 0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise Interrupted(number)
        came = number

    try:
        previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which alone may set handlers
        previous = {}
    try:
        yield lambda: came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
