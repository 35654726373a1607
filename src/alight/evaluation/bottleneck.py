"""The two halves of a generator, told apart: the damage of the tokenizer, and that of the transformer.

Real images, their reconstructions and generated images are held against the same training images, equally many of
each. The tokenizer is responsible for the way from real images to reconstructions, which generated images cannot
avoid; the transformer, with its sampling, for the rest of the way.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from alight.config import EvaluateConfig
from alight.data.image_dataset import ImageDataset
from alight.data.loading import open_dataset
from alight.evaluation.batches import evenly_spread, index_batches, load_batches
from alight.evaluation.features import (
    FOUNDATION,
    GREY_PIXELS,
    INCEPTION,
    FeatureNetworks,
    ImageFeatures,
    foundation_features,
)
from alight.evaluation.generated import GeneratedImages
from alight.evaluation.generation import Generation
from alight.evaluation.label_figures import accuracy_of_known
from alight.evaluation.reconstruction import reconstruct
from alight.evaluation.tokenizers import EvaluatedTokenizer, MetricNetworks
from alight.metrics.frechet import FeatureStatistics, frechet_distance
from alight.runtime.errors import InputError
from alight.runtime.pixels import PixelArray

COMPARED, REFERENCES = 300, 1_000  # images of each kind, and training images, at most
SMALLEST_VARIANCE = 1e-12  # of training images that are all alike
FEWEST = 20  # images of a kind, below which distances say nothing


@dataclass(frozen=True)
class Distances:
    """Frechet distances from training images in one space, as shares of the variance of these.

    Attributes:
        features: the space.
        images: of each kind.
        real, reconstructed, generated: the distances; 0 is equal.
    """

    features: str
    images: int
    real: float
    reconstructed: float
    generated: float

    @property
    def excess(self) -> float:
        """The distance that generated images add to that of real ones."""
        return max(self.generated - self.real, 0.0)

    @property
    def tokenizer_share(self) -> float:
        """The part of it that reconstructions have too, in [0, 1]."""
        lost = max(self.reconstructed - self.real, 0.0)
        return min(lost / self.excess, 1.0) if self.excess > 0 else 1.0


@dataclass(frozen=True)
class Bottleneck:
    """The evidence on both halves.

    Attributes:
        distances: by space.
        real_accuracy, reconstructed_accuracy: label accuracy of the same real images and reconstructions, where a
            classifier of labels was fitted.
    """

    distances: Sequence[Distances]
    real_accuracy: float | None = None
    reconstructed_accuracy: float | None = None


@torch.no_grad()
def find_bottleneck(
    generation: Generation,
    images: GeneratedImages,
    tokenizer: EvaluatedTokenizer,
    dataset: ImageDataset,
    networks: MetricNetworks,
    config: EvaluateConfig,
) -> Bottleneck | None:
    """Measure the three kinds of images.

    Args:
        generation: the measurements of the generated images.
        images: those.
        tokenizer: of the reconstructions.
        dataset: real images, held-out ones where there are any.
        networks: those that measure the tokenizer; its foundation model serves where there is none but grey pixels.
        config: of the evaluation.

    Returns:
        None where there are fewer than 20 images of a kind, or no training images.
    """
    count = min(len(dataset), images.count, COMPARED)
    try:
        training = open_dataset(config.images, "train", augment=False)
    except InputError:
        return None
    if min(count, len(training)) < FEWEST:
        return None
    spaces = chosen_spaces(generation, networks, dataset.size)
    shown = evenly_spread(len(dataset), count)
    pairs = [
        reconstruct(tokenizer, dataset, part, config, spaces.device)
        for part in index_batches(shown, config.batch_size)
    ]
    reference = measured(spaces, pictures(training, evenly_spread(len(training), REFERENCES), config.batch_size))
    real = measured(spaces, (originals for originals, _ in pairs))
    reconstructed = measured(spaces, (decoded for _, decoded in pairs))
    generated = generated_features(spaces, generation, images, evenly_spread(images.count, count), config.batch_size)
    distances = []
    for key in spaces.keys:
        against = FeatureStatistics.from_features(reference[key])
        variance = max(float(np.trace(against.sigma)), SMALLEST_VARIANCE)
        statistics = [FeatureStatistics.from_features(each[key]) for each in (real, reconstructed, generated)]
        values = [frechet_distance(each, against).value / variance for each in statistics]
        distances.append(Distances(spaces.name(key), count, *values))
    return Bottleneck(distances, *label_accuracies(generation, dataset, shown, pairs))


def chosen_spaces(generation: Generation, networks: MetricNetworks, size: int) -> FeatureNetworks:
    """Grey pixels, which see layout, and the space nearest to human perception, which sees detail."""
    known, device = generation.networks, generation.networks.device
    wanted = (known.nearest, GREY_PIXELS)
    extractors = {key: extractor for key, extractor in known.extractors.items() if key in wanted}
    if known.nearest == GREY_PIXELS and networks.foundation is not None:
        name = networks.foundation.name
        extractors[FOUNDATION] = foundation_features(networks.foundation.to(device), name, size, device)
    return FeatureNetworks(device, known.inception if known.nearest == INCEPTION else None, extractors)


def measured(spaces: FeatureNetworks, batches: Iterable[PixelArray]) -> dict[str, torch.Tensor]:
    """The features (N, D) of images in every space."""
    features = ImageFeatures(spaces)
    for batch in batches:
        features.update(batch)
    found = {key: features.features_of(key) for key in spaces.keys}
    return {key: each for key, each in found.items() if each is not None}


def generated_features(
    spaces: FeatureNetworks, generation: Generation, images: GeneratedImages, numbers: list[int], batch_size: int
) -> dict[str, torch.Tensor]:
    """The features of some generated images, which are measured again only in a space that is new."""
    known = {key: generation.features.features_of(key) for key in spaces.keys if key in generation.networks.keys}
    found = {key: features[numbers] for key, features in known.items() if features is not None}
    rest = {key: extractor for key, extractor in spaces.extractors.items() if key not in found}
    if rest:
        batches = (images.pick(part) for part in index_batches(numbers, batch_size))
        found |= measured(FeatureNetworks(spaces.device, None, rest), batches)
    return found


def pictures(dataset: ImageDataset, indices: Sequence[int], batch_size: int) -> Iterator[PixelArray]:
    """Images by their numbers, (B, H, W, 3) uint8."""
    for pixels in load_batches(dataset, index_batches(indices, batch_size), workers=0):
        yield pixels.permute(0, 2, 3, 1).numpy()


def label_accuracies(
    generation: Generation,
    dataset: ImageDataset,
    shown: Sequence[int],
    pairs: Sequence[tuple[PixelArray, PixelArray]],
) -> tuple[float | None, float | None]:
    """Label accuracy of real images and of their reconstructions, where a classifier was fitted."""
    if generation.label_scores is None:
        return None, None
    labels = np.asarray(dataset.source.labels)[list(shown)]
    classifier = generation.label_scores.classifier
    real, decoded = (np.concatenate([pair[kind] for pair in pairs]) for kind in (0, 1))
    scores = [accuracy_of_known(classifier, pixels, labels) for pixels in (real, decoded)]
    before, after = (None if score is None else score.value for score in scores)
    return before, after
