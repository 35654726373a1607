"""The writing of checkpoints while training goes on."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from alight.training.checkpoint import save_checkpoint, save_sharded_checkpoint


class BackgroundWriter:
    """Saves checkpoints in a thread, so that training waits for a copy in memory and not for the disk.

    Args:
        folder: of the run.
        keep: how many of the newest checkpoints stay.
        keep_every: those of steps that this divides stay as well.
        group: of processes that write a part each, for the messages of their threads alone, over gloo; None = this
            process writes whole checkpoints.
        keep_at: steps whose checkpoints stay as well.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        keep_every: int | None = None,
        group: dist.ProcessGroup | None = None,
        keep_at: Collection[int] = (),
    ) -> None:
        kept: dict[str, Any] = {"keep": keep, "keep_every": keep_every, "keep_at": keep_at}
        self._write = partial(save_checkpoint, folder, **kept)
        if group is not None:
            self._write = partial(save_sharded_checkpoint, folder, **kept, group=group)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy the state and begin to write it; waits for the checkpoint before.

        Raises:
            InputError: the checkpoint before could not be written.
        """
        self.wait()
        self._writing = self._thread.submit(self._write, step=step, state=_copied_to_host(state))

    def wait(self) -> None:
        """Until what was begun is on the disk.

        Raises:
            InputError: it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """End the thread, after what it has begun."""
        self._thread.shutdown(wait=True)


def _copied_to_host(value: Any) -> Any:
    match value:
        case Tensor():  # of a divided one, this process's part
            return value.detach().to("cpu", copy=True)
        case dict():
            return {key: _copied_to_host(item) for key, item in value.items()}
        case list():
            return [_copied_to_host(item) for item in value]
        case _:
            return value
