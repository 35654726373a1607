"""Figures of latents that may tell how easily they will be generated, each with its spread over images.

`FAMILIES` is the table of them: the figures of a family share their work, and one that cannot be measured on the
latents at hand gives the reason instead.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from alight.config import MeterLatentsConfig
from alight.evaluation.batches import index_batches
from alight.evaluation.features import GREY_SIDE, foundation_features
from alight.evaluation.meter_subjects import MeteredImages, Subject
from alight.evaluation.velocity_probe import held_out_errors, train_probe
from alight.metrics.features import FeatureExtractor, GreyPixels
from alight.metrics.frechet import FeatureStatistics, frechet_distance
from alight.metrics.image_covariance import ImageCovariance
from alight.metrics.latent_figures import (
    DENSITY_VECTORS,
    PERPLEXITY,
    Array,
    gini,
    latent_map,
    latent_vectors,
    normalised_entropy,
)
from alight.metrics.latent_geometry import decoder_drift, gram_agreement, midpoints, neighbour_hits, perturbed
from alight.metrics.resampling import Resampled, resample
from alight.metrics.velocity_ambiguity import WITHOUT_STRUCTURE, ambiguity_bound, leave_one_out_ambiguity
from alight.models.foundation import FoundationModel
from alight.runtime.errors import InputError
from alight.runtime.pixels import PixelArray, to_uint8
from alight.runtime.seeding import derive_seed, random_stream

IMAGES_PER_DIMENSION = 5  # below which the covariance of whole latents is mostly noise
HELD_OUT = 5  # one in so many latents is kept from the probe
DIVERGED = 2.0  # times the error without structure, from which a probe has learned nothing but to fail
WIDE, WIDE_DRAWS = 128, 20  # features, from which Frechet distances are slow, and their draws
NOT_FINITE = "On these latents it is not a finite number."
FALLBACK = ("probe_loss", "density_cv", "ambiguity_bound")  # which decide where the wanted figure is not there
Found = dict[str, Resampled]


@dataclass(frozen=True)
class Networks:
    """The networks that measure, on the device; None leaves their figures out."""

    foundation: FoundationModel | None = None
    observer: FoundationModel | None = None

    def extractor(self, size: int, device: torch.device) -> FeatureExtractor:
        """The features in which midpoints are compared with images."""
        network = self.observer or self.foundation
        return foundation_features(network, network.name, size, device) if network else GreyPixels(GREY_SIDE)


def open_networks(config: MeterLatentsConfig, device: torch.device) -> Networks:
    """The networks that the configuration names.

    Raises:
        InputError: one cannot be loaded.
    """
    named = (config.foundation, config.observer)
    return Networks(*(FoundationModel.from_pretrained(name).eval().to(device) if name else None for name in named))


@dataclass
class Meter:
    """All that measurements need.

    Attributes:
        config: of the meter.
        images: that tokenizers encode.
        networks: those that measure.
        device: of the networks.
        shared: what is measured once for all tokenizers, by name.
    """

    config: MeterLatentsConfig
    images: MeteredImages | None
    networks: Networks
    device: torch.device
    shared: dict[str, Tensor] = field(default_factory=dict)

    def generator(self, name: str) -> np.random.Generator:
        """Random numbers that are the same for all tokenizers."""
        return np.random.default_rng(derive_seed(self.config.seed, "meter", name))

    def resampled(self, statistic: Callable[[np.ndarray], float], count: int, draws: int | None = None) -> Resampled:
        """A figure with its draws: the same images for every tokenizer."""
        return resample(statistic, count, draws or self.config.draws, self.generator("draws"))

    def mean_of(self, values: np.ndarray) -> Resampled:
        """A mean over images, or over one vector of each."""
        return self.resampled(lambda chosen: float(values[chosen].mean()), len(values))

    def require_images(self, subject: Subject) -> MeteredImages:
        """The images of a tokenizer.

        Raises:
            InputError: there is no decoder.
        """
        if subject.vae is None or self.images is None:
            raise InputError("Stored latents have no decoder.")
        return self.images


def covariance(meter: Meter, subject: Subject) -> Found:
    """The bounds that the covariance alone gives, of channels and, with enough images, of whole latents."""
    images, channels = subject.latents.shape[:2]

    def bound_of(latents: Tensor) -> Resampled:
        found = ImageCovariance(latents.numpy())
        return meter.resampled(lambda chosen: ambiguity_bound(found.spectrum(chosen)) / WITHOUT_STRUCTURE, images)

    found = {"ambiguity_bound": bound_of(subject.latents.flatten(2))}
    numbers = subject.latents[0].numel()
    if images >= IMAGES_PER_DIMENSION * numbers and numbers > channels:
        found["whole_ambiguity_bound"] = bound_of(subject.latents.reshape(images, numbers, 1))
    return found


def posterior(meter: Meter, subject: Subject) -> Found:
    """The ambiguity by posteriors over the vectors of other images, at one time."""
    vectors, t = latent_vectors(subject.latents, meter.generator("positions")), meter.config.posterior_time
    found = leave_one_out_ambiguity(vectors, t, meter.generator("posterior"))
    without = 1 / (t**2 + (1 - t) ** 2)
    return {"posterior_ambiguity": meter.mean_of(found.errors / without)}


def probe(meter: Meter, subject: Subject) -> Found:
    """The error of a small LightningDiT on latents that it has not seen.

    Raises:
        InputError: there is no probe, or its training diverged.
    """
    config, seed = meter.config.probe, meter.config.seed
    if config.steps == 0:
        raise InputError("The probe has no steps.")
    order = torch.randperm(len(subject.latents), generator=random_stream(seed, "meter", "held out"))
    kept = order[: max(len(order) // HELD_OUT, 1)]
    network = train_probe(subject.latents[order[len(kept) :]], config, seed, meter.device)
    errors = held_out_errors(network, subject.latents[kept], config.batch_size, seed, meter.device)
    share = float(errors.probe.sum() / errors.trivial.sum())
    if not share <= DIVERGED:  # nor is not-a-number
        size = f"{share:.3g} times that without structure" if math.isfinite(share) else "not finite"
        raise InputError(
            f"The probe diverged, and its error on held-out latents is {size}. Lower probe.lr, which is {config.lr:g}."
        )

    def ratio(chosen: np.ndarray) -> float:
        return float(errors.probe[chosen].sum() / errors.trivial[chosen].sum())

    return {"probe_loss": meter.resampled(ratio, len(kept))}


def density(meter: Meter, subject: Subject) -> Found:
    """The evenness with which the space is filled (paper, table 6); its spread is that over the points of the maps."""
    generator = meter.generator("density")
    vectors = latent_vectors(subject.latents, generator)
    if len(vectors) <= 3 * PERPLEXITY or not meter.config.density_runs:
        raise InputError(f"Density figures need more than {3 * PERPLEXITY} images, and at least one run.")
    count = min(len(vectors), DENSITY_VECTORS)
    maps = [
        latent_map(vectors[generator.permutation(len(vectors))[:count]], generator).densities
        for _ in range(meter.config.density_runs)
    ]
    found = {}
    for name, evenness in EVENNESS.items():
        found[name] = meter.resampled(partial(_mean_over_maps, maps, evenness), count)
    return found


def _variation(densities: Array) -> float:
    return float(densities.std() / densities.mean())


def _mean_over_maps(maps: Sequence[Array], evenness: Callable[[Array], float], chosen: np.ndarray) -> float:
    return float(np.mean([evenness(densities[chosen]) for densities in maps]))


EVENNESS: dict[str, Callable[[Array], float]] = {
    "density_cv": _variation,
    "density_gini": gini,
    "density_entropy": normalised_entropy,
}


@torch.no_grad()
def drift(meter: Meter, subject: Subject) -> Found:
    """The change of decoded images by noise in their latents."""
    images = meter.require_images(subject)
    if "mean image" not in meter.shared:
        total = sum(pixels.double().sum(0) for _, pixels in images.batches(meter.config.batch_size))
        meter.shared["mean image"] = (torch.as_tensor(total) / len(images.indices)).float()
    mean = meter.shared["mean image"].to(meter.device)
    noise = torch.randn(subject.latents.shape, generator=random_stream(meter.config.seed, "meter", "drift"))
    rows = []
    for places in index_batches(range(len(subject.latents)), meter.config.batch_size):
        latents = subject.latents[places]
        moved = perturbed(latents, meter.config.perturbation, noise[places])
        before, after = (subject.decode(each, meter.device) for each in (latents, moved))
        rows.append(torch.stack([(after - before).square().sum((1, 2, 3)), (before - mean).square().sum((1, 2, 3))]))
    changes, spreads = torch.cat(rows, dim=1).cpu().double()
    return {
        "decoder_drift": meter.resampled(lambda chosen: decoder_drift(changes[chosen], spreads[chosen]), len(noise))
    }


def labels(meter: Meter, subject: Subject) -> Found:
    """The accuracy of the nearest latent's class."""
    if subject.labels is None:
        raise InputError("There is one class, or none.")
    return {"neighbour_accuracy": meter.mean_of(neighbour_hits(subject.latents, subject.labels).double().numpy())}


