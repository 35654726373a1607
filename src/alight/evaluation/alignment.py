"""Alignment of latents with a foundation model's features, measured alike with and without alignment loss.

A tokenizer that was trained without alignment has no projection. So every tokenizer is measured without one, by the
relations between its positions (`latent_mdms`), and through a linear map that is fitted in the same way for each
(`linear_cosine`). Tokenizers with a projection are measured through it as well.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from alight.config import EvaluateTokenizerConfig
from alight.data.loading import open_dataset
from alight.evaluation.batches import gather_batches, index_batches, load_batches, share_of
from alight.evaluation.tokenizers import Projection
from alight.losses import marginal_cosine_loss, marginal_distance_matrix_loss
from alight.metrics.ridge import RidgeRegression
from alight.models.foundation import FoundationModel
from alight.models.tokenizer import Tokenizer
from alight.runtime.ahead import sent
from alight.runtime.console import progress_bar
from alight.runtime.distributed import Processes
from alight.runtime.pixels import unit_range
from alight.runtime.seeding import random_stream


class LinearMap(NamedTuple):
    """A linear map from raw latents to features, (D, C, 1, 1), and the number of images that it was fitted to."""

    weight: Tensor
    images: int


@torch.no_grad()
def fit_linear_map(
    vae: Tokenizer, foundation: FoundationModel, config: EvaluateTokenizerConfig, processes: Processes
) -> LinearMap:
    """The best linear map without bias from latents to features, by ridge regression on training crops.

    Latents are the posterior's means, and features have the length one at each position, since the cosine that the
    map is measured by does not see their length.
    """
    vae.to(processes.device)
    dataset = open_dataset(config.images, "train", augment=False)
    order = torch.randperm(len(dataset), generator=random_stream(config.seed, "linear map"))
    batches = index_batches(sorted(order[: config.linear_map_images].tolist()), config.batch_size)
    share = share_of(batches, processes)
    fits = []
    loaded = load_batches(dataset, share, config.images.workers)
    for pixels in progress_bar(loaded, total=len(share), desc="linear map", unit="batch"):
        images = unit_range(sent(pixels, processes.device))
        means = vae.posterior(images).mean  # (B, C, h, w)
        features = F.normalize(foundation(images, grid=(means.shape[2], means.shape[3])), dim=1)  # (B, D, h, w)
        fits.append(RidgeRegression(means.shape[1], features.shape[1]))
        fits[-1].update(_positions(means), _positions(features))
    total = RidgeRegression(vae.config.latent_channels, foundation.feature_dim)
    for fit in gather_batches(fits, processes):  # one order of summation, however many processes there are
        total.merge(fit)
    weight = total.solve().float()[:, :, None, None].to(processes.device)
    return LinearMap(weight, min(len(dataset), config.linear_map_images))


def alignment_scores(
    raw_latents: Tensor, features: Tensor, projection: Projection | None = None, linear_map: LinearMap | None = None
) -> dict[str, Tensor]:
    """The alignment of every image by itself.

    Returns:
        Name -> (B,) float64 on the CPU: `latent_mdms` without margin, `linear_cosine`, and through the projection
        `alignment_cosine`, and `alignment_mcos` and `alignment_mdms` with the margins of its training.
    """
    scores = {"latent_mdms": _each(marginal_distance_matrix_loss, raw_latents, features, 0.0)}
    if linear_map is not None:
        scores["linear_cosine"] = _mean_cosine(F.conv2d(raw_latents, linear_map.weight), features)
    if projection is not None:
        weight, settings = projection.weight.to(raw_latents), projection.settings
        if projection.to_features:
            mixed = raw_latents if projection.block is None else projection.block.to(raw_latents)(raw_latents)
            latents, targets = F.conv2d(mixed, weight), features
        else:
            latents, targets = raw_latents, F.conv2d(features, weight)
        on_latent = settings.get("distance_on", "projected") == "latent"
        pair = (raw_latents, features) if on_latent else (latents, targets)
        scores |= {
            "alignment_cosine": _mean_cosine(latents, targets),
            "alignment_mcos": _each(marginal_cosine_loss, latents, targets, settings["cosine_margin"]),
            "alignment_mdms": _each(marginal_distance_matrix_loss, *pair, settings["distance_margin"]),
        }
    return {name: values.cpu().double() for name, values in scores.items()}


def _each(loss: Callable[[Tensor, Tensor, float], Tensor], a: Tensor, b: Tensor, margin: float) -> Tensor:
    """A loss of each image by itself; over images of one size, their mean is the loss of the batch."""
    return torch.stack([loss(x, y, margin) for x, y in zip(a.split(1), b.split(1), strict=True)])


def _mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a, b, dim=1).mean(dim=(1, 2))


def _positions(grid: Tensor) -> Tensor:
    """(B, C, h, w) -> (B h w, C)."""
    return grid.movedim(1, -1).flatten(0, 2)
