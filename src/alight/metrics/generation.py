"""Distances between the distributions of generated and real images, in one or several feature spaces."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from alight.metrics.features import FeatureExtractor, PixelBatch, as_pixels
from alight.metrics.frechet import FeatureStatistics, FrechetDistance, frechet_distance
from alight.runtime.errors import InputError


@dataclass(frozen=True)
class GenerationScores:
    """Scores of `n` generated images.

    Attributes:
        frechet: Frechet distance to the reference, by the name of the feature set.
        n: number of generated images.
    """

    frechet: dict[str, FrechetDistance]
    n: int


class GenerationMetrics:
    """Score generated images against reference statistics, batch by batch: images are seen once and not kept.

        extractor = GreyPixels()
        reference = feature_statistics(extractor, real_batches)
        scores = GenerationMetrics([extractor], {extractor.name: reference}).measure(generated_batches)
        scores.frechet[extractor.name].value

    Args:
        extractors: one or several feature sets.
        references: statistics of the real images, by the name of the feature set.

    Raises:
        InputError: there is no extractor, two share a name, or a reference is missing or of other features.
    """

    def __init__(self, extractors: Sequence[FeatureExtractor], references: Mapping[str, FeatureStatistics]) -> None:
        names = [extractor.name for extractor in extractors]
        if not names or len(set(names)) < len(names):
            raise InputError(f"Generation metrics need one or more feature sets of different names, but got {names}.")
        missing = sorted(set(names) - set(references))
        if missing:
            raise InputError(
                f"There are no reference statistics for the features {missing}, only for {sorted(references)}; "
                "make them from the real images with `feature_statistics`."
            )
        self._extractors = list(extractors)
        self._references = {name: references[name] for name in names}
        self._statistics = {
            extractor.name: FeatureStatistics(extractor.dimension, extractor.name) for extractor in extractors
        }
        for name, reference in self._references.items():
            reference.check_comparable(self._statistics[name])
        self._n = 0

    def update(self, images: PixelBatch) -> None:
        """Take in one batch of generated images, (B, H, W, C) uint8.

        Raises:
            InputError: the images are not 8-bit, or their features are not finite.
        """
        pixels = as_pixels(images)
        for extractor in self._extractors:
            self._statistics[extractor.name].update(extractor(pixels))
        self._n += len(pixels)

    def merge(self, other: "GenerationMetrics") -> None:
        """Take in what another process has gathered with the same extractors."""
        for name, statistics in self._statistics.items():
            statistics.merge(other._statistics[name])
        self._n += other._n

    def compute(self) -> GenerationScores:
        """The scores of all images so far.

        Raises:
            InputError: there are fewer than two images.
        """
        return GenerationScores(
            frechet={
                name: frechet_distance(statistics, self._references[name])
                for name, statistics in self._statistics.items()
            },
            n=self._n,
        )

    def measure(self, batches: Iterable[PixelBatch]) -> GenerationScores:
        """`update` with every batch, then `compute`: files and live generation are measured the same way."""
        for images in batches:
            self.update(images)
        return self.compute()
