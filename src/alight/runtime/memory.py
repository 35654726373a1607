"""Memory that runs out in training: the message says which micro-batch fits, found by trying smaller ones."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from alight.runtime.errors import InputError

Work = TypeVar("Work", bound=Callable[..., Any])


@dataclass(frozen=True)
class SmallerAttempts:
    """The same work on fewer images.

    Attributes:
        images: in the micro-batch that did not fit.
        attempt: the work on so many of them.
        device: of the work.
        reserve: bytes that must stay free beside it, such as those of an optimizer that has not taken a step yet.
        checkpointing: activations are computed again already, rather than kept.
    """

    images: int
    attempt: Callable[[int], object]
    device: torch.device
    reserve: int
    checkpointing: bool

    def largest(self) -> int | None:
        """The largest part of the micro-batch that divides it and fits; None where none does."""
        return next((count for count in smaller_divisors(self.images) if self._fits(count)), None)

    def _fits(self, images: int) -> bool:
        release_cached_memory(self.device)
        try:
            kept = torch.empty(self.reserve, dtype=torch.uint8, device=self.device)
            self.attempt(images)
        except torch.OutOfMemoryError:
            return False
        del kept
        return True


def explains_shortage(smaller: Callable[..., SmallerAttempts]) -> Callable[[Work], Work]:
    """Make a decorator of work on a micro-batch: where memory runs out, the user is told which micro-batch fits.

    Args:
        smaller: `smaller(work, *arguments)`, the same work on fewer images.
    """

    def decorate(work: Work) -> Work:
        @functools.wraps(work)
        def explained(*arguments: Any, **options: Any) -> Any:
            try:
                return work(*arguments, **options)
            except torch.OutOfMemoryError:
                pass  # what follows needs the memory that the traceback holds on to
            raise shortage(smaller(work, *arguments, **options))

        return cast(Work, explained)

    return decorate


def unexplained(work: Work) -> Work:
    """The work without its explanation, for those who try micro-batches themselves."""
    return cast(Work, inspect.unwrap(work))


def shortage(attempts: SmallerAttempts) -> InputError:
    """The message. Nothing is tried where other processes would wait for it."""
    several = dist.is_initialized() and dist.get_world_size() > 1
    fitting = None if several else attempts.largest()
    remedies = []
    if fitting is not None:
        remedies = [f"training.micro_batch_size to {fitting}, which fits, so that a batch is taken in more parts"]
    elif several and attempts.images > 1:
        remedies = ["training.micro_batch_size to a smaller divisor, so that a batch is taken in more parts"]
    if not attempts.checkpointing:
        remedies.append("training.activation_checkpointing to true, which takes less memory and more time")
    given = f"Set {', or '.join(remedies)}." if remedies else "Take a smaller model, or a device with more memory."
    images = "1 image" if attempts.images == 1 else f"{attempts.images} images"
    none = "" if several or fitting or attempts.images == 1 else ", nor does a single image"
    return InputError(f"A micro-batch of {images} does not fit into the memory of {attempts.device}{none}. {given}")


def smaller_divisors(count: int) -> list[int]:
    """The numbers below `count` that divide it, falling."""
    return [divisor for divisor in range(count // 2, 0, -1) if count % divisor == 0]


def release_cached_memory(device: torch.device) -> None:
    """Give back what the allocator of a device keeps for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
