"""Small jobs of several processes: how they begin, and how they end."""

import time
from pathlib import Path

from alight.training.checkpoint import list_checkpoints
from helpers.warm import AlightProcess

STEPS = 40
SOON = 40  # seconds on a busy machine; a job that waits for a collective operation takes at least a quarter of an hour


def training(latents: Path, output: Path, **options: object) -> list[str]:
    """The words that train a small transformer, with a checkpoint after every fourth step."""
    options = {"steps": STEPS, "global_batch_size": 8, "checkpoint_every": 4, "log_every": 4} | options
    return [
        *("transformer", "train", "--latents", str(latents), "--output", str(output), "--device", "cpu"),
        *("--model.preset", "None", "--model.hidden-size", "64", "--model.num-layers", "3", "--model.num-heads", "2"),
        *("--model.patch-size", "1", "--optimizer.lr", "1e-3"),
        *(part for key, value in options.items() for part in (f"--training.{key.replace('_', '-')}", str(value))),
    ]


def begun(job: list[AlightProcess], output: Path) -> list[AlightProcess]:
    """Wait until a job has saved something."""
    while not list_checkpoints(output / "training"):
        assert None in [process.poll() for process in job], [process.communicate() for process in job]
        time.sleep(0.01)
    return job


def finish(job: list[AlightProcess]) -> tuple[list[int | None], list[str]]:
    """Exit codes and messages of all processes, which end soon."""
    deadline = time.monotonic() + SOON
    messages = [process.communicate(timeout=max(1, deadline - time.monotonic()))[1] for process in job]
    return [process.returncode for process in job], messages


def paragraphs(messages: list[str]) -> list[str]:
    """The closing words of processes, without progress and logs."""
    return [line for text in messages for line in text.splitlines() if "alight: rank" in line]