@torch.no_grad()
def relations(meter: Meter, subject: Subject) -> Found:
    """The agreement of similarities between positions with those of the foundation model."""
    images, network = meter.require_images(subject), meter.networks.foundation
    if network is None:
        raise InputError("No foundation model was given (--foundation).")
    rows = []
    for places, pixels in images.batches(meter.config.batch_size):
        features = network(pixels.to(meter.device), grid=subject.shape[1:])
        rows.append(gram_agreement(subject.latents[places].to(meter.device), features).cpu())
    return {"gram_agreement": meter.mean_of(torch.cat(rows).double().numpy())}


@torch.no_grad()
def interpolation(meter: Meter, subject: Subject) -> Found:
    """The Frechet distance of decoded midpoints from the images, as a share of the variance of these."""
    images, config = meter.require_images(subject), meter.config
    extractor = meter.networks.extractor(images.config.size, meter.device)
    if "features" not in meter.shared:
        batches = (pixels for _, pixels in images.batches(config.batch_size))
        meter.shared["features"] = torch.cat([extractor(as_pixels(pixels)).cpu() for pixels in batches])
    order = torch.randperm(len(images.indices), generator=random_stream(config.seed, "meter", "pairs"))
    rows = []
    for places in index_batches(range(len(order)), config.batch_size):
        first, second = (subject.latents[order.roll(shift)[places]] for shift in (0, 1))
        between = midpoints(first, second, config.interpolation)
        rows.append(extractor(as_pixels(subject.decode(between, meter.device))).cpu())
    real, made = meter.shared["features"].double().numpy(), torch.cat(rows).double().numpy()
    variance = max(float(real.var(0, ddof=1).sum()), 1e-12)

    def distance(chosen: np.ndarray) -> float:
        one, other = (FeatureStatistics.from_features(each[chosen]) for each in (made, real))
        return frechet_distance(one, other).value / variance

    draws = min(config.draws, WIDE_DRAWS) if real.shape[1] > WIDE else config.draws
    return {"midpoint_distance": meter.resampled(distance, len(real), draws)}


