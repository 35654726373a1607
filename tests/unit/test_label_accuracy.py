"""The networks of labels: on real digits held out, and on labels that are right and wrong by construction."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from alight.metrics import ColourPixels, DigitClassifier, GreyPixels, LabelClassifier
from alight.runtime.errors import InputError

NUM_FITTED = 1500


@pytest.fixture(scope="module")
def classifier() -> DigitClassifier:
    return DigitClassifier()


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits as (1797, 8, 8, 1) uint8, and their labels."""
    loaded = load_digits()
    return np.round(loaded.images * 255 / 16).astype(np.uint8)[..., None], loaded.target


def test_the_digit_classifier_is_the_classifier_it_says(classifier, digits):
    images, labels = digits
    data = load_digits().data
    expected = SVC(gamma=0.001).fit(data[:NUM_FITTED], labels[:NUM_FITTED]).predict(data[NUM_FITTED:])
    np.testing.assert_array_equal(classifier.predict(images[NUM_FITTED:]), expected)


def test_the_ceiling_on_real_digits_held_out(classifier, digits):
    images, labels = digits
    accuracy = classifier.accuracy(images[NUM_FITTED:], labels[NUM_FITTED:])
    assert accuracy.n == 297
    assert accuracy.value == pytest.approx(0.953, abs=5e-4)  # 283 of 297, to the digits that the documentation gives
    assert accuracy.classifier == classifier.description
    assert "1500 handwritten digits" in accuracy.classifier
    counts = np.bincount(labels[NUM_FITTED:])
    assert sum(accuracy.per_class[label] * count for label, count in enumerate(counts)) == pytest.approx(283)


def test_the_digit_classifier_sees_the_same_at_other_sizes_and_in_colour(classifier, digits):
    images, _ = digits
    held_out = images[NUM_FITTED:]
    enlarged = np.repeat(held_out.repeat(4, axis=1).repeat(4, axis=2), 3, axis=-1)
    assert enlarged.shape == (297, 32, 32, 3)
    np.testing.assert_array_equal(classifier.predict(torch.from_numpy(enlarged)), classifier.predict(held_out))


def test_wrong_labels_are_counted_for_the_class_that_was_asked_for(classifier, digits):
    images, _ = digits
    seen = classifier.predict(images[:100])
    asked = seen.copy()
    wrong = np.flatnonzero(seen == 3)[:2]
    asked[wrong] = 8
    accuracy = classifier.accuracy(images[:100], torch.from_numpy(asked))
    assert accuracy.value == pytest.approx(0.98)
    assert accuracy.per_class[8] == pytest.approx(1 - 2 / (asked == 8).sum())
    assert all(share == 1 for label, share in accuracy.per_class.items() if label != 8)


def test_a_classifier_of_other_images_tells_dark_from_bright():
    rng = np.random.default_rng(0)
    dark, bright = (rng.integers(low, low + 100, (40, 12, 12, 3), dtype=np.uint8) for low in (0, 140))
    images, labels = np.concatenate([dark, bright]), np.repeat([4, 9], 40)
    classifier = LabelClassifier.fit(GreyPixels(size=4), images[::2], labels[::2])
    accuracy = classifier.accuracy(images[1::2], labels[1::2])
    assert accuracy.value == 1
    assert set(accuracy.per_class) == {4, 9}
    assert "standardised grey pixels 4x4" in accuracy.classifier
    assert "40 labelled images" in accuracy.classifier
    assert classifier.accuracy(images[1::2], labels[1::2][::-1].copy()).value == 0


def test_features_of_very_different_scale_count_alike_when_standardised():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    signal = labels + 0.1 * rng.standard_normal(120)
    features = np.stack([1e-3 * signal, 1e3 * rng.standard_normal(120)], axis=1)
    even, odd = slice(0, None, 2), slice(1, None, 2)

    class Table:
        """Images whose first pixel is their row in the table of features."""

        name, dimension = "a table", 2

        def __call__(self, images):
            return torch.from_numpy(features[images[:, 0, 0, 0]])

    rows = np.arange(120, dtype=np.uint8).reshape(120, 1, 1, 1)
    scores = [
        LabelClassifier.fit(Table(), rows[even], labels[even], standardise=standardise)
        .accuracy(rows[odd], labels[odd])
        .value
        for standardise in (True, False)
    ]
    assert scores[0] > 0.95
    assert scores[1] < 0.8  # the noise drowns the signal


def test_labels_that_do_not_fit_are_refused(classifier, digits):
    images, labels = digits
    with pytest.raises(InputError, match="one class number per image"):
        classifier.accuracy(images[:3], labels[:2])
    with pytest.raises(InputError, match="one class number per image"):
        classifier.accuracy(images[:2], np.array([0.0, 1.0]))
    with pytest.raises(InputError, match=r"unknown classes \[10\]"):
        classifier.accuracy(images[:2], np.array([0, 10]))
    with pytest.raises(InputError, match="0 images"):
        classifier.accuracy(images[:0], labels[:0])
    with pytest.raises(InputError, match="at least two classes"):
        LabelClassifier.fit(GreyPixels(), images[:2], np.array([1, 1]))


def test_balanced_classes_weigh_the_same_however_many_images_they_have():
    """Two overlapping brightnesses, one twenty times as frequent: only the balanced classifier sees the rare one."""
    rng = np.random.default_rng(0)
    frequent, rare = rng.normal(110, 20, 400), rng.normal(140, 20, 20)
    values = np.clip(np.concatenate([frequent, rare]), 0, 255).astype(np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (len(values), 8, 8, 3)).copy()
    labels = np.repeat([0, 1], [400, 20])
    plain, balanced = (LabelClassifier.fit(GreyPixels(4), images, labels, balanced=each) for each in (False, True))
    assert plain.accuracy(images, labels).per_class[1] < 0.3
    assert balanced.accuracy(images, labels).per_class[1] > 0.6
    assert balanced.description.endswith("all classes weighing the same")


def test_colour_pixels_tell_colours_of_equal_brightness():
    red, green = np.zeros((2, 6, 8, 8, 3), dtype=np.uint8)
    red[..., 0], green[..., 1] = 255, 130  # equal luma
    red[:3, ..., 0] -= 2  # so that no class is constant
    images, labels = np.concatenate([red, green]), np.repeat([0, 1], 6)
    classifier = LabelClassifier.fit(ColourPixels(4), images, labels)
    assert classifier.accuracy(images, labels).value == 1
    features = ColourPixels(4)(images[:2])
    assert features.shape == (2, ColourPixels(4).dimension)
    assert features[0, :16].eq(253 / 255).all()
    assert features[0, 16:].eq(0).all()
    with pytest.raises(InputError, match="too small for colour pixels 16x16"):
        ColourPixels(16)(images)
