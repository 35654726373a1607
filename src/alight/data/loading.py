"""From the `images` section of a configuration to a data set and its batches."""

from torch.utils.data import DataLoader

from alight.config import ImagesConfig
from alight.data.image_dataset import ImageDataset, ImageSample
from alight.data.images import ImageSource, Split, open_images, split_source


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
