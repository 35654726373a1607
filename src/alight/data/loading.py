"""From the `images` section of a configuration to a source, a data set and its batches."""

import os

from torch.utils.data import DataLoader

from alight.config import ImagesConfig
from alight.data.embedded import Digits, Photographs
from alight.data.image_dataset import ImageDataset, ImageSample
from alight.data.images import ImageFolder, ImageSource, Split, split_source
from alight.runtime.errors import InputError


def open_images(
    source: str | os.PathLike[str],
    size: int | None = None,
    unconditional: bool = False,
    max_skipped_fraction: float = 0.5,
) -> ImageSource:
    """Open images by name: the one place where the word in a configuration becomes a source.

    Args:
        source: "digits", "photographs" (both embedded, no download), or a folder; a folder of that name is "./digits".
        size: side of the square images that will be cut out; the photographs are laid out in crops of this size.
        unconditional: of a folder, take all images as one class.
        max_skipped_fraction: of a folder, more unusable files than this share are an error.

    Raises:
        InputError: there is no such source, or its images cannot be used; see `ImageFolder`.
    """
    if source == "digits":
        return Digits()
    if source == "photographs":
        return Photographs() if size is None else Photographs(crop_size=size)
    if not os.path.exists(source):
        raise InputError(f"There are no images at {source}: give a folder of images, or 'digits' or 'photographs'.")
    return ImageFolder(source, unconditional, max_skipped_fraction)


def open_source(config: ImagesConfig, split: Split) -> ImageSource:
    """The images of a split, whole.

    Raises:
        InputError: if there is no such source, it holds no usable images, or the split is empty.
    """
    source = open_images(config.source, config.size, config.unconditional, config.max_skipped_fraction)
    return split_source(source, split, config.held_out_fraction)


def open_dataset(config: ImagesConfig, split: Split, seed: int = 0, augment: bool = True) -> ImageDataset:
    """The images of a split, cropped.

    Args:
        config: source, size, crop and flips.
        split: `train`, `held_out` or `all`.
        seed: of the augmentation.
        augment: false gives centre crops without flips, whatever the configuration says.

    Raises:
        InputError: as `open_source`, or if images are smaller than the crop.
    """
    return ImageDataset(
        open_source(config, split),
        size=config.size,
        crop=config.crop if augment else "center",
        horizontal_flip=config.horizontal_flip and augment,
        seed=seed,
        upscale=config.upscale,
    )


def sequential_batches(dataset: ImageDataset, batch_size: int, workers: int = 0) -> "DataLoader[ImageSample]":
    """Every image once, in order; the last batch may be smaller."""
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers)
