"""The feature spaces that sets of images are compared in, and one pass over a set for all of them.

`SPACES` is the table of them, `FeatureNetworks` those that a configuration asks for, and `ImageFeatures` holds the
statistics of a set in each, and where they are kept the features themselves. A new space is a row.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alight.config import FeatureNetworksConfig
from alight.metrics.features import FeatureExtractor, GreyPixels, ModelFeatures, as_pixels
from alight.metrics.frechet import FeatureStatistics
from alight.metrics.inception_set import InceptionSet
from alight.metrics.reference import POOL_FEATURES
from alight.models.dinov2_features import DINOv2ClassToken
from alight.models.foundation import FoundationModel, repeated_blocks
from alight.models.inception import InceptionV3
from alight.runtime.device import compile_blocks, full_float32
from alight.runtime.distributed import Processes
from alight.runtime.pixels import PixelArray

INCEPTION, DINOV2, FOUNDATION, GREY_PIXELS = "inception", "dinov2", "foundation", "grey_pixels"
OBSERVER = "observer"
DINOV2_FEATURES = "DINOv2 ViT-L/14 class token, Pillow bicubic to 224 pixels"
GREY_SIDE = 8


class DINOv2Features:
    """The extractor of FD-DINOv2, which resizes 8-bit pixels by itself."""

    name = DINOV2_FEATURES

    def __init__(self, network: DINOv2ClassToken) -> None:
        self.network, self.dimension = network, network.dimension

    def __call__(self, images: Tensor | PixelArray) -> Tensor:
        """Class tokens (B, D) of images (B, H, W, 3) uint8."""
        with full_float32():
            return self.network(as_pixels(images))


def foundation_extractor(name: str, image_size: int, device: torch.device) -> FeatureExtractor:
    """Mean patch features of any vision transformer, on its own input size for images of this size."""
    return foundation_features(FoundationModel.from_pretrained(name).to(device), name, image_size, device)


def foundation_features(model: FoundationModel, name: str, image_size: int, device: torch.device) -> FeatureExtractor:
    """The same of a model that is open."""
    side = max(image_size // model.patch_size, 1)
    label = f"mean patch feature of {Path(name).name}"
    return ModelFeatures(label, model.feature_dim, lambda x: model(x, (side, side)).mean((2, 3)), device, model)


@dataclass(frozen=True)
class FeatureSpace:
    """One row of the table of feature spaces.

    Attributes:
        distance: short name of the Frechet distance in this space.
        option: field of `FeatureNetworksConfig` that asks for it; empty = it needs no network, and is always there.
        open: (value of the option, side of the images, device) -> extractor; None for Inception, whose pass over a set
            gives more than one kind of features (`InceptionSet`).
    """

    distance: str
    option: str
    open: Callable[[str, int, torch.device], FeatureExtractor] | None


SPACES = {  # in the order of preference where one space must be chosen
    INCEPTION: FeatureSpace("FID", "inception_weights", None),
    DINOV2: FeatureSpace(
        "FD-DINOv2",
        "dinov2",
        lambda name, size, device: DINOv2Features(DINOv2ClassToken.from_pretrained(name).to(device)),
    ),
    OBSERVER: FeatureSpace("Frechet distance", "observer", foundation_extractor),
    FOUNDATION: FeatureSpace("Frechet distance", "foundation", foundation_extractor),
    GREY_PIXELS: FeatureSpace("Frechet distance", "", lambda name, size, device: GreyPixels(GREY_SIDE)),
}


@dataclass(frozen=True)
class FeatureNetworks:
    """The networks that measure images.

    Attributes:
        device: of the networks.
        inception: for FID and its relatives, or None.
        extractors: by key, every space but Inception's: `dinov2`, `foundation`, `grey_pixels`.
    """

    device: torch.device
    inception: InceptionV3 | None
    extractors: dict[str, FeatureExtractor] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """All spaces, the one closest to human perception first."""
        return [*([INCEPTION] if self.inception is not None else []), *self.extractors]

    def name(self, key: str) -> str:
        """The name of a space."""
        return POOL_FEATURES if key == INCEPTION else self.extractors[key].name

    @property
    def nearest(self) -> str:
        """The space in which neighbours are sought."""
        return next(key for key in (DINOV2, INCEPTION, OBSERVER, FOUNDATION, GREY_PIXELS) if key in self.keys)


def open_feature_networks(config: FeatureNetworksConfig, image_size: int, device: torch.device) -> FeatureNetworks:
    """Load the networks that a configuration names.

    Raises:
        InputError: a file or model is missing, damaged, or another one.
    """
    inception = None
    if config.inception_weights is not None:
        inception = InceptionV3.from_file(config.inception_weights).to(device)
    extractors: dict[str, FeatureExtractor] = {}
    for key, space in SPACES.items():
        value = getattr(config, space.option) if space.option else ""
        if space.open is not None and value is not None:
            extractors[key] = space.open(value, image_size, device)
    if config.compile is True:  # Inception's layers all differ, and compiling them takes longer than it saves
        for extractor in extractors.values():
            compile_blocks(repeated_blocks(extractor.network) if hasattr(extractor, "network") else [])
    return FeatureNetworks(device, inception, extractors)


class ImageFeatures:
    """Statistics and features of one set of images, or of a process's part of it, in every space.

    Args:
        networks: the feature spaces.
        keep: keep the features too, for precision, recall and the like.
        first: number of the first image in the whole set.

    Attributes:
        inception: statistics, classes and features of the Inception network, or None.
        statistics: by key, of the other spaces.
    """

    def __init__(self, networks: FeatureNetworks, keep: bool = True, first: int = 0) -> None:
        self.inception: InceptionSet | None = None
        if networks.inception is not None:
            self.inception = InceptionSet(networks.inception, networks.device, keep, first)
        self.statistics = {
            key: FeatureStatistics(extractor.dimension, extractor.name)
            for key, extractor in networks.extractors.items()
        }
        self._keep = keep
        self._extractors = networks.extractors
        self._kept: dict[str, list[Tensor]] = {key: [] for key in networks.extractors}

    def update(self, images: PixelArray) -> dict[str, Tensor]:
        """Take in a batch (B, H, W, 3) uint8, and give its features by key, on the CPU."""
        found = {}
        for key, extractor in self._extractors.items():
            features = extractor(images)
            self.statistics[key].update(features)  # where they are
            found[key] = features.cpu()
            if self._keep:
                self._kept[key].append(found[key])
        if self.inception is not None:
            found[INCEPTION] = self.inception.update(images)
        return found

    def merge(self, other: "ImageFeatures") -> None:
        """Take in the images that come after those of this set, gathered by another process."""
        for key, statistics in self.statistics.items():
            statistics.merge(other.statistics[key])
            self._kept[key] += other._kept[key]
        if self.inception is not None and other.inception is not None:
            self.inception.merge(other.inception)

    def gather(self, processes: Processes) -> "ImageFeatures":
        """The whole set, merged from the parts of all processes."""
        whole, *others = processes.gather(self)
        for part in others:
            whole.merge(part)
        return whole

    def features_of(self, key: str) -> Tensor | None:
        """(N, D) in a space, on the CPU, or None where they are not kept."""
        if key == INCEPTION:
            return self.inception.features if self.inception is not None else None
        return torch.cat(self._kept[key]) if self._kept.get(key) else None

    def __getstate__(self) -> dict[str, Any]:
        """The state that travels between processes: everything but the networks."""
        return {name: value for name, value in vars(self).items() if name != "_extractors"}


def gather_features(
    networks: FeatureNetworks,
    share: tuple[int, int],
    batches: Iterable[PixelArray],
    processes: Processes,
    keep: bool = True,
) -> ImageFeatures:
    """Measure a set of images, each process its share, and give every process the whole.

    Args:
        networks: the feature spaces.
        share: numbers of this process's first image, and of the one after its last.
        batches: those images, in order.
        processes: share the work.
        keep: keep the features too.
    """
    own = ImageFeatures(networks, keep, share[0])
    for images in batches:
        own.update(images)
    return own.gather(processes)
