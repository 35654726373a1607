"""Training runs: what they logged, and stopping them within."""

import contextlib
import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from alight.config import TrainTransformerConfig
from alight.stages import train_foundation, train_tokenizer, train_transformer
from alight.training import optimizer
from helpers import warm


class StoppedError(Exception):
    """Ends a training run within a test."""


def log_of(folder: Path) -> list[dict]:
    """The lines that a run has logged."""
    return [json.loads(line) for line in (folder / "training" / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    """The loss of each of these lines."""
    return [line["loss"] for line in log_of(folder)]


def train_in_processes(config: TrainTransformerConfig, processes: int = 2) -> CompletedProcess[str]:
    """Train a transformer by the command line in so many processes, which must succeed."""
    recipe = config.output.with_name(f"{config.output.name}-recipe.json")
    recipe.write_text(json.dumps({"job": "transformer train", **config.model_dump(mode="json")}))
    words = ["transformer", "train", "--config", str(recipe)]
    result = warm.run_together(words, processes) if processes > 1 else warm.run(words)
    assert result.returncode == 0, result.stderr
    return result


@contextlib.contextmanager
def before_each_step(monkeypatch: pytest.MonkeyPatch, action: Callable[[int], object]) -> Iterator[None]:
    """Call `action` with the number of optimizer steps taken, before each step of the training within."""
    numbers = count()
    take_step = optimizer.optimizer_step

    def step(*arguments):
        action(next(numbers))
        return take_step(*arguments)

    with monkeypatch.context() as context:
        for stage in (train_transformer, train_tokenizer, train_foundation):
            context.setattr(stage, "optimizer_step", step)
        yield


@contextlib.contextmanager
def stopping_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> Iterator[None]:
    """End the training within after so many optimizer steps, as a power failure would."""

    def stop(number):
        if number == steps:
            raise StoppedError

    with contextlib.suppress(StoppedError), before_each_step(monkeypatch, stop):
        yield
        pytest.fail("the training ended before it was to be stopped")
