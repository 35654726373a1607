"""Limits on connections: their number, and the time that a request may take to arrive.

An open connection costs a file descriptor whether or not it ever sends a request. So the head of a request must arrive
within seconds, its body at a steady rate, and the number of connections stays below the limit of open files. At the
limit, idle connections are closed for new ones, the oldest first.
"""

import asyncio
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alight.runtime.console import log
from alight.runtime.errors import InputError

HEAD_SECONDS = 10.0  # from the start of a connection, or the end of the request before, to the end of a head
BODY_SECONDS, BODY_BYTES = 10.0, 10_000  # the least bytes of a body in each such period
MOST_CONNECTIONS = 1000
BACKLOG = 64  # connections that wait to be accepted; asyncio accepts all of them at once
FILES_FOR_WORK = 64  # uploads, pictures and files that libraries open
LEAST_CONNECTIONS = 16
SHARE_OF_ONE = 0.75  # of all connections, for one address
QUIET_SECONDS = 60.0  # between two lines of the same kind in the log


def most_connections() -> int:
    """The number of connections that the limit of open files allows.

    Raises:
        InputError: it is too small.
    """
    import resource

    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    descriptors = Path("/proc/self/fd")
    in_use = len(list(descriptors.iterdir())) if descriptors.is_dir() else FILES_FOR_WORK
    most = allowed - in_use - BACKLOG - FILES_FOR_WORK
    if most < LEAST_CONNECTIONS:
        raise InputError(
            f"This process may open only {allowed} files, too few to serve visitors. Raise the limit "
            f"(ulimit -n {LEAST_CONNECTIONS + in_use + BACKLOG + FILES_FOR_WORK} or more) and start again."
        )
    return min(most, MOST_CONNECTIONS)


class Sparing(logging.Filter):
    """Lets each message of a logger pass once a minute, so that nobody can fill the disk with them."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell if the line is written; errors always are."""
        if record.levelno >= logging.ERROR:
            return True
        text, now = str(record.msg), time.monotonic()
        if now - self.passed.get(text, -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        self.passed[text] = now
        return True


def sparing_accept_errors() -> Any:
    """An exception handler for the event loop: one line when the system has no files left, not many tracebacks."""
    told = -QUIET_SECONDS

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal told
        if isinstance(context.get("exception"), OSError) and "accept" in context.get("message", ""):
            if time.monotonic() - told >= QUIET_SECONDS:
                told = time.monotonic()
                reason = os.strerror(context["exception"].errno or 0)
                log.warning("A connection cannot be accepted: %s. It waits and will be retried.", reason)
        else:
            loop.default_exception_handler(context)

    return handle


@dataclass
class Room:
    """The open connections by address, and their limit.

    Args:
        most: connections in all.
        proxy: an address that many visitors share; it has no limit of its own.
    """

    most: int
    proxy: str | None = None
    members: dict[Any, str] = field(default_factory=dict)  # in order of arrival

    def admit(self, connection: Any, address: str) -> bool:
        """Add a connection; at the limit an idle one is closed for it, or False is returned."""
        of_address = [known for known, other in self.members.items() if other == address]
        if address != self.proxy and len(of_address) >= max(1, int(self.most * SHARE_OF_ONE)):
            crowd = of_address
        elif len(self.members) >= self.most:
            crowd = list(self.members)
        else:
            crowd = []
        if crowd:
            idle = next((known for known in crowd if known.is_idle), None)
            if idle is None:
                return False
            self.leave(idle)
            idle.transport.abort()
        self.members[connection] = address
        return True

    def leave(self, connection: Any) -> None:
        """Remove a connection."""
        self.members.pop(connection, None)


def limited_protocol(room: Room) -> type[asyncio.Protocol]:
    """The HTTP/1.1 protocol of uvicorn with these limits."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class LimitedProtocol(H11Protocol):
        timer: asyncio.TimerHandle | None = None
        waits_for: Any = None  # the state of the visitor's side that the timer is for
        received = 0  # bytes since the timer began

        @property
        def is_idle(self) -> bool:
            """Tell if no request is being answered."""
            return self.cycle is None or self.cycle.response_complete

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if room.admit(self, self.client[0] if self.client else ""):
                self._watch()
            else:
                logging.getLogger("uvicorn.error").warning("There are too many connections; some are refused.")
                transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_watching()
            room.leave(self)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self.received += len(data)
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def _stop_watching(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
            self.timer = self.waits_for = None

        def _watch(self) -> None:
            """Start a timer when the client begins to owe a new part of its request, and stop it at the end."""
            now = self.conn.their_state
            if now == self.waits_for and self.timer is not None:
                return
            self._stop_watching()
            if self.transport.is_closing() or now not in (h11.IDLE, h11.SEND_BODY):
                return
            seconds = HEAD_SECONDS if now is h11.IDLE else BODY_SECONDS
            self.waits_for, self.received = now, 0
            self.timer = self.loop.call_later(seconds, self._too_slow)

        def _too_slow(self) -> None:
            self.timer = None
            held_up_by_us = self.flow.read_paused
            if self.waits_for is h11.SEND_BODY and (held_up_by_us or self.received >= BODY_BYTES):
                self._watch()
            else:
                self.transport.abort()

    return LimitedProtocol
