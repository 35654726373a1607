"""Work in threads beside the main one, with a bound on what is waiting, and errors that are not lost."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import median
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_TASKS = 10_000  # each that waits takes a kilobyte
_WORTH_A_THREAD = 1e-3  # seconds that an item takes; for shorter ones, waiting for the GIL costs more


def mapped_ahead(call: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """The results of a call for some items, in their order, worked out a few items ahead.

    Args:
        call: for one item; it may run in any thread.
        items: taken one after another, no more than twice as many ahead as there are threads.
        threads: that work at the same time.
    """
    with ThreadPoolExecutor(threads, "ahead") as pool:
        begun: deque[Future[Result]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(call, item))
                if len(begun) > 2 * threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


def mapped_in_threads(call: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Result]:
    """The results of a call for some items, in their order, worked out in threads where that is faster.

    Disks serve requests in parallel, and decoders release the GIL. Tiny images, though, take several threads four
    times as long as one alone, since each waits for the GIL. So items are worked out here until a typical one of a few
    takes a millisecond.

    Args:
        call: for one item; it may run in any thread.
        items: all of them.
    """
    per_task = max(8, len(items) // _MOST_TASKS)
    parts = deque(items[start : start + per_task] for start in range(0, len(items), per_task))
    typical = 0.0
    while parts and typical < _WORTH_A_THREAD:
        seconds = []
        for item in parts.popleft():
            started = time.perf_counter()
            result = call(item)
            seconds.append(time.perf_counter() - started)
            yield result
        typical = median(seconds)  # the first item may open files or load a decoder
    if not parts:
        return
    pool = ThreadPoolExecutor()
    try:
        for results in pool.map(lambda part: [call(item) for item in part], parts):
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)


class BackgroundWork:
    """Threads that take on calls one after another; leaving the block waits for all of them.

        with BackgroundWork(threads=4, waiting=64) as work:
            for item in items:
                work.begin(store, item)  # raises what an earlier call has raised

    Args:
        threads: that work at the same time.
        waiting: calls begun and not finished, beyond which `begin` waits for the oldest.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "background")
        self._waiting, self._begun = waiting, deque[Future[Any]]()

    def begin(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Begin a call.

        Raises:
            Exception: the first one of an earlier call.
        """
        while self._begun and (len(self._begun) >= self._waiting or self._begun[0].done()):
            self._begun.popleft().result()
        future = self._pool.submit(call, *arguments)
        self._begun.append(future)
        return future

    def finish(self) -> None:
        """Wait for every call.

        Raises:
            Exception: the first one of them.
        """
        while self._begun:
            self._begun.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:  # what has begun ends; what has not is dropped, as after an interruption
            self._pool.shutdown(wait=True, cancel_futures=True)
