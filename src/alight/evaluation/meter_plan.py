"""The plan of a meter: about how long every family of figures takes, and which of them fit into the time."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alight.config import MeterLatentsConfig
from alight.evaluation.latent_meter import (
    FALLBACK,
    FAMILY_OF,
    HELD_OUT,
    IMAGES_PER_DIMENSION,
    WIDE,
    WIDE_DRAWS,
    Meter,
)
from alight.evaluation.meter_subjects import Subject
from alight.evaluation.velocity_probe import train_probe
from alight.metrics.image_covariance import ImageCovariance
from alight.metrics.latent_figures import DENSITY_VECTORS, PERPLEXITY
from alight.runtime.errors import InputError
from alight.runtime.units import duration

# Measured on one core of an AMD EPYC (Zen 5); the rest is timed on the spot.
MAP_SECONDS = 6e-4  # of a t-SNE map, per n log n of its vectors
PAIR_SECONDS = 2e-9  # per number of a vector and pair of vectors
FRECHET_SECONDS = 4e-9  # of a Frechet distance, per cube of its features
TIMED_STEPS = 4  # of the probe
SHORTER = {  # options that make a family cheaper, besides the number of images
    "covariance": "draws",
    "density": "density_runs",
    "midpoints": "draws",
    "probe": "probe.steps",
}


@dataclass(frozen=True)
class Plan:
    """The families to measure.

    Attributes:
        seconds: by family, for all tokenizers together, those that are left out as well.
        left_out: families that the time is too short for.
        minutes: that there are.
    """

    seconds: dict[str, float]
    left_out: list[str]
    minutes: float

    @property
    def families(self) -> list[str]:
        """The ones to measure, the cheapest first."""
        return sorted(
            (name for name in self.seconds if name not in self.left_out), key=lambda name: self.seconds[name]
        )

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {duration(self.seconds[name])}" for name in self.families)
        total = duration(sum(self.seconds[name] for name in self.families))
        rest = f"; left out, to end within {self.minutes:g} minutes: {', '.join(self.left_out)}" * bool(self.left_out)
        return f"about {total} ({parts}){rest}"


def plan(meter: Meter, subject: Subject, count: int) -> Plan:
    """Estimate the time, and leave out the most expensive families while they do not fit.

    That of the figure which decides on the order stays in any case; for a study, no figure decides.

    Args:
        meter: of all.
        subject: one of the tokenizers; the others are taken to be like it.
        count: of all tokenizers.

    Raises:
        InputError: not even the family that decides fits, or for a study none at all.
    """
    config = meter.config
    seconds = {name: count * each for name, each in estimates(meter, subject)}
    deciding = None
    if config.study is None:
        wanted = (FAMILY_OF[figure] for figure in (config.rank_by, *FALLBACK))
        deciding = next(family for family in wanted if family in seconds)  # that of the covariance always is
    least = deciding or min(seconds, key=lambda each: seconds[each])
    if seconds[least] > 60 * config.minutes:
        role = f"'{least}', which decides on the order," if deciding else f"the cheapest, '{least}',"
        another = ", or give another --rank-by" * bool(deciding)
        shorter = " and ".join([name for name in [SHORTER.get(least)] if name] + ["count"])
        raise InputError(
            f"Of the figures, {role} would alone take about {duration(seconds[least])} for {count} tokenizers, and "
            f"minutes is {config.minutes:g}. Give more --minutes, or lower {shorter}{another}."
        )
    left_out: list[str] = []
    for name in sorted(seconds, key=lambda each: -seconds[each]):
        if sum(value for key, value in seconds.items() if key not in left_out) <= 60 * config.minutes:
            break
        if name != deciding:
            left_out.append(name)
    return Plan(seconds, left_out, config.minutes)


def estimates(meter: Meter, subject: Subject) -> Iterator[tuple[str, float]]:
    """About the seconds of every family that these latents can have, for one tokenizer."""
    config, images = meter.config, len(subject.latents)
    channels, numbers = subject.shape[0], math.prod(subject.shape)
    spent = covariance_seconds(subject.latents.flatten(2), config.draws)
    if images >= IMAGES_PER_DIMENSION * numbers and numbers > channels:  # of fewer, the matrix may not fit into memory
        spent += covariance_seconds(subject.latents.reshape(images, numbers, 1), config.draws)
    yield "covariance", spent
    yield "other latents", PAIR_SECONDS * images**2 * channels
    if subject.labels is not None:
        yield "neighbours", PAIR_SECONDS * images**2 * channels
    if config.density_runs and images > 3 * PERPLEXITY:
        vectors = min(images, DENSITY_VECTORS)
        yield "density", config.density_runs * MAP_SECONDS * vectors * math.log(vectors)
    if config.probe.steps:
        steps = min(TIMED_STEPS, config.probe.steps)
        short = config.probe.model_copy(update={"steps": steps})
        train_probe(
            subject.latents, config.probe.model_copy(update={"steps": 1}), config.seed, meter.device
        )  # warm up
        once = timed(lambda: train_probe(subject.latents, short, config.seed, meter.device)) / steps
        yield "probe", once * (config.probe.steps + images / HELD_OUT / config.probe.batch_size)
    if subject.vae is not None and meter.images is not None:
        yield from decoding(meter, subject, config)


def covariance_seconds(latents: Tensor, draws: int) -> float:
    """About the seconds of the spectra of all draws of latents (N, C, n)."""
    made: list[ImageCovariance] = []
    once = timed(lambda: made.append(ImageCovariance(latents.numpy())))
    return once + draws * timed(lambda: made[0].spectrum(np.arange(len(latents))))


def decoding(meter: Meter, subject: Subject, config: MeterLatentsConfig) -> Iterator[tuple[str, float]]:
    """The same of the families that decode, or look at the images."""
    assert subject.vae is not None
    assert meter.images is not None
    batch, rounds = subject.latents[: config.batch_size], math.ceil(len(subject.latents) / config.batch_size)
    subject.vae.to(meter.device)
    with torch.no_grad():
        decoded = subject.decode(batch, meter.device)
        once = timed(lambda: subject.decode(batch, meter.device))
        yield "drift", 2 * once * rounds
        if meter.networks.foundation is not None:
            network, grid = meter.networks.foundation, subject.shape[1:]
            yield "Gram agreement", rounds * timed(lambda: network(decoded, grid=grid))
    subject.vae.to("cpu")
    features = meter.networks.extractor(meter.images.config.size, meter.device).dimension
    draws = min(config.draws, WIDE_DRAWS) if features > WIDE else config.draws
    yield "midpoints", once * rounds + draws * FRECHET_SECONDS * features**3


def timed(work: Callable[[], object]) -> float:
    """The seconds of some work."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
