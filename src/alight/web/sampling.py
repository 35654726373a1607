"""Sampling in batches, with previews and a way to stop."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError
from torch import Tensor, nn

from alight.config import SolverConfig
from alight.config.recipes import explain
from alight.runtime.device import autocast
from alight.runtime.errors import InputError
from alight.runtime.pixels import PixelArray
from alight.runtime.seeding import derive_seed
from alight.web.jobs import Stopped, stream
from alight.web.served import Served, ServedPipeline

MAX_STEPS = 250
SEEDS = 2**63  # exclusive upper bound
MAX_GUIDANCE = 10.0
PREVIEW_EVERY = 0.4  # seconds at least
PREVIEW_SHARE = 0.2  # of the time at most


@dataclass(frozen=True)
class SampleRequest:
    """Images to make: image i has label i and the i-th seed, exactly as 'alight sample' numbers them."""

    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    sampling: SolverConfig


class Progress(NamedTuple):
    """The progress of a request.

    Attributes:
        finished: number of finished images.
        under_way: number of images in the current batch.
        steps: solver steps of the current batch.
        evaluations: of the network so far; also grows with solvers that report no steps.
        images: (N, H, W, 3) finished images, then previews; None = nothing new.
    """

    finished: int
    under_way: int
    steps: int
    evaluations: int
    images: PixelArray | None


class Samples(NamedTuple):
    """The finished images of a request, their network evaluations, and the total time."""

    images: PixelArray
    nfe: list[int]
    seconds: float


def sample_request(
    labels: Sequence[int], per_class: float | None, seed: float | None, settings: dict[str, Any], max_images: int
) -> SampleRequest:
    """Turn the page's values into a request.

    Raises:
        InputError: a value is missing, out of range or contradictory.
    """
    if not labels:
        raise InputError("Choose at least one class.")
    count, first = _whole("the number of images", per_class, 1), _whole("the seed", seed, 0)
    total = count * len(labels)
    if total > max_images:
        raise InputError(
            f"{len(labels)} classes with {count} images each are {total} images; this server makes at most "
            f"{max_images} at once. Choose fewer."
        )
    repeated = tuple(label for label in labels for _ in range(count))
    seeds = tuple(derive_seed(first, "sample", i) for i in range(total))
    return SampleRequest(repeated, seeds, solver_settings(settings))


def solver_settings(settings: dict[str, Any]) -> SolverConfig:
    """Validate the solver's settings, also against the limits of this server.

    Raises:
        InputError: a value is out of range.
    """
    try:
        sampling = SolverConfig.model_validate(settings)
    except ValidationError as error:
        raise InputError(f"These settings cannot be used: {explain(SolverConfig, error)}") from error
    if sampling.num_inference_steps > MAX_STEPS:
        raise InputError(f"{sampling.num_inference_steps} steps are too many here; take at most {MAX_STEPS}.")
    for scale in (sampling.guidance_scale, sampling.internal_scale):
        if scale > MAX_GUIDANCE:
            raise InputError(f"A guidance scale of {scale:g} is too large; take at most {MAX_GUIDANCE:g}.")
    return sampling


def _whole(name: str, value: float | None, least: int) -> int:
    if value is None or not least <= value < SEEDS or value != int(value):  # also refuses NaN and infinity
        raise InputError(f"Give {name} as a whole number of at least {least} and below 2^63, not {str(value):.40}.")
    return int(value)


def watch_samples(
    served: Served, which: ServedPipeline, request: SampleRequest, stop: threading.Event
) -> Iterator[Progress | Samples]:
    """Generate the images of a request; yields its progress, and the images last.

    Raises:
        Stopped: the visitor stopped it.
        InputError: the pipeline does not support the request.
    """

    def work(tell: Callable[[Progress | Samples], None]) -> None:
        with served.lock, checked_before_each_evaluation(which.pipeline.transformer, stop):
            tell(_Watch(served, which, request, tell).run())

    return stream(work, stop)


@contextmanager
def checked_before_each_evaluation(network: nn.Module, stop: threading.Event) -> Iterator[None]:
    """Within the block, the network raises `Stopped` once `stop` is set; works with every solver."""

    def check(*_: Any) -> None:
        if stop.is_set():
            raise Stopped

    handle = network.register_forward_pre_hook(check)
    try:
        check()
        yield
    finally:
        handle.remove()


class _Watch:
    """One request in progress: counts images and evaluations, and makes previews as long as they cost little."""

    def __init__(
        self, served: Served, which: ServedPipeline, request: SampleRequest, tell: Callable[[Progress], None]
    ) -> None:
        self.served, self.which, self.request, self.tell = served, which, request, tell
        self.done: list[PixelArray] = []
        self.next_preview = self.last_word = 0.0
        self.evaluations = 0

    def run(self) -> Samples:
        started, nfe = time.perf_counter(), []
        with counted_evaluations(self.which.pipeline.transformer, self._count):
            for start in range(0, len(self.request.labels), self.served.config.batch_size):
                part = slice(start, start + self.served.config.batch_size)
                with autocast(self.served.device, self.served.config.precision):
                    result = self.which.pipeline(
                        class_labels=self.request.labels[part],
                        seeds=self.request.seeds[part],
                        output_type="uint8",
                        on_step=self._on_step,
                        **self.request.sampling.model_dump(),
                    )
                self.done.append(result.images.cpu().numpy())
                nfe += [result.nfe] * len(self.done[-1])
        return Samples(np.concatenate(self.done), nfe, time.perf_counter() - started)

    def _count(self) -> None:
        self.evaluations += 1
        if self.evaluations % 10 == 0:  # adaptive solvers report no steps
            self._say(0, None)

    def _on_step(self, steps: int, latents: Tensor) -> None:
        now = time.perf_counter()
        if now < self.next_preview or steps == self.request.sampling.num_inference_steps:
            return self._say(steps, None)
        with autocast(self.served.device, self.served.config.precision):
            preview = self.which.pipeline.decode(latents).cpu().numpy()
        finished = time.perf_counter()
        self.next_preview = finished + max(PREVIEW_EVERY, (finished - now) * (1 / PREVIEW_SHARE - 1))
        self._say(steps, np.concatenate([*self.done, preview]))

    def _say(self, steps: int, images: PixelArray | None) -> None:
        now = time.perf_counter()
        if images is not None or now - self.last_word > PREVIEW_EVERY / 2:
            self.last_word = now
            finished = sum(map(len, self.done))
            under_way = min(self.served.config.batch_size, len(self.request.labels) - finished)
            self.tell(Progress(finished, under_way, steps, self.evaluations, images))


@contextmanager
def counted_evaluations(network: nn.Module, count: Callable[[], None]) -> Iterator[None]:
    """Within the block, call `count` after each evaluation of the network."""
    handle = network.register_forward_hook(lambda *_: count())
    try:
        yield
    finally:
        handle.remove()
