"""The images inside scikit-learn, as sources."""

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images
from sklearn.neighbors import KNeighborsClassifier

from alight.data.embedded import Digits, Photographs, enlarge
from alight.data.images import split_source
from alight.runtime.errors import InputError


def test_digits_are_those_of_scikit_learn_in_their_order():
    source, digits = Digits(), load_digits()
    assert len(source) == 1797
    assert source.class_names == tuple("0123456789")
    assert (source.labels == digits.target).all()
    assert source.labels.dtype == np.int64
    assert (source.sizes == 32).all()
    for index in (0, 1000, 1796):
        image = source.load(index)
        assert image.shape == (32, 32, 3)
        assert image.dtype == np.uint8
        assert (image == image[..., :1]).all()
        cells = image[..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3)) / 255 * 16
        distances = np.abs(digits.images - cells).mean(axis=(1, 2))  # of 16 levels
        assert distances.argmin() == index
        assert distances[index] < 1  # enlarging smooths strokes a little; the next digit is at 2 or more


def test_enlarge_keeps_black_and_white_and_never_wraps():
    assert (enlarge(np.zeros((8, 8))) == 0).all()
    assert (enlarge(np.full((8, 8), 16.0)) == 255).all()
    step = np.zeros((8, 8))
    step[:, 4:] = 16
    row = enlarge(step)[16, :, 0].astype(int)
    assert (np.diff(row) >= 0).all()  # the overshoot of the bicubic kernel is clipped, not wrapped around
    assert enlarge(step, size=48).shape == (48, 48, 3)


def test_enlarged_digits_can_still_be_told_apart():
    source = Digits()
    enlarged = np.stack([source.load(index)[..., 0].ravel() for index in range(len(source))]).astype(float)
    train, held_out = ~source.held_out(0), source.held_out(0)

    def accuracy(pixels):
        classifier = KNeighborsClassifier(3).fit(pixels[train], source.labels[train])
        return classifier.score(pixels[held_out], source.labels[held_out])

    assert accuracy(enlarged) > accuracy(load_digits().data) - 0.025  # measured: 0.949 and 0.960


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_split_of_digits_is_fixed(fraction):
    source = Digits()
    train, held_out = (split_source(source, split, fraction) for split in ("train", "held_out"))
    assert (len(train), len(held_out)) == (1500, 297)
    assert train.name(1499) == source.name(1499) == "digit-1499"
    assert held_out.name(0) == source.name(1500)
    assert (held_out.load(296) == source.load(1796)).all()


@pytest.mark.parametrize(("crop_size", "stride"), [(64, None), (32, 32), (256, None), (100, 7)])
def test_crops_of_photographs_are_cut_from_where_their_name_says(crop_size, stride):
    source = Photographs(crop_size, stride)
    photographs = dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    assert source.class_names == ("china", "flower")
    assert set(source.labels) == {0, 1}
    names = [source.name(index) for index in range(len(source))]
    assert len(set(names)) == len(source)
    for index in np.linspace(0, len(source) - 1, 25).astype(int):
        photograph, top, left = names[index].split("-")
        assert source.class_names[source.labels[index]] == photograph
        window = np.s_[int(top) : int(top) + crop_size, int(left) : int(left) + crop_size]
        assert source.load(index).shape == (crop_size, crop_size, 3)
        assert (source.load(index) == photographs[photograph][window]).all()


@pytest.mark.parametrize("crop_size", [16, 64, 65, 256])
def test_training_and_held_out_photographs_share_no_pixel(crop_size):
    source = Photographs(crop_size)
    used = {}
    for split in ("train", "held_out"):
        part = split_source(source, split)
        assert set(part.labels) == {0, 1}
        used[split] = np.zeros((2, 427, 640), dtype=bool)
        for index in range(len(part)):
            photograph, top, left = part.name(index).split("-")
            rows, columns = (slice(int(start), int(start) + crop_size) for start in (top, left))
            used[split][source.class_names.index(photograph), rows, columns] = True
    assert not (used["train"] & used["held_out"]).any()
    assert used["train"].mean() > 0.3
    assert used["held_out"].mean() > 0.2


def test_a_loaded_crop_is_a_copy():
    source = Photographs(64)
    before = source.load(0).copy()
    source.load(0)[:] = 0
    assert (source.load(0) == before).all()


@pytest.mark.parametrize(("crop_size", "stride"), [(257, None), (0, None), (64, 0)])
def test_crops_that_do_not_fit(crop_size, stride):
    with pytest.raises(InputError, match="256 pixels"):
        Photographs(crop_size, stride)
