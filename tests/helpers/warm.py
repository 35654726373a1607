"""The real command line in a real process that begins with everything imported, which else takes seconds each time.

A server imports the libraries once and forks a process for every command. What runs there is `alight.cli.main` with
the arguments, the environment and the folder that it is given, writing to files of its own.
"""

import multiprocessing
import os
import resource
import signal
import socket
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

from helpers.command_line import ENVIRONMENT

PRELOADED = [
    *("torch", "diffusers", "diffusers.models.autoencoders.autoencoder_kl", "transformers", "tyro", "sklearn.svm"),
    *("alight.cli", "alight.studies.quickstart", "alight.stages.train_foundation", "alight.stages.train_tokenizer"),
    *("alight.stages.extract_latents", "alight.stages.train_transformer", "alight.stages.generate_samples"),
    *("alight.stages.evaluate", "alight.stages.evaluate_tokenizer", "alight.tune.search", "helpers.parsed"),
]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


class AlightProcess:
    """`alight ...` in a process of its own, with the methods of `subprocess.Popen` that tests need.

    Args:
        arguments: after `alight`.
        cwd: where it runs.
        largest_file: bytes that it may write to one file, as if the disk were full.
        environment: on top of what the tests run with.
    """

    def __init__(
        self, arguments: list[str], cwd: Path | None = None, largest_file: int | None = None, **environment: str
    ) -> None:
        self.arguments = arguments
        self._outputs = [tempfile.NamedTemporaryFile() for _ in range(2)]
        paths = [output.name for output in self._outputs]
        os.environ.update(ENVIRONMENT)  # the server begins with what is set now
        self._process = _context.Process(
            target=_run, args=(arguments, str(cwd or Path.cwd()), dict(os.environ) | environment, paths, largest_file)
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for the end; gives what it wrote to stdout and stderr."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.send_signal(signal.SIGKILL)
            self._process.join()
            raise TimeoutExpired(self.arguments, timeout)
        texts = []
        for output in self._outputs:
            output.seek(0)
            texts.append(output.read().decode())
        return texts[0], texts[1]


def run(
    arguments: list[str], cwd: Path | None = None, timeout: float = 300, **environment: str
) -> CompletedProcess[str]:
    """Run a command to its end; nothing is checked."""
    process = AlightProcess(arguments, cwd, None, **environment)
    stdout, stderr = process.communicate(timeout)
    return CompletedProcess(arguments, process.returncode, stdout, stderr)


def run_together(arguments: list[str], processes: int, timeout: float = 300) -> CompletedProcess[str]:
    """Run a command in several processes over gloo, told what torchrun would tell them; the first one answers."""
    started = start_together(arguments, processes)
    results = [process.communicate(timeout) for process in started]
    errors = "".join(stderr for _, stderr in results)
    code = next((process.returncode for process in started if process.returncode), 0)
    return CompletedProcess(arguments, code, results[0][0], errors)


def run_apart(arguments: list[str], folders: list[Path], timeout: float = 300) -> list[CompletedProcess[str]]:
    """The same with each process in another folder, as if on machines without a shared file system; all answer."""
    words = [str(argument) for argument in arguments]
    started = start_together(words, len(folders), folders)
    outputs = [process.communicate(timeout) for process in started]
    return [
        CompletedProcess(words, process.returncode, *output) for process, output in zip(started, outputs, strict=True)
    ]


def start_together(
    arguments: list[str], processes: int, folders: list[Path] | None = None, **environment: str
) -> list[AlightProcess]:
    """Begin such a command."""
    shared = rendezvous(processes) | environment
    places = folders or [Path.cwd()] * processes
    return [
        AlightProcess(arguments, place, **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, place in enumerate(places)
    ]


def rendezvous(processes: int) -> dict[str, str]:
    """The environment of a job of so many processes, which each of them completes by its rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _run(
    arguments: list[str], cwd: str, environment: dict[str, str], outputs: list[str], largest_file: int | None
) -> None:
    for number, path in zip((1, 2), outputs, strict=True):
        descriptor = os.open(path, os.O_RDWR)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    sys.argv = ["alight", *arguments]
    from alight.cli import main

    main(arguments)
