"""Defer an interrupt until the current step is complete."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

REPEATED_WITHIN = 5.0  # seconds; a scheduler signals every process, and torchrun passes its own signal on


class Interrupted(KeyboardInterrupt):
    """A signal ended the work.

    Args:
        number: of the signal.
        agreed: whether all processes of the job end at the same point, with what they have done saved.

    Attributes:
        exit_code: the shell's convention for a process that a signal ended: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, number: int, agreed: bool = False) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code, self.agreed = 128 + number, agreed


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], int]]:
    """Within the block, SIGINT and SIGTERM are only recorded; the yielded function returns the number, 0 = none.

    One that follows within five seconds belongs to the first and is ignored; a later one acts at once. Outside the
    main thread, signals are not deferred.
    """
    came, since = 0, 0.0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal came, since
        if came and time.monotonic() - since > REPEATED_WITHIN:
            raise Interrupted(number)
        if not came:
            came, since = number, time.monotonic()

    try:
        previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which alone may set handlers
        previous = {}
    try:
        yield lambda: came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
