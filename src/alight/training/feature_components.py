"""A target of the latent's own width: the principal components of a foundation model's features, found once and fixed.

GAE (Liu et al., arXiv 2603.10365) compresses features to the width of the latent by a network that is trained before
the tokenizer and then frozen. Here the compression is the best linear one without bias instead, in closed form: with
features f of D channels and rms one, W is the first C eigenvectors of the mean of f f^T, and W^T W f the nearest to f.
Latents meet W f without a projection that is learned, so none can take part of the alignment upon itself.
Legend: C channels of the latent, D of the features.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from alight.config import TrainTokenizerConfig
from alight.data.image_dataset import ImageDataset
from alight.models.latent_space import on_sphere
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.pixels import unit_range
from alight.runtime.seeding import random_stream
from alight.training.tokenizer_step import TokenizerNetworks

FITTED_IMAGES, IMAGES_AT_ONCE = 256, 16


class Components(NamedTuple):
    """The best linear compression without bias, and the share of the squared features that it keeps."""

    weight: Tensor  # (C, D), orthonormal rows
    share: float


def principal_directions(features: Iterable[Tensor], count: int) -> Components:
    """The directions that keep the most of features of rms one, without taking their mean away.

    Args:
        features: batches (B, D, h, w); they are divided by their rms over channels here.
        count: C, at most D.

    Returns:
        In float64 on the CPU; the sign of a direction is that which makes its largest entry positive.
    """
    second_moment, positions = None, 0
    for batch in features:
        rows = on_sphere(batch.cpu().double()).movedim(1, -1).flatten(0, 2)  # (B h w, D); MPS has no float64
        product = rows.T @ rows
        second_moment = product if second_moment is None else second_moment + product
        positions += len(rows)
    assert second_moment is not None
    values, vectors = torch.linalg.eigh(second_moment / positions)  # ascending
    weight = vectors[:, -count:].flip(1).T
    largest = weight.gather(1, weight.abs().argmax(1, keepdim=True))
    return Components(weight * largest.sign(), float(values[-count:].sum() / values.sum()))


def fit_components(networks: TokenizerNetworks, dataset: ImageDataset, config: TrainTokenizerConfig) -> None:
    """Set the fixed projection of features to latents, where the configuration asks for one, from training images.

    Raises:
        InputError: the latent has more channels than the features.
    """
    foundation, projection = networks.foundation, networks.projection
    if config.alignment.projection != "components" or foundation is None:
        return
    assert isinstance(projection, nn.Conv2d)
    channels, side = networks.vae.config.latent_channels, config.images.size // networks.vae.downsampling_factor
    if channels > foundation.feature_dim:
        raise InputError(
            f"alignment.projection components takes {channels} components, as many as the latent has channels, but "
            f"'{foundation.name}' has features of {foundation.feature_dim}. Give the latent fewer channels, or set "
            "projection to to_features."
        )
    generator = random_stream(config.seed, "feature components")
    chosen = torch.randperm(len(dataset), generator=generator)[:FITTED_IMAGES]

    def features() -> Iterator[Tensor]:
        for part in chosen.split(IMAGES_AT_ONCE):
            images = unit_range(torch.stack([dataset[index].image for index in part.tolist()]))
            yield foundation(images.to(projection.weight.device), (side, side))

    found = principal_directions(features(), channels)
    with torch.no_grad():
        projection.weight.copy_(found.weight[:, :, None, None].to(projection.weight.dtype))
    log.info(
        "tokenizer: the %d components that latents are aligned with keep %.1f%% of the squared features of %d images.",
        channels,
        100 * found.share,
        len(chosen),
    )
