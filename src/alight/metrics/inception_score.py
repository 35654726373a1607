"""Inception score (Salimans et al. 2016, section 4): is each image of a clear class, and all of many?"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alight.runtime.errors import InputError


@dataclass(frozen=True)
class InceptionScore:
    """An Inception score with its conditions.

    Attributes:
        mean: over the chunks; between 1 and the number of classes.
        std: over the chunks, with the divisor n_chunks; 0 for one chunk.
        n: number of images.
        chunk_size: images per chunk, in the order of the images. The score grows with it.
        n_chunks: number of chunks; the last may be smaller, and weighs the same.
    """

    mean: float
    std: float
    n: int
    chunk_size: int
    n_chunks: int


class _Chunk:
    """Sums over the images of one chunk: of p, (classes,), and of H(p)."""

    def __init__(self, classes: int) -> None:
        self.probabilities = torch.zeros(classes, dtype=torch.float64)
        self.entropy, self.n = 0.0, 0

    def add(self, probabilities: Tensor, entropy: float, n: int) -> None:
        self.probabilities += probabilities
        self.entropy += entropy
        self.n += n

    def score(self) -> float:
        mean = self.probabilities / self.n
        return math.exp(torch.special.entr(mean).sum().item() - self.entropy / self.n)


class ClassProbabilities:
    """Gather the Inception score batch by batch: the chunks follow the order of the images, not the batches.

    A chunk's score is exp(mean KL(p(y|x) || p(y))) (equation 1), which is exp(H(mean of p) - mean of H(p)); so the
    sums of p and of H(p) are all that is kept. Images sorted by class would give each chunk a few classes only, and a
    much lower score.

    Args:
        chunk_size: images per chunk; 5,000 in the ADM evaluator.
        first: number of the first image, where several processes share the images: a chunk may lie in two of them.
    """

    def __init__(self, chunk_size: int = 5000, first: int = 0) -> None:
        if chunk_size < 1:
            raise InputError(f"An Inception score needs chunks of at least one image, but got {chunk_size}.")
        self.chunk_size = chunk_size
        self.n = 0
        self._first = first
        self._chunks: dict[int, _Chunk] = {}

    def update(self, logits: Tensor | npt.NDArray[np.floating]) -> None:
        """Take in one batch of logits, (B, classes), of any floating-point type and on any device.

        Raises:
            InputError: the shape is not that of the batches before, or a value is not finite.
        """
        logits = torch.as_tensor(logits).detach().cpu().double()
        classes = next((len(chunk.probabilities) for chunk in self._chunks.values()), None)
        if logits.ndim != 2 or classes not in (None, logits.shape[1]):
            raise InputError(
                f"An Inception score is taken on logits (B, {classes or 'classes'}), but got {tuple(logits.shape)}."
            )
        if not logits.isfinite().all():
            raise InputError(
                "The logits contain NaN or infinity; look for images that are not finite, or run the network in "
                "float32."
            )
        while len(logits):
            number, inside = divmod(self._first + self.n, self.chunk_size)
            part, logits = logits.tensor_split([self.chunk_size - inside])
            probabilities = part.softmax(dim=1)
            entropy = torch.special.entr(probabilities).sum().item()
            chunk = self._chunks.setdefault(number, _Chunk(part.shape[1]))
            chunk.add(probabilities.sum(dim=0), entropy, len(part))
            self.n += len(part)

    def merge(self, other: "ClassProbabilities") -> None:
        """Take in what another process has gathered of other images of the same set."""
        for number, chunk in other._chunks.items():
            own = self._chunks.setdefault(number, _Chunk(len(chunk.probabilities)))
            own.add(chunk.probabilities, chunk.entropy, chunk.n)
        self.n += other.n

    def compute(self) -> InceptionScore:
        """The score of all images so far.

        Raises:
            InputError: there are fewer than two images.
        """
        if self.n < 2:
            raise InputError(
                f"An Inception score needs at least two images (and means much from 50,000), got {self.n}."
            )
        scores = [chunk.score() for chunk in self._chunks.values()]
        return InceptionScore(float(np.mean(scores)), float(np.std(scores)), self.n, self.chunk_size, len(scores))
