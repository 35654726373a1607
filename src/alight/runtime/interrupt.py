"""Signals that end the work: deferred until the current step is complete, or turned into an exception."""

import signal
import threading
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

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int, bool]]:
        """Pickle the arguments: a worker process passes its exceptions on."""
        return type(self), (self.exit_code - 128, self.agreed)


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


@contextmanager
def termination_as_exception() -> Iterator[None]:
    """Within the block, SIGTERM raises `Interrupted` instead of ending the process without a word."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def ignore_termination() -> None:
    """Let no SIGTERM come between a process that ends already and its message."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
