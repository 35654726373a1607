"""Sources, data sets and batches from the `images` section of a configuration."""

import os
from pathlib import Path

from torch.utils.data import DataLoader

from alight.config import ImagesConfig
from alight.data.decode import WHITE
from alight.data.embedded import Digits, Photographs
from alight.data.file_patterns import is_pattern
from alight.data.hugging_face import PREFIX, HuggingFaceImages, is_saved_table
from alight.data.image_dataset import CACHE_BYTES, ImageDataset, ImageSample
from alight.data.image_folder import ImageFolder
from alight.data.image_list import LIST_EXTENSIONS, ImageList
from alight.data.image_notes import note_changes
from alight.data.image_store import is_image_name
from alight.data.image_tars import ImageTars
from alight.data.images import ImageSource, Split, split_source
from alight.options import EMBEDDED
from alight.runtime.errors import InputError


def open_images(
    source: str | os.PathLike[str],
    size: int | None = None,
    unconditional: bool = False,
    max_skipped_fraction: float = 0.5,
    image_column: str | None = None,
    label_column: str | None = None,
    background: str = WHITE,
) -> ImageSource:
    """Open images by the word in a configuration.

    | word | source |
    |---|---|
    | `digits`, `photographs` | embedded, no download |
    | a folder | `ImageFolder`: class subfolders, or flat |
    | `.csv`, `.tsv`, `.jsonl`, `.txt` | `ImageList`: paths with optional labels |
    | `.tar`, a pattern such as `train-{000..146}.tar`, a folder of tars | `ImageTars`: samples, or by class |
    | `hf:owner/name[:split]`, `.parquet`, a pattern or folder of them, what `datasets` saved | `HuggingFaceImages` |

    Args:
        source: the word; a folder named "digits" is "./digits".
        size: side of the square images that will be cropped; the photographs are divided into crops of this size.
        unconditional: not of embedded images: take all images as one class.
        max_skipped_fraction: not of embedded images: more unusable ones than this share are an error.
        image_column: of a list, tars or a table: where the images are.
        label_column: likewise, where the labels are.
        background: the colour behind transparent pixels.

    Raises:
        InputError: there is no such source, its images cannot be used, or it has no columns; see the sources.
    """
    word = os.fspath(source)
    kind = None if word in EMBEDDED else _columnar_source(word)
    if kind is not None:
        return kind(word, unconditional, max_skipped_fraction, image_column, label_column, background)
    if image_column or label_column:
        raise InputError(f"image_column and label_column are for lists, tars and tables; {word} has no columns.")
    if word == "digits":
        return Digits()
    if word == "photographs":
        return Photographs() if size is None else Photographs(crop_size=size)
    if not os.path.exists(word):
        raise InputError(
            f"There are no images at {word:.300}: give a folder of images, a list, tars, hf:owner/name, or 'digits' "
            "or 'photographs'."
        )
    return ImageFolder(word, unconditional, max_skipped_fraction, background)


def _columnar_source(word: str) -> type[ImageList] | type[ImageTars] | type[HuggingFaceImages] | None:
    """The kind of source that the word names, if it may have columns."""
    if word.startswith(PREFIX):
        return HuggingFaceImages
    path = Path(word)
    if os.path.isdir(word):
        if is_saved_table(path):
            return HuggingFaceImages
        extension = _only_extension(path)
    else:
        extension = path.suffix.lower() if os.path.exists(word) or is_pattern(word) else ""
        if extension in LIST_EXTENSIONS:
            return ImageList
    if extension == ".tar":
        return ImageTars
    return HuggingFaceImages if extension == ".parquet" else None


def _only_extension(folder: Path) -> str:
    """`.tar` or `.parquet` if there are such files, and no images or folders, as beside unpacked tars."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:  # `ImageFolder` reports the problem
        return ""
    if any(entry.is_dir() or is_image_name(entry.name) for entry in visible):
        return ""
    extensions = {os.path.splitext(entry.name)[1] for entry in visible}
    return next((extension for extension in (".tar", ".parquet") if extension in extensions), "")


def open_source(config: ImagesConfig, split: Split) -> ImageSource:
    """The images of a split, uncropped.

    Raises:
        InputError: if there is no such source, it holds no usable images, or the split is empty.
    """
    return split_source(_open_whole(config), split, config.held_out_fraction)


def _open_whole(config: ImagesConfig) -> ImageSource:
    return open_images(
        config.source,
        config.size,
        config.unconditional,
        config.max_skipped_fraction,
        config.image_column,
        config.label_column,
        config.background,
    )


def source_fingerprint(config: ImagesConfig, split: Split) -> str:
    """Identity of the images of a split with their labels and class names, to compare with that of an earlier run.

    It changes when an image is replaced, added, removed, renamed or given another label, and when a class is added or
    renamed; see `ImageSource.fingerprint`. For images that were opened before, only sizes and times of files are read.

    Raises:
        InputError: as `open_source`.
    """
    return open_source(config, split).fingerprint


def open_dataset(
    config: ImagesConfig, split: Split, seed: int = 0, augment: bool = True, cache_bytes: int = CACHE_BYTES
) -> ImageDataset:
    """The images of a split, cropped; notes say which images are enlarged or composed on a background.

    Args:
        config: source, size, crop and flips.
        split: `train`, `held_out` or `all`.
        seed: of the augmentation.
        augment: False overrides the configuration: centre crops in place of random ones, and no flips.
        cache_bytes: keep the crops in memory if all of them fit into this many bytes; 0 = never.

    Raises:
        InputError: as `open_source`, or if images are smaller than the crop and `upscale` is off.
    """
    whole = _open_whole(config)
    dataset = ImageDataset(
        split_source(whole, split, config.held_out_fraction),
        size=config.size,
        crop="center" if config.crop == "random" and not augment else config.crop,
        horizontal_flip=config.horizontal_flip and augment,
        seed=seed,
        upscale=config.upscale,
        cache_bytes=cache_bytes,
    )
    note_changes(whole, config.size, config.crop)
    return dataset


def sequential_batches(dataset: ImageDataset, batch_size: int, workers: int = 0) -> "DataLoader[ImageSample]":
    """Every image once, in order; the last batch may be smaller."""
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers)
