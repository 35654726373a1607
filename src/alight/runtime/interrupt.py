"""Let an interrupt wait until the current step is whole."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130  # the shell's convention for a process ended by Ctrl-C


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Within the block, SIGINT and SIGTERM only set a flag; the yielded function tells whether one came.

    A second signal acts at once, for those who are in a hurry. Outside the main thread it does nothing.
    """
    came = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    try:
        previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's business
        previous = {}
    try:
        yield lambda: came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
