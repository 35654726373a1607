"""Work in a thread that reports its progress to the page, and that the visitor can stop."""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

NewsT = TypeVar("NewsT")


class Stopped(Exception):  # noqa: N818 (not an error)
    """The visitor stopped the work."""


class Jobs:
    """The running jobs, one for each session; a later one replaces an earlier one."""

    def __init__(self) -> None:
        self._stops: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        self._ended = False

    def start(self, session: str) -> threading.Event:
        """Register work, which must end when the returned event is set."""
        stop = threading.Event()
        with self._lock:
            before, self._stops[session] = self._stops.get(session), stop
            if self._ended:
                stop.set()
        if before is not None:
            before.set()
        return stop

    def stop(self, session: str) -> bool:
        """Stop the session's work; returns True if there was any."""
        with self._lock:
            stop = self._stops.pop(session, None)
        if stop is not None:
            stop.set()
        return stop is not None

    def finish(self, session: str, stop: threading.Event) -> None:
        """Forget work that has ended."""
        with self._lock:
            if self._stops.get(session) is stop:
                del self._stops[session]

    def stop_all(self) -> None:
        """Stop all jobs when the server ends, and those that still start from its queue."""
        with self._lock:
            self._ended = True
            for stop in self._stops.values():
                stop.set()


def stream(work: Callable[[Callable[[NewsT], None]], None], stop: threading.Event) -> Iterator[NewsT]:
    """Run `work(tell)` in a thread and yield what it tells; its exception is raised here.

    Closing the iterator sets `stop`.
    """
    end = object()
    news: SimpleQueue[Any] = SimpleQueue()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work(news.put)
        except BaseException as error:
            failure.append(error)
        finally:
            news.put(end)

    thread = threading.Thread(target=run, name="alight-job", daemon=True)
    thread.start()
    try:
        while (item := news.get()) is not end:
            yield item
        if failure:
            raise failure[0]
    except GeneratorExit:
        stop.set()
        raise
    finally:
        thread.join()
