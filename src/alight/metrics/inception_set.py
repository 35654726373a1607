"""The scores that are made of Inception-v3: one pass over the images of each side, then everything at once."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from alight.metrics.features import PixelBatch, as_pixels
from alight.metrics.frechet import FeatureStatistics, FrechetDistance, frechet_distance
from alight.metrics.inception_score import ClassProbabilities, InceptionScore
from alight.metrics.kernel_distance import KernelDistance, kernel_distance
from alight.metrics.manifold import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from alight.metrics.reference import POOL_FEATURES, SPATIAL_FEATURES, Reference
from alight.runtime.device import full_float32
from alight.runtime.pixels import from_uint8

POOL_DIM, SPATIAL_DIM = 2048, 2023
KID_SUBSET = 1000


class InceptionActivations(Protocol):
    """The outputs of the network for a batch."""

    @property
    def pool(self) -> Tensor:
        """(B, 2048)."""
        ...

    @property
    def spatial(self) -> Tensor:
        """(B, 2023)."""
        ...

    @property
    def logits(self) -> Tensor:
        """(B, 1008), without bias."""
        ...


class InceptionNetwork(Protocol):
    """Inception-v3 with its resizing, given from outside: metrics know no models."""

    def __call__(self, images: Tensor) -> InceptionActivations:
        """Activations of images (B, 3, H, W) in [-1, 1] that were 8-bit."""
        ...


class InceptionSet:
    """The data that all Inception scores need of one set of images, gathered batch by batch in order.

        network = InceptionV3.from_file(weights).to(device)
        real = InceptionSet(network, device).gather(real_batches)
        generated = InceptionSet(network, device).gather(generated_batches)
        scores = inception_scores(generated, real.reference())

    Args:
        network: Inception-v3 with TensorFlow's resizing.
        device: of the network's input.
        keep_features: keep the pool features, 8 KiB per image, for precision, recall, density, coverage and the kernel
            distance.
        first: number of the first image, where several processes share the images.

    Attributes:
        pool: statistics of the pool features.
        spatial: statistics of the spatial features.
        classes: of the Inception score.
    """

    def __init__(
        self,
        network: InceptionNetwork,
        device: torch.device | str = "cpu",
        keep_features: bool = True,
        first: int = 0,
    ) -> None:
        self.pool = FeatureStatistics(POOL_DIM, POOL_FEATURES)
        self.spatial = FeatureStatistics(SPATIAL_DIM, SPATIAL_FEATURES)
        self.classes = ClassProbabilities(first=first)
        self._network = network
        self._device = device
        self._features: list[Tensor] | None = [] if keep_features else None

    @torch.no_grad()
    def update(self, images: PixelBatch) -> Tensor:
        """Take in one batch, (B, H, W, 3) uint8.

        Returns:
            Its pool features, (B, 2048), on the CPU.

        Raises:
            InputError: the images are not 8-bit RGB, or their activations are not finite.
        """
        with full_float32():
            activations = self._network(from_uint8(as_pixels(images).to(self._device)))
        self.pool.update(activations.pool)
        self.spatial.update(activations.spatial)
        self.classes.update(activations.logits)
        pool = activations.pool.cpu()
        if self._features is not None:
            self._features.append(pool)
        return pool

    def merge(self, other: "InceptionSet") -> None:
        """Take in the images that come after those of this set, gathered by another process."""
        self.pool.merge(other.pool)
        self.spatial.merge(other.spatial)
        self.classes.merge(other.classes)
        if self._features is not None:
            self._features += other._features or []

    def __getstate__(self) -> dict[str, object]:
        """The state that travels between processes: everything but the network."""
        return {name: value for name, value in vars(self).items() if name not in ("_network", "_device")}

    def gather(self, batches: Iterable[PixelBatch]) -> Self:
        """`update` with every batch."""
        for images in batches:
            self.update(images)
        return self

    @property
    def features(self) -> Tensor | None:
        """The pool features so far, (N, 2048), or None where they are not kept."""
        return torch.cat(self._features) if self._features else None

    def reference(self) -> Reference:
        """This set as the reference that others are compared with."""
        return Reference(self.pool, self.spatial, self.features)


@dataclass(frozen=True)
class InceptionScores:
    """Every score of one set of generated images; None where the reference or the call did not allow it.

    Attributes:
        fid: Frechet distance of the pool features.
        sfid: Frechet distance of the spatial features.
        inception_score: of the generated images alone.
        n: number of generated images.
        precision_recall: with k = 3, as in the ADM evaluator.
        density_coverage: with k = 5, as in dgm-eval.
        kid: kernel distance of the pool features.
    """

    fid: FrechetDistance
    sfid: FrechetDistance | None
    inception_score: InceptionScore
    n: int
    precision_recall: PrecisionRecall | None = None
    density_coverage: DensityCoverage | None = None
    kid: KernelDistance | None = None


def inception_scores(
    generated: InceptionSet,
    reference: Reference,
    generator: torch.Generator | None = None,
    half_precision: bool = False,
    device: torch.device | str = "cpu",
) -> InceptionScores:
    """All scores that the reference allows.

    Args:
        generated: the images to be scored.
        reference: from `InceptionSet.reference` or `read_reference`.
        generator: draws the subsets of KID, of 1,000 images or of the smaller set; without it there is no KID.
        half_precision: take precision and recall in float16, as the ADM evaluator does.
        device: that compares the features of all images with each other.

    Raises:
        InputError: the reference is of other features, or there are too few images: two for the distances, six where
            features are compared.
    """
    scores = InceptionScores(
        fid=frechet_distance(generated.pool, reference.pool),
        sfid=None if reference.spatial is None else frechet_distance(generated.spatial, reference.spatial),
        inception_score=generated.classes.compute(),
        n=generated.classes.n,
    )
    real, features = reference.features, generated.features
    if real is None or features is None:
        return scores
    real, features = torch.as_tensor(real).to(device), features.to(device)
    subset_size = min(KID_SUBSET, len(real), len(features))
    return replace(
        scores,
        precision_recall=precision_recall(real, features, half_precision=half_precision),
        density_coverage=density_coverage(real, features),
        kid=None if generator is None else kernel_distance(real, features, generator, subset_size=subset_size),
    )