def as_pixels(images: Tensor) -> PixelArray:
    """Images in [-1, 1] as extractors take them: (B, H, W, 3) uint8."""
    return to_uint8(images).cpu().numpy()


FAMILIES: dict[str, Callable[[Meter, Subject], Found]] = {
    "covariance": covariance,
    "other latents": posterior,
    "neighbours": labels,
    "Gram agreement": relations,
    "drift": drift,
    "midpoints": interpolation,
    "density": density,
    "probe": probe,
}
FIGURES_OF = {  # family -> its figures
    "covariance": ("ambiguity_bound", "whole_ambiguity_bound"),
    "other latents": ("posterior_ambiguity",),
    "neighbours": ("neighbour_accuracy",),
    "Gram agreement": ("gram_agreement",),
    "drift": ("decoder_drift",),
    "midpoints": ("midpoint_distance",),
    "density": ("density_cv", "density_gini", "density_entropy"),
    "probe": ("probe_loss",),
}
FAMILY_OF = {figure: family for family, figures in FIGURES_OF.items() for figure in figures}


@dataclass
class Metered:
    """The measurements of one tokenizer.

    Attributes:
        subject: measured.
        figures: by name.
        absent: family, or a single figure of one -> the reason why it is not there.
        seconds: by family.
    """

    subject: Subject
    figures: Found = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def measure(meter: Meter, subject: Subject, families: Sequence[str] = tuple(FAMILIES)) -> Metered:
    """Measure the figures of some families; one that is not finite is left out."""
    result = Metered(subject)
    if subject.vae is not None:
        subject.vae.to(meter.device)
    for name in families:
        started = time.perf_counter()
        try:
            found = FAMILIES[name](meter, subject)
            result.figures |= {figure: value for figure, value in found.items() if value.finite}
            result.absent |= {figure: NOT_FINITE for figure, value in found.items() if not value.finite}
        except InputError as error:
            result.absent[name] = str(error)
        result.seconds[name] = time.perf_counter() - started
    if subject.vae is not None:
        subject.vae.to("cpu")  # so that several tokenizers never share the device
    return result


def seconds_of(measured: Sequence[Metered]) -> Mapping[str, float]:
    """The time of every family, over all tokenizers."""
    names = list(dict.fromkeys(name for each in measured for name in each.seconds))
    return {name: sum(each.seconds.get(name, 0.0) for each in measured) for name in names}
