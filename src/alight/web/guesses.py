"""Rate limit for wrong passwords: each one makes its address wait longer, and is logged."""

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from alight.runtime.console import log

FIRST_WAIT, LONGEST_WAIT = 0.25, 4.0  # seconds before the answer to a wrong password; doubled after each
MOST_WAITING = 32  # wrong passwords of one address with delayed answers; beyond them none is compared
FORGOTTEN_AFTER = 600.0  # seconds without a wrong password
MOST_ADDRESSES = 1000  # that are remembered
LINES_PER_MINUTE = 20  # in the log, however many addresses there are


@dataclass
class Record:
    """The record of one address."""

    wrong: int = 0
    waiting: int = 0
    last: float = 0.0


class Guesses:
    """Counts wrong passwords per address in a table of bounded size.

    The right password is accepted at once. A wrong one is answered after 0.25 s at first and 4 s in the end, and at
    most `MOST_WAITING` answers of one address wait at a time, so an address can try at most 8 passwords a second.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.records: OrderedDict[str, Record] = OrderedDict()
        self.minute, self.lines = 0.0, 0

    def too_many(self, address: str) -> bool:
        """Tell if too many answers to this address are waiting to compare another password."""
        record = self.records.get(network(address))
        return record is not None and record.waiting >= MOST_WAITING

    async def wrong(self, address: str) -> None:
        """Note a wrong password, and return when it may be answered."""
        name, now = network(address), self.clock()
        record = self.records.setdefault(name, Record())
        if now - record.last > FORGOTTEN_AFTER and not record.waiting:
            record.wrong = 0
        record.wrong, record.last = record.wrong + 1, now
        self.records.move_to_end(name)
        self._forget_the_oldest()
        self._tell(name, record.wrong, now)
        record.waiting += 1
        try:
            await asyncio.sleep(wait(record.wrong))
        finally:
            record.waiting -= 1

    def _forget_the_oldest(self) -> None:
        while len(self.records) > MOST_ADDRESSES:
            self.records.popitem(last=False)

    def _tell(self, name: str, count: int, now: float) -> None:
        """Log at counts 1, 2, 4, 8, ..., so that many attempts make few lines."""
        if count & (count - 1):
            return
        if now - self.minute > 60:
            self.minute, self.lines = now, 0
        self.lines += 1
        if self.lines <= LINES_PER_MINUTE:
            log.warning("Wrong user or password from %s (%d so far).", name, count)


def wait(count: int) -> float:
    """Seconds before the answer to the `count`th wrong password."""
    return min(FIRST_WAIT * 2.0 ** min(count - 1, 30), LONGEST_WAIT)


def network(address: str) -> str:
    """The address itself, or for IPv6 its /64 network, all of which belongs to one visitor."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "an unknown address"
    if isinstance(known, ipaddress.IPv4Address):
        return str(known)
    return str(known.ipv4_mapped or ipaddress.ip_network((known, 64), strict=False))
