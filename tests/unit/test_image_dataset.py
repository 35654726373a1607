"""Crops and the torch data set over them: geometry, exact repetition, memory, refusals."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from alight.data.crops import center_crop, horizontal_flip, pad_to_square, random_crop
from alight.data.image_dataset import ImageDataset, ImageSample
from alight.data.images import ImageSource
from alight.data.sampling import EpochIndex, ResumableLoader, ResumableSampler
from alight.runtime.errors import InputError


class Gradients(ImageSource):
    """Images whose red says where a pixel lies from left to right, green from top to bottom, and blue which one."""

    def __init__(self, sizes=((40, 60), (90, 50), (64, 64), (33, 200))):
        self.class_names = ("wide", "tall")
        self.sizes = np.array(sizes)
        self.labels = (self.sizes[:, 0] > self.sizes[:, 1]).astype(np.int64)
        self.loaded = 0

    @property
    def description(self):
        return "gradients"

    def name(self, index):
        return f"gradient-{index}"

    def load(self, index):
        self.loaded += 1
        height, width = self.sizes[index]
        image = np.zeros((height, width, 3), dtype=np.uint8)
        image[..., 0] = np.linspace(0, 255, width)
        image[..., 1] = np.linspace(0, 255, height)[:, None]
        image[..., 2] = index % 25 * 10
        return image


# --- crops --------------------------------------------------------------------------------------------------------


def test_center_crop_of_a_fitting_image_is_a_window():
    image = np.random.default_rng(0).integers(0, 256, (32, 47, 3), dtype=np.uint8)
    assert (center_crop(image, 32) == image[:, 7:39]).all()  # floor of (47 - 32) / 2
    assert (center_crop(image.transpose(1, 0, 2), 32) == image[:, 7:39].transpose(1, 0, 2)).all()


def test_center_crop_halves_by_box_means():
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    means = image.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    assert np.abs(center_crop(image, 32) - means).max() <= 2  # two halvings of two passes each, every one rounded


@pytest.mark.parametrize("shape", [(32, 32), (16, 32), (7, 32), (32, 1)])
def test_padding_of_a_fitting_image_keeps_its_pixels(shape):
    height, width = shape
    image = np.random.default_rng(0).integers(0, 200, (height, width, 3), dtype=np.uint8)
    padded = pad_to_square(image, 32)
    top, left = (32 - height) // 2, (32 - width) // 2
    assert (padded[top : top + height, left : left + width] == image).all()
    assert (padded == 255).all(axis=-1).sum() == 32 * 32 - height * width


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 3), (5, 2), (64, 64)])
def test_padding_shrinks_and_enlarges_any_shape(shape):
    image = np.full((*shape, 3), 7, dtype=np.uint8)
    padded = pad_to_square(image, 32, "black")
    filled = (padded == 7).all(axis=-1)
    assert (filled.any(axis=1).sum(), filled.any(axis=0).sum()) == tuple(
        max(round(32 * side / max(shape)), 1) for side in shape
    )
    assert (padded[~filled] == 0).all()


@pytest.mark.parametrize("shape", [(20, 31), (33, 90), (300, 70)])
def test_center_crop_spans_the_short_side_and_is_centred(shape):
    crop = center_crop(Gradients([shape]).load(0), 32).astype(int)
    short, long = (1, 0) if shape[0] < shape[1] else (0, 1)  # green shows the vertical, red the horizontal
    assert crop[..., short].min() < 10
    assert crop[..., short].max() > 245
    assert abs(crop[..., long].mean() - 127.5) < 5  # half a pixel of 32 is 4 levels


def test_center_crop_has_its_size_whatever_the_rounding_of_the_scale():
    for short_side in range(20, 130):  # for some of these, short_side * (49 / short_side) is a little below 49
        image = np.zeros((short_side, short_side + 7, 3), dtype=np.uint8)
        assert center_crop(image, 49).shape == (49, 49, 3)
        assert center_crop(image.transpose(1, 0, 2), 49).shape == (49, 49, 3)


def test_crops_do_not_touch_their_image():
    image = Gradients().load(0)
    before = image.copy()
    center_crop(image, 40)[:] = 0
    random_crop(image, 40, np.random.default_rng(0), min_fraction=1.0)[:] = 0
    horizontal_flip(image)[:] = 0
    assert (image == before).all()


def test_random_crop_draws_scale_and_place_within_bounds():
    image = Gradients([(100, 100)]).load(0)
    generator = np.random.default_rng(0)
    crops = np.stack([random_crop(image, 32, generator, 0.5, 1.0) for _ in range(300)]).astype(int)
    left, right = crops[:, 16, 0, 0], crops[:, 16, -1, 0]
    share = (right - left) / 255
    # A crop shows 32 of s pixels, s from 32 to 64; from first to last these are 31/64 = 0.48 to 31/32 = 0.97 of them
    assert 0.46 < share.min() < 0.52
    assert 0.95 < share.max() < 0.99
    assert left.min() < 5
    assert right.max() > 250


def test_random_crop_of_the_whole_is_the_center_crop():
    image = Gradients([(80, 80)]).load(0)
    assert (random_crop(image, 32, np.random.default_rng(0), 1.0, 1.0) == center_crop(image, 32)).all()


@pytest.mark.parametrize("fractions", [(0.0, 1.0), (0.9, 0.8), (0.5, 1.1)])
def test_random_crop_refuses_fractions_without_meaning(fractions):
    with pytest.raises(InputError, match="min_fraction"):
        random_crop(Gradients().load(0), 32, np.random.default_rng(0), *fractions)


# --- the data set -------------------------------------------------------------------------------------------------


def test_items_are_center_crops_with_labels():
    source = Gradients()
    dataset = ImageDataset(source, 32)
    assert len(dataset) == 4
    for index, sample in enumerate(dataset):
        assert isinstance(sample, ImageSample)
        assert sample.image.dtype == torch.uint8
        assert (sample.image.permute(1, 2, 0).numpy() == center_crop(source.load(index), 32)).all()
        assert sample.label == source.labels[index]
    assert index == 3


@pytest.mark.parametrize("crop", ["center", "random"])
def test_kept_and_decoded_images_are_the_same(crop):
    kept, decoded = (ImageDataset(Gradients(), 32, crop, horizontal_flip=True, cache_bytes=size) for size in (1e9, 0))
    indices = [EpochIndex(index, epoch) for epoch in (0, 1, 2) for index in range(4)]
    one_by_one = [decoded[index] for index in indices]
    for batch in (kept.__getitems__(indices), decoded.__getitems__(indices), [kept[index] for index in indices]):
        for sample, expected in zip(batch, one_by_one, strict=True):
            assert torch.equal(sample.image, expected.image)
            assert sample.label == expected.label


def test_center_crops_are_decoded_once_if_they_fit():
    source = Gradients()
    needed = 4 * 3 * 32 * 32
    dataset = ImageDataset(source, 32, cache_bytes=needed)
    assert source.loaded == 4
    dataset[0].image.zero_()  # what is handed out is a copy
    assert dataset[0].image.any()
    assert source.loaded == 4
    dataset = ImageDataset(source, 32, cache_bytes=needed - 1)
    assert source.loaded == 4
    dataset[0]
    assert source.loaded == 5


def is_flipped(sample):
    return bool(sample.image[0, 0, 0] > sample.image[0, 0, -1])


def test_flips_are_fair_and_differ_between_epochs_images_and_seeds():
    def coins(seed):
        dataset = ImageDataset(Gradients([(32, 32)] * 50), 32, horizontal_flip=True, seed=seed)
        return np.array(
            [[is_flipped(dataset[EpochIndex(index, epoch)]) for index in range(50)] for epoch in range(40)]
        )

    first = coins(0)
    assert (first == coins(0)).all()
    assert abs(first.mean() - 0.5) < 0.056  # 5 standard deviations of 2000 coins
    # Independent coins agree half of the time: with the next epoch, the next image, another seed
    for other in (np.roll(first, 1, axis=0), np.roll(first, 1, axis=1), coins(1)):
        assert abs((first == other).mean() - 0.5) < 0.056
    plain = ImageDataset(Gradients(), 32)
    assert not any(is_flipped(plain[EpochIndex(index, epoch)]) for index in range(4) for epoch in range(8))


def test_random_crops_differ_between_epochs_but_repeat():
    first, again = (ImageDataset(Gradients(), 32, crop="random") for _ in range(2))
    views = [first[EpochIndex(0, epoch)].image for epoch in range(8)]
    assert len({tuple(view.flatten().tolist()) for view in views}) > 4
    for epoch in reversed(range(8)):  # in another order
        assert torch.equal(again[EpochIndex(0, epoch)].image, views[epoch])


def test_random_crops_differ_between_images():
    alike = ImageDataset(Gradients([(64, 64)] * 8), 32, crop="random")
    assert len({tuple(sample.image[:2].flatten().tolist()) for sample in alike}) > 4  # red and green say where


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("cache_bytes", [0, 2**28])
def test_batches_do_not_depend_on_workers_or_resuming(crop, cache_bytes):
    def batches(workers, skip):
        dataset = ImageDataset(Gradients(), 32, crop, horizontal_flip=True, cache_bytes=cache_bytes)
        sampler = ResumableSampler(len(dataset), 3, seed=4)
        sampler.advance(skip)
        return list(islice(ResumableLoader(dataset, sampler, num_workers=workers), 8 - skip))

    reference = batches(workers=0, skip=0)
    assert reference[0].image.shape == (3, 3, 32, 32)
    assert reference[0].label.dtype == torch.int64
    for workers, skip in ((2, 0), (0, 5), (2, 5)):
        for batch, expected in zip(batches(workers, skip), reference[skip:], strict=True):
            assert torch.equal(batch.image, expected.image)
            assert torch.equal(batch.label, expected.label)


def test_plain_data_loader_goes_through_all_images_once():
    images, labels, _ = next(iter(DataLoader(ImageDataset(Gradients(), 32), batch_size=4)))
    assert images.shape == (4, 3, 32, 32)
    assert images[:, 2, 16, 16].tolist() == [0, 10, 20, 30]
    assert labels.tolist() == [0, 1, 0, 0]


def test_small_images_are_enlarged_and_refused_without_decoding_on_request():
    source = Gradients([(100, 100), (30, 80), (90, 20)])
    with pytest.raises(InputError) as error:
        ImageDataset(source, 64, upscale=False)
    message = str(error.value)
    for part in ("2 of 3", "gradient-1", "80x30", "at most 20", "upscale=True"):
        assert part in message
    assert source.loaded == 0
    enlarged = ImageDataset(source, 64)[2].image
    assert enlarged.shape == (3, 64, 64)
    picture = Image.fromarray(source.load(2)).resize((64, 288), Image.Resampling.BICUBIC)
    assert np.abs(enlarged.permute(1, 2, 0).numpy().astype(int) - np.asarray(picture)[112:176]).max() <= 1


def test_padded_images_are_small_by_their_long_side():
    source = Gradients([(100, 100), (30, 80), (90, 20), (30, 63)])
    with pytest.raises(InputError, match=r"1 of 4 .*gradient-3 .*63x30.*at most 63"):
        ImageDataset(source, 64, "pad", upscale=False)


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_padded_images_have_borders_of_the_background(cache_bytes):
    source = Gradients([(30, 80), (90, 20)])
    source.background = "#0a141e"
    wide, tall = (ImageDataset(source, 32, "pad", cache_bytes=cache_bytes)[index].image for index in range(2))
    for border in (wide[:, :10], wide[:, 22:], tall[:, :, :12], tall[:, :, 19:]):
        assert (border == torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None]).all()
    assert wide[0, 16, 0] < 16
    assert wide[0, 16, -1] > 240
    assert tall[1, 0, 16] < 16
    assert tall[1, -1, 16] > 240


def test_padded_images_are_decoded_once_like_centre_crops():
    source = Gradients()
    dataset = ImageDataset(source, 32, "pad")
    assert source.loaded == 4
    assert all(np.array_equal(dataset[index].image.permute(1, 2, 0), dataset.unaugmented(index)) for index in range(4))


@pytest.mark.parametrize(("size", "crop"), [(0, "center"), (32, "middle")])
def test_arguments_without_meaning(size, crop):
    with pytest.raises(InputError, match="center, random, pad"):
        ImageDataset(Gradients(), size, crop)
