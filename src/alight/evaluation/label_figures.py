"""Label accuracy of generated images, all together and class by class."""

from dataclasses import replace
from statistics import fmean

import numpy as np

from alight.config import ImagesConfig
from alight.data.image_dataset import ImageDataset
from alight.data.loading import open_dataset, sequential_batches
from alight.evaluation.generated import GeneratedImages
from alight.metrics.features import ColourPixels
from alight.metrics.label_accuracy import DigitClassifier, LabelAccuracy, LabelClassifier
from alight.reporting.report import Comparison, Conditions, Figure
from alight.runtime.errors import InputError
from alight.runtime.pixels import PixelArray

MAX_CLASSIFIED = 20_000  # a support vector classifier takes a time that grows with the square of the images
CLASSIFIED_SIDE = 8  # pixels of the side that a classifier of a folder sees
BATCH = 64


class LabelScores:
    """Label accuracy of generated and of real held-out images, by the same classifier.

    Attributes:
        generated: of all images.
        real: of the held-out images, where some are held out.
        classifier: that classifier.
    """

    def __init__(self, generated: LabelAccuracy, real: LabelAccuracy | None, classifier: LabelClassifier) -> None:
        self.generated, self.real, self.classifier = generated, real, classifier


def score_labels(images: GeneratedImages, real: ImageDataset, config: ImagesConfig) -> LabelScores | None:
    """Score the labels by an independent classifier, fitted to real training images.

    Images of classes without a training image, whose few images may all be held out, are left out.

    Returns:
        None where labels are not known, fewer than two classes have training images, or there are too many images.
    """
    labels = real.source.labels
    if images.labels is None or len(np.unique(labels)) < 2 or max(len(real), images.count) > MAX_CLASSIFIED:
        return None
    if config.source == "digits":
        classifier: LabelClassifier = DigitClassifier()
    else:
        classifier = LabelClassifier.fit(ColourPixels(CLASSIFIED_SIDE), pixels_of(real), labels, balanced=True)
    pixels = np.concatenate(list(images.read(0, images.count, BATCH)))
    generated = accuracy_of_known(classifier, pixels, images.labels)
    if generated is None:
        return None
    try:
        held_out = open_dataset(config, "held_out", augment=False)
    except InputError:  # nothing is held out of this folder
        return LabelScores(generated, None, classifier)
    real_scores = accuracy_of_known(classifier, pixels_of(held_out), held_out.source.labels)
    if real_scores is not None and config.source != "digits":  # as among generated images, all classes weigh the same
        real_scores = replace(real_scores, value=fmean(real_scores.per_class.values()))
    return LabelScores(generated, real_scores, classifier)


def accuracy_of_known(classifier: LabelClassifier, pixels: PixelArray, labels: np.ndarray) -> LabelAccuracy | None:
    """Label accuracy of the images (N, H, W, 3) whose classes the classifier was fitted to; None where none is."""
    known = np.isin(labels, classifier.classes)
    return classifier.accuracy(pixels[known], labels[known]) if known.any() else None


def pixels_of(dataset: ImageDataset) -> np.ndarray:
    """All crops of a small data set, (N, H, W, 3) uint8."""
    return np.concatenate([batch.image.permute(0, 2, 3, 1).numpy() for batch in sequential_batches(dataset, BATCH)])


def label_figure(scores: LabelScores, images: GeneratedImages) -> Figure:
    """The share of images in which the classifier sees the class that was asked for."""
    compare, unknown = None, images.count - scores.generated.n
    left_out: Conditions = {"left out, of classes without training images": f"{unknown:,} images"} if unknown else {}
    if scores.real is not None:
        compare = Figure(
            "real_label_accuracy",
            "Real held-out images",
            scores.real.value,
            "",
            3,
            {"classifier": scores.real.classifier, "images": scores.real.n},
        )
    return Figure(
        "generated_label_accuracy",
        "Label accuracy",
        scores.generated.value,
        "",
        3,
        {"classifier": scores.generated.classifier} | images.conditions | left_out,
        explanation="Share of generated images in which an independent classifier sees the class that was asked for.",
        compare=compare,
        better="higher",
    )


def class_table(scores: LabelScores, images: GeneratedImages, most_classes: int) -> Comparison:
    """Class by class, the worst first; beyond `most_classes`, the worst alone."""
    assert images.labels is not None
    counts = np.bincount(images.labels)
    worst_first = sorted(scores.generated.per_class, key=lambda label: scores.generated.per_class[label])
    rows: dict[str, list[Figure | None]] = {}
    for label in worst_first[:most_classes]:
        name = images.class_name(label)
        row: list[Figure | None] = [
            Figure("label_accuracy", f"{name} ({counts[label]:,})", scores.generated.per_class[label], digits=3)
        ]
        real = scores.real.per_class.get(label) if scores.real is not None else None
        row.append(None if real is None else Figure("label_accuracy", name, real, digits=3))
        rows[f"{name} ({counts[label]:,} images)"] = row
    shown = f", the {most_classes} worst of {len(worst_first)}" if len(worst_first) > most_classes else ""
    return Comparison(["generated", "real held-out"], rows, title=f"Label accuracy by class{shown}")
