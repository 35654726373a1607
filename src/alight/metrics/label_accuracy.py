"""Label accuracy: the share of generated images in which an independent classifier sees the class asked for."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from alight.metrics.features import FeatureExtractor, GreyPixels, PixelBatch
from alight.runtime.errors import InputError

Labels = Tensor | npt.NDArray[np.integer[Any]]
"""One class number per image, (B,)."""

NUM_FITTED_DIGITS = 1500  # the first of scikit-learn's 1,797, in file order; the other 297 are held out
DIGITS_PEAK = 16  # scikit-learn's digits count the dark pixels of 4x4 boxes
BATCH_SIZE = 256  # images that pass through the extractor together


@dataclass(frozen=True)
class LabelAccuracy:
    """The share of images in which a classifier sees the class that was asked for.

    Attributes:
        value: the share over all images, in [0, 1].
        n: number of images.
        per_class: the share for each class that was asked for.
        classifier: description of the classifier, which the number depends on.
    """

    value: float
    n: int
    per_class: dict[int, float]
    classifier: str


class LabelClassifier:
    """A support vector classifier on features of labelled real images.

        classifier = LabelClassifier.fit(extractor, real_images, real_labels)
        classifier.accuracy(held_out_images, held_out_labels)    # real images it has not seen: the ceiling
        classifier.accuracy(generated_images, requested_labels)

    Args:
        extractor: computes the features that the classifier sees.
        features: (N, D), of the images that it is fitted to.
        labels: their classes, (N,).
        gamma: width of the classifier's Gaussian kernel, as in scikit-learn.
        standardise: bring every feature to mean 0 and variance 1 first, right for features of unknown scale.
        balanced: let all classes weigh the same, right where generated images are equally many of each.
        description: replaces the default one in reports.

    Raises:
        InputError: features and labels differ in number, or there are fewer than two classes.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        features: npt.NDArray[np.floating[Any]],
        labels: Labels,
        *,
        gamma: float | Literal["scale", "auto"] = "scale",
        standardise: bool = True,
        balanced: bool = False,
        description: str | None = None,
    ) -> None:
        classes = _as_labels(labels, len(features))
        if len(np.unique(classes)) < 2:
            raise InputError("A classifier of labels needs images of at least two classes to be fitted to.")
        classifier = SVC(gamma=gamma, class_weight="balanced" if balanced else None)
        self._classifier = make_pipeline(StandardScaler(), classifier) if standardise else classifier
        self._classifier.fit(features, classes)
        self._extractor = extractor
        self.description = description or (
            f"SVC(gamma={gamma}) on {'standardised ' if standardise else ''}{extractor.name}, "
            f"fitted to {len(classes)} labelled images{', all classes weighing the same' if balanced else ''}"
        )

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """The classes that it was fitted to, sorted."""
        known: npt.NDArray[np.int64] = self._classifier.classes_
        return known

    @classmethod
    def fit(
        cls,
        extractor: FeatureExtractor,
        images: PixelBatch,
        labels: Labels,
        *,
        gamma: float | Literal["scale", "auto"] = "scale",
        standardise: bool = True,
        balanced: bool = False,
    ) -> "LabelClassifier":
        """A classifier fitted to labelled images, (N, H, W, C) uint8 and (N,)."""
        features = _features(extractor, images)
        return LabelClassifier(extractor, features, labels, gamma=gamma, standardise=standardise, balanced=balanced)

    def predict(self, images: PixelBatch) -> npt.NDArray[np.int64]:
        """The class seen in each of the images (N, H, W, C) uint8, (N,)."""
        predicted: npt.NDArray[np.int64] = self._classifier.predict(_features(self._extractor, images))
        return predicted

    def accuracy(self, images: PixelBatch, labels: Labels) -> LabelAccuracy:
        """The share of images (N, H, W, C) uint8 in which the classifier sees the label they were made for.

        Raises:
            InputError: there is no image, or not one label per image, or a label that the classifier never saw.
        """
        wanted = _as_labels(labels, len(images))
        unknown = sorted(set(wanted.tolist()) - set(self.classes.tolist()))
        if unknown or not len(wanted):
            raise InputError(
                f"The classifier knows the classes {self.classes.tolist()} and needs images of them; "
                f"it got {len(wanted)} images and the unknown classes {unknown}."
            )
        right = self.predict(images) == wanted
        return LabelAccuracy(
            value=float(right.mean()),
            n=len(right),
            per_class={int(label): float(right[wanted == label].mean()) for label in np.unique(wanted)},
            classifier=self.description,
        )


class DigitClassifier(LabelClassifier):
    """The classifier of handwritten digits, fitted to 1,500 real ones and to nothing that this package has trained.

    It looks at images of any size through 8x8 boxes, in which ink is bright.  On the 297 real digits that are held
    out it is right in 95.3 %: that is the ceiling for generated ones.
    """

    def __init__(self) -> None:
        digits = load_digits()
        super().__init__(
            GreyPixels(size=8),
            digits.data[:NUM_FITTED_DIGITS] / DIGITS_PEAK,
            digits.target[:NUM_FITTED_DIGITS],
            gamma=0.001 * DIGITS_PEAK**2,  # 0.001, scikit-learn's own choice, belongs to pixels in 0..16
            standardise=False,
            description=(
                f"SVC(gamma=0.001) on 8x8 grey pixels in 0..16, fitted to the first {NUM_FITTED_DIGITS} handwritten "
                "digits of scikit-learn"
            ),
        )


def _features(extractor: FeatureExtractor, images: PixelBatch) -> npt.NDArray[np.float64]:
    batches = [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]
    return np.concatenate(
        [np.zeros((0, extractor.dimension)), *(extractor(batch).detach().cpu().double().numpy() for batch in batches)]
    )


def _as_labels(labels: Labels, num_images: int) -> npt.NDArray[np.int64]:
    classes = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if classes.shape != (num_images,) or not np.issubdtype(classes.dtype, np.integer):
        raise InputError(
            f"There are {num_images} images, but the labels have the shape {classes.shape} and are {classes.dtype}; "
            "give one class number per image."
        )
    return classes.astype(np.int64)
