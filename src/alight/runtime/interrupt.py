"""Let an interrupt wait until the current step is whole."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal ended the work in good order.

    Attributes:
        exit_code: the shell's convention for a process that a signal ended: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], int]]:
    """Within the block, SIGINT and SIGTERM are only remembered; the yielded function gives the number, 0 = none came.

    A second signal acts at once, for those who are in a hurry. Outside the main thread it does nothing.
    """
    came = 0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise Interrupted(number)
        came = number

    try:
        previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's business
        previous = {}
    try:
        yield lambda: came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
