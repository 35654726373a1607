"""Real images, measured batch by batch as the reference for generated ones."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from alight.config import ImagesConfig
from alight.data.image_dataset import ImageDataset
from alight.data.loading import open_dataset
from alight.evaluation.batches import contiguous_share, pixel_batches
from alight.evaluation.features import FeatureNetworks, ImageFeatures
from alight.evaluation.reference_set import ReferenceSet, require_same_size, statistics_of
from alight.metrics.neighbours import NearestNeighbours
from alight.runtime.distributed import Processes
from alight.runtime.pixels import PixelArray
from alight.runtime.seeding import random_stream

KEPT_FEATURES = 10_000  # number of real images, as in the ADM evaluator


@dataclass(frozen=True)
class RealImages:
    """A set of real images, of which this process reads its share.

    Attributes:
        description: for the conditions of every score.
        count: of all images.
        size: (H, W).
        share: numbers of this process's first image, and of the one after its last.
        batches: those images in order, (B, H, W, 3) uint8; they can be read once.
    """

    description: str
    count: int
    size: tuple[int, int]
    share: tuple[int, int]
    batches: Iterable[PixelArray]

    @classmethod
    def of_dataset(cls, dataset: ImageDataset, kind: str, batch_size: int, workers: int, processes: Processes) -> Self:
        """The images of a dataset, dealt out to the processes; `kind` follows their number in the description."""
        share = contiguous_share(len(dataset), batch_size, processes)
        batches = pixel_batches(dataset, share, batch_size, workers, "real images")
        return cls(f"{len(dataset):,} {kind}", len(dataset), (dataset.size, dataset.size), share, batches)


class FeatureSample:
    """The features of a random part of a set of images."""

    def __init__(self, count: int, keep: int, seed: int) -> None:
        order = torch.randperm(count, generator=random_stream(seed, "reference features"))
        self._chosen = torch.zeros(count, dtype=torch.bool)
        self._chosen[order[:keep]] = True
        self._kept: dict[str, list[Tensor]] = {}

    def update(self, first: int, found: dict[str, Tensor]) -> None:
        """Keep the chosen ones of a batch: features by key, from the image number `first` on."""
        for key, features in found.items():
            self._kept.setdefault(key, []).append(features[self._chosen[first : first + len(features)]])

    def gather(self, processes: Processes) -> dict[str, Tensor]:
        """By key, (M, D) of the chosen images of all processes, in their order."""
        parts = processes.gather({key: torch.cat(kept) for key, kept in self._kept.items()})
        keys = dict.fromkeys(key for part in parts for key in part)
        joined = {key: torch.cat([part[key] for part in parts if key in part]) for key in keys}
        return {key: features for key, features in joined.items() if len(features)}


def open_training_images(config: ImagesConfig, size: tuple[int, int], name: str) -> ImageDataset:
    """Training images that generated ones of that name and size (H, W) may be compared with.

    Raises:
        InputError: there are none, or they are of another size.
    """
    dataset = open_dataset(config, "train", augment=False)
    require_same_size(size, name, (dataset.size, dataset.size), f"{len(dataset):,} training images")
    return dataset


def measure_reference(
    networks: FeatureNetworks,
    images: RealImages,
    processes: Processes,
    keep: int = KEPT_FEATURES,
    seed: int = 0,
    neighbours: NearestNeighbours | None = None,
) -> ReferenceSet:
    """Measure real images in one pass, without holding them.

    Args:
        networks: the feature spaces.
        images: this process's share of them.
        processes: share the work.
        keep: number of images whose features are kept.
        seed: chooses them.
        neighbours: takes in the features of every image in the space `networks.nearest`.

    Raises:
        InputError: an image cannot be used, or its features are not finite.
    """
    first, _ = images.share
    own, sample = ImageFeatures(networks, keep=False, first=first), FeatureSample(images.count, keep, seed)
    for batch in images.batches:
        found = own.update(batch)
        sample.update(first, found)
        if neighbours is not None:
            neighbours.update(list(range(first, first + len(batch))), found[networks.nearest])
        first += len(batch)
    if neighbours is not None:
        for rank, others in enumerate(processes.gather(neighbours)):
            if rank != processes.rank:
                neighbours.merge(others)
    return ReferenceSet(
        images.description, statistics_of(own.gather(processes)), sample.gather(processes), images.size
    )
