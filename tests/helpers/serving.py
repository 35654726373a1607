"""`alight serve` in a process of its own, for the tests that talk to it."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.command_line import alight_command


class Server:
    """A running server: where it answers, and what it takes."""

    def __init__(self, process: subprocess.Popen, url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log

    @property
    def memory(self) -> int:
        """Resident bytes now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def interrupt(self, number: int = signal.SIGINT) -> int:
        """Send a signal; gives the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def interrupt_once(self) -> None:
        """Send SIGINT, and do not wait."""
        self.process.send_signal(signal.SIGINT)


@contextmanager
def serving(folder: Path, log: Path, *options: object, **environment: str) -> Iterator[Server]:
    """Start a server on a free port, wait until it says where it is, and end it afterwards."""
    command = alight_command("serve", folder, "--port", "0", *options)
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    try:
        line = process.stdout.readline()
        assert line.startswith("Serving at http"), log.read_text()
        server = Server(process, line.split()[2], log)
        yield server
        if process.poll() is None:
            assert server.interrupt() == 130, log.read_text()
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def wait_until(condition, seconds: float = 30) -> None:
    """Wait until something is true, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)
