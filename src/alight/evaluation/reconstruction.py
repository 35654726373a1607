"""Reconstructions of a tokenizer: every image is encoded, decoded and scored by itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alight.config import MeasureTokenizerConfig
from alight.data.image_dataset import ImageDataset
from alight.evaluation.alignment import LinearMap, alignment_scores
from alight.evaluation.batches import evenly_spread, gather_batches, index_batches, load_batches, share_of
from alight.evaluation.features import foundation_features
from alight.evaluation.geometry import geometry_rows, take_geometry
from alight.evaluation.tokenizers import EvaluatedTokenizer, MetricNetworks, applicable_projection
from alight.metrics.features import FeatureExtractor, ModelFeatures
from alight.metrics.frechet import FeatureStatistics, FrechetDistance, frechet_distance
from alight.metrics.reconstruction import image_scores
from alight.models.tokenizer import Tokenizer
from alight.runtime.ahead import sent
from alight.runtime.console import progress_bar
from alight.runtime.device import full_float32
from alight.runtime.distributed import Processes
from alight.runtime.errors import InputError
from alight.runtime.pixels import to_uint8, unit_range
from alight.runtime.seeding import derive_seed, noise_of_seeds

INCEPTION = "Inception-v3 of FID, pool 2048, resized as pytorch-fid does"  # as the published rFID
STATISTICS_IMAGES = 64  # for a look at whether the recorded statistics are of the right kind
COMPARED = ("images", "reconstructions")
CHUNK = 1_000  # images summed at once, so that rounding does not depend on the batch size


@dataclass(frozen=True)
class Measurements:
    """The measurements of one tokenizer.

    Attributes:
        tokenizer: the tokenizer.
        scores: name -> one number per image, (N,) float64, in the order of the images.
        linear_map: from its latents to the features of the foundation model, where it was fitted.
        fid: rFID, where the Inception network was given.
        observed: the same distance in the features of the observer, where one was given.
        drift: of the decoder, where the geometry of the latents was measured.
    """

    tokenizer: EvaluatedTokenizer
    scores: dict[str, Tensor]
    linear_map: LinearMap | None = None
    fid: FrechetDistance | None = None
    observed: FrechetDistance | None = None
    drift: float | None = None

    def mean(self, name: str) -> float:
        """The mean over all images."""
        return self.scores[name].mean().item()


@torch.no_grad()
def measure_reconstruction(
    tokenizer: EvaluatedTokenizer,
    dataset: ImageDataset,
    config: MeasureTokenizerConfig,
    networks: MetricNetworks,
    processes: Processes,
    linear_map: LinearMap | None = None,
) -> Measurements:
    """Score a tokenizer on every image of a data set; several processes share the work.

    The posterior noise of image i depends on the seed and i alone, and every process ends with the results of all.

    Raises:
        InputError: the images do not fit the tokenizer or a measure, or a network gives NaN.
    """
    tokenizer.vae.to(processes.device)
    batches = index_batches(range(len(dataset)), config.batch_size)
    share = share_of(batches, processes)
    loaded = load_batches(dataset, share, config.images.workers)
    extractors = _extractors(networks, config.images.size, processes.device)
    geometry = geometry_rows(dataset, config)
    rows: list[dict[str, Tensor]] = []
    bar = progress_bar(zip(share, loaded, strict=True), total=len(share), desc=tokenizer.name, unit="batch")
    for indices, pixels in bar:
        images = unit_range(sent(pixels, processes.device))
        raw_latents = encode(tokenizer.vae, images, indices, config)
        decoded = tokenizer.vae.decode_raw_latents(raw_latents).float()
        with full_float32():  # so that scores do not depend on the device
            row, features = image_scores(decoded, images, networks.lpips), None
            if networks.foundation is not None:
                features = networks.foundation(images, grid=(raw_latents.shape[2], raw_latents.shape[3]))
                projection = applicable_projection(tokenizer, networks.foundation)
                row |= alignment_scores(raw_latents, features, projection, linear_map)
        if geometry is not None:
            row |= geometry.of(tokenizer.vae, raw_latents, decoded, indices, features)
        for extractor in extractors:
            row |= _features(extractor, images, decoded)
        rows.append(row)
    tokenizer.vae.to("cpu")  # so that several tokenizers never share the device
    gathered = gather_batches(rows, processes)
    columns = {name: torch.cat([row[name] for row in gathered]) for name in gathered[0]}
    drift = take_geometry(columns, torch.as_tensor(dataset.source.labels))
    distances = {}
    for extractor in extractors:
        real, made = (_statistics(columns.pop(f"{extractor.name} of {what}"), extractor.name) for what in COMPARED)
        distances[extractor.name] = frechet_distance(made, real)
    fid = distances.pop(INCEPTION, None)
    return Measurements(tokenizer, columns, linear_map, fid, next(iter(distances.values()), None), drift)


@torch.no_grad()
def reconstruct(
    tokenizer: EvaluatedTokenizer,
    dataset: ImageDataset,
    indices: Sequence[int],
    config: MeasureTokenizerConfig,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray]:
    """Some images and their reconstructions, to be shown: (N, H, W, 3) uint8 each."""
    vae = tokenizer.vae.to(device)
    originals, decoded = [], []
    batches = index_batches(indices, config.batch_size)
    for batch, pixels in zip(batches, load_batches(dataset, batches, workers=0), strict=True):
        images = unit_range(pixels.to(device))
        originals.append(to_uint8(images))
        decoded.append(to_uint8(vae.decode_raw_latents(encode(vae, images, batch, config))))
    vae.to("cpu")
    return torch.cat(originals).cpu().numpy(), torch.cat(decoded).cpu().numpy()


@torch.no_grad()
def statistics_warning(
    tokenizer: EvaluatedTokenizer, dataset: ImageDataset, config: MeasureTokenizerConfig, device: torch.device
) -> str | None:
    """A warning where the recorded statistics of the latents do not fit these images, else None.

    Reconstruction needs no statistics, so a warning suffices.
    """
    vae = tokenizer.vae.to(device)
    indices = evenly_spread(len(dataset), STATISTICS_IMAGES)
    (pixels,) = load_batches(dataset, [indices], workers=0)
    try:
        if vae.has_latents_statistics:
            vae.check_latents_statistics(encode(vae, unit_range(pixels.to(device)), indices, config))
    except InputError as error:
        return str(error)
    finally:
        vae.to("cpu")
    return None


def encode(vae: Tokenizer, images: Tensor, indices: Sequence[int], config: MeasureTokenizerConfig) -> Tensor:
    """Raw latents (B, C, h, w): the posterior's modes, or samples whose noise each image has to itself."""
    posterior = vae.posterior(images)
    mean, std = posterior.mean.float(), posterior.std.float()
    if config.posterior == "mode":
        return mean
    seeds = [derive_seed(config.seed, "evaluation", index) for index in indices]
    return mean + std * noise_of_seeds(seeds, tuple(mean.shape[1:])).to(mean)


def _extractors(networks: MetricNetworks, image_size: int, device: torch.device) -> list[FeatureExtractor]:
    """The networks in whose features images and reconstructions are compared as sets."""
    found: list[FeatureExtractor] = []
    if (inception := networks.inception) is not None:
        found.append(ModelFeatures(INCEPTION, 2048, lambda x: inception(x, resize="pytorch").pool, device))
    if networks.observer is not None:
        found.append(foundation_features(networks.observer, networks.observer.name, image_size, device))
    return found


def _features(extractor: FeatureExtractor, images: Tensor, decoded: Tensor) -> dict[str, Tensor]:
    pairs = zip(COMPARED, (images, decoded), strict=True)
    return {f"{extractor.name} of {what}": extractor(to_uint8(batch)).cpu() for what, batch in pairs}


def _statistics(features: Tensor, name: str) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1], name)
    for chunk in features.split(CHUNK):
        statistics.update(chunk)
    return statistics
