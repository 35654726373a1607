"""A watch over the other processes of a job, so that none of them waits for one that is gone.

Every process shows in the store of the job that it lives, and looks there for the others, in a thread that goes on
while the main thread waits inside a collective operation. It ends the process at once, without waiting for anybody,
when another process has failed, was killed, or has been silent for too long.
"""

import itertools
import json
import os
import socket
import sys
import threading
import time
from typing import NoReturn

import torch.distributed as dist

from alight.runtime.errors import EXIT_BUG, EXIT_USER_ERROR, InputError, exit_code, one_line
from alight.runtime.interrupt import Interrupted, ignore_termination
from alight.runtime.meeting import (
    PATIENCE_VARIABLE,
    Failure,
    hosts_store,
    own_store,
    patience,
    post_failure,
    read_failure,
    within,
)
from alight.runtime.terminal import paint, printable
from alight.runtime.units import duration

_BEAT = 1.0  # seconds
_SETTLING = 4 * _BEAT  # in which the death of a process is noticed, after the connection to it was lost
_LAST_WORD = "finished"
_CONNECTION_WORDS = ("gloo", "nccl", "connection", "timed out", "socket", "broken pipe")

_joined = itertools.count()  # groups of this process so far; each one uses its own part of the store


class Watch:
    """The watch of one process, from joining the others until `leave`.

    Args:
        rank: of this process.
        world_size: number of processes.

    Attributes:
        name: of the part of the job's store that belongs to this group.
        store: this part, for the main thread.
        patience: seconds for which another process may be silent.

    Raises:
        InputError: the others cannot be met, or did not all come.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.patience = rank, patience()
        self.machine, self._own_pid = _machine(), os.getpid()
        self._others = [other for other in range(world_size) if other != rank]
        self._over, self._ending = threading.Event(), threading.Lock()
        self.name = str(next(_joined))
        self.store, self._heard_through = own_store(self.name), own_store(self.name)
        self._members = self._meet(world_size)
        self._rounds = 0
        self._listener = threading.Thread(target=self._listen, name="alight-listener", daemon=True)
        self._listener.start()
        threading.Thread(target=self._require_answers, name="alight-watch", daemon=True).start()

    def _meet(self, world_size: int) -> list[tuple[str, int]]:
        """Machine and process of every rank, when all of them are there."""
        own = json.dumps([self.machine, self._own_pid])
        if self.store.compare_set(_member(self.rank), "", own).decode() != own:
            raise InputError(
                f"Another process is rank {self.rank} at MASTER_ADDR {os.environ['MASTER_ADDR']}, port "
                f"{os.environ['MASTER_PORT']}: another job meets there. Set MASTER_PORT to a free port."
            )
        self.store.set(_beat(self.rank), "0")
        keys = [_member(each) for each in range(world_size)]
        deadline = time.monotonic() + self.patience
        while not self.store.check(keys):
            failure = read_failure(self.store)
            if failure is not None:
                self._end(failure)
            if time.monotonic() > deadline:
                missing = [each for each in range(world_size) if not self.store.check([_member(each)])]
                message = f"{_ranks(missing)} of {world_size} did not come within {duration(self.patience)}. Look for "
                message += f"the messages there; {PATIENCE_VARIABLE} allows more seconds."
                self._end(self._post(Failure(self.rank, self.machine, EXIT_USER_ERROR, message)))
            time.sleep(0.1)
        return [tuple(json.loads(value)) for value in self.store.multi_get(keys)]

    def leave(self) -> None:
        """End the watch where this process has nothing left to do with the others."""
        self._over.set()
        self._listener.join(_SETTLING)  # it must not say after the last word that this process lives
        within(_SETTLING, lambda: self.store.set(_beat(self.rank), _LAST_WORD))
        if hosts_store():  # the others take their leave in it
            deadline = time.monotonic() + 10 * _BEAT
            while self._unfinished() and time.monotonic() < deadline:
                time.sleep(_BEAT / 20)

    def _unfinished(self) -> bool:
        """True while another process has not taken its leave."""
        heard = within(_BEAT, lambda: self.store.multi_get([_beat(other) for other in self._others]))
        return heard is None or any(value.decode() != _LAST_WORD for value in heard)

    def failed(self, error: BaseException) -> None:
        """Tell the others why this process ends; returns where it is the first to fail, and leaves otherwise."""
        if isinstance(error, Interrupted) and error.agreed:
            self.leave()
            return
        ignore_termination()
        if isinstance(error, Interrupted):
            time.sleep(_SETTLING)  # a launcher ends the processes that are left after one has failed
        if _lost_connection(error):
            within(_SETTLING, lambda: self.store.set(_late(self.rank), "1"))
            time.sleep(_SETTLING)  # the watch ends this process as soon as it finds the reason
            message = self._explained_loss(error)
            self._end(self._post(Failure(self.rank, self.machine, EXIT_BUG, message)))
        self._over.set()  # from here on this thread ends the process
        standing = self._post(_failure(self.rank, self.machine, error))
        if standing.rank != self.rank:
            self._end(standing)
        self._linger()

    def _linger(self) -> None:
        """Give the others the time to read of the failure where they read it in this process."""
        if hosts_store():
            time.sleep(3 * _BEAT)

    def _post(self, failure: Failure) -> Failure:
        """The failure that counts for the job; one's own where nobody can be told."""
        return within(_SETTLING, lambda: post_failure(self.store, failure)) or failure

    def _explained_loss(self, error: BaseException) -> str:
        """A paragraph on a connection that was lost although every process lives, or that took too long."""
        late = within(_BEAT, lambda: [other for other in self._others if self.store.check([_late(other)])])
        text = one_line(error)
        absent = [other for other in self._others if late is not None and other not in late]
        if absent and "timed out" in text.lower():
            return (
                f"{_ranks(absent)} did not come to an operation that all processes share, though still running: "
                f"reading or writing files may have stalled there. {text}"
            )
        return (
            f"The connection to another process was lost: {text}. Check the network; GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME choose the interface."
        )

    # --- in threads of its own ------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Show that this process lives, and look after the others."""
        heard: dict[int, str] = {}
        silent = dict.fromkeys(self._others, 0.0)
        while not self._over.wait(_BEAT):
            gone = [other for other in self._others if self._is_gone(other)]  # before their last words are read
            try:
                self._heard_through.set(_beat(self.rank), str(self._rounds + 1))
                words = self._heard_through.multi_get([_beat(other) for other in self._others])
                failure = read_failure(self._heard_through)
            except RuntimeError as error:
                self._lose_store(error)
                return
            self._rounds += 1
            if failure is not None and not self._over.is_set():
                self._end(failure)
            for other, word in zip(self._others, words, strict=True):
                # counted while this process ran, so that a job that was suspended as a whole can go on
                silent[other] = silent[other] + _BEAT if heard.get(other) == word.decode() else 0.0
                heard[other] = word.decode()
            left = [other for other in self._others if heard[other] != _LAST_WORD]
            self._require(
                [other for other in left if other in gone],
                "ended without a message: killed, by the system if memory ran out, or crashed",
            )
            self._require(
                [other for other in left if silent[other] > self.patience],
                f"gave no sign of life for {duration(self.patience)}: stopped, or without a connection",
            )

    def _require(self, missing: list[int], fate: str) -> None:
        """End the job if any process is missing."""
        if missing and not self._over.is_set():
            shown = ", ".join(f"rank {other} (process {self._members[other][1]})" for other in missing)
            machines = ", ".join(sorted({self._members[other][0].partition(" ")[0] for other in missing}))
            message = f"{shown} on {machines} {fate}. The same command goes on from what was saved."
            self._end(self._post(Failure(self.rank, self.machine, EXIT_BUG, message)))

    def _is_gone(self, other: int) -> bool:
        """True for a process on this machine that is no more."""
        machine, pid = self._members[other]
        if machine != self.machine or os.name != "posix":
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # of another user
            return False
        return False

    def _require_answers(self) -> None:
        """End this process if the store does not answer: whoever holds it has stopped."""
        rounds, silent = 0, 0.0
        while not self._over.wait(_BEAT):
            silent = silent + _BEAT if self._rounds == rounds else 0.0
            rounds = self._rounds
            if silent > self.patience + _BEAT:
                fate = f"gave no sign of life for {duration(self.patience)}: stopped, or without a connection"
                self._end(Failure(self.rank, self.machine, EXIT_BUG, f"{self._host()} {fate}."))

    def _lose_store(self, error: Exception) -> None:
        """End this process after the store was lost, unless it is about to end by itself."""
        if not self._over.wait(_BEAT):
            message = f"{self._host()} has ended, and with it the job; its messages may say why ({one_line(error)})."
            self._end(Failure(self.rank, self.machine, EXIT_BUG, message))

    def _host(self) -> str:
        """A name for the process that holds the store."""
        where = f"at MASTER_ADDR {os.environ['MASTER_ADDR']}"
        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return f"torchrun {where}" if agent else f"rank 0 (process {self._members[0][1]}) {where}"

    def _end(self, failure: Failure) -> NoReturn:
        """Leave at once, with one message on every machine."""
        self._over.set()
        self._ending.acquire()  # never released: another thread that comes here waits for the end of the process
        here = failure.machine == self.machine
        if failure.rank == self.rank:
            say(f"rank {self.rank}: {failure.message}")
        elif not here and os.environ.get("LOCAL_RANK", "0") == "0":
            say(f"rank {self.rank}: stopped, because rank {failure.rank} said: {failure.message}")
        self._linger()
        leave_at_once(failure.exit_code)


def say(message: str) -> None:
    """Print a message of the job's end."""
    print(f"\n{paint('alight:', 'red', sys.stderr)} {printable(message)}", file=sys.stderr)


def leave_at_once(code: int) -> NoReturn:
    """End this process without waiting for other processes or threads; what was printed arrives."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def said_by_another_process(error: BaseException) -> bool:
    """Tell the other processes of a failure before they have met; true where one of them has said the same."""
    if hosts_store():
        return False
    rank, machine = int(os.environ.get("RANK", "0")), _machine()
    own = _failure(rank, machine, error)

    def post() -> Failure:
        store, member = own_store("0"), json.dumps([machine, os.getpid()])
        if store.check([_member(rank)]) and store.get(_member(rank)).decode() != member:
            return own  # another job meets here, which must not end
        return post_failure(store, own)

    standing = within(_SETTLING, post)
    return standing is not None and standing.rank != rank and standing.message == own.message


def _failure(rank: int, machine: str, error: BaseException) -> Failure:
    name, text = type(error).__name__, one_line(error, 2000)
    message = text if isinstance(error, InputError) or text == name else f"{name}: {text}"
    return Failure(rank, machine, exit_code(error), message)


def _lost_connection(error: BaseException) -> bool:
    """True for an error of communication, whose reason is likely to lie in another process."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and any(word in text for word in _CONNECTION_WORDS)
    )


def _machine() -> str:
    """A name for the machine, and for the part of it in which process numbers have the same meaning."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _ranks(numbers: list[int]) -> str:
    return ("Ranks " if len(numbers) > 1 else "Rank ") + ", ".join(map(str, numbers))


def _member(rank: int) -> str:
    return f"member/{rank}"


def _beat(rank: int) -> str:
    return f"beat/{rank}"


def _late(rank: int) -> str:
    return f"late/{rank}"
