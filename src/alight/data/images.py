"""The interface of all image sources, and their split into train and held out.

A source returns whole images by index. `ImageDataset` crops and augments them.
"""

import json
from abc import ABC, abstractmethod
from functools import cached_property
from hashlib import sha256
from typing import get_args

import numpy as np
import numpy.typing as npt

from alight.data.decode import WHITE, RgbImage
from alight.data.image_index import SkippedImage
from alight.options import Split, require_known
from alight.runtime.errors import InputError


class ImageSource(ABC):
    """Images with class labels, of any sizes, by index.

    Attributes:
        class_names: name of each class; one class if the images are unlabelled.
        labels: (N,) int64, index into `class_names`.
        sizes: (N, 2) int64, height and width in pixels; known without decoding.
        background: the colour behind transparent pixels, and beside an image that is padded to a square.
        skipped: files with names of images that cannot be used.
    """

    class_names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    background: str = WHITE
    skipped: tuple[SkippedImage, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def modes(self) -> npt.NDArray[np.str_]:
        """(N,) the names that Pillow gives to the stored modes; known without decoding."""
        return np.full(len(self), "RGB")

    @property
    def transparent(self) -> npt.NDArray[np.bool_]:
        """(N,) true for images with pixels that are at least partly transparent; known without decoding."""
        return np.zeros(len(self), dtype=np.bool_)

    @property
    @abstractmethod
    def description(self) -> str:
        """One line for reports: name, number of images, and number of skipped ones."""

    @abstractmethod
    def name(self, index: int) -> str:
        """The name of the image in reports: for a file its path relative to the folder. Unique, and stable."""

    def content_hash(self, index: int) -> str:
        """A hash of the stored image: for a file of its bytes, here of the pixels."""
        return sha256(self.load(index).tobytes()).hexdigest()[:32]

    @cached_property
    def fingerprint(self) -> str:
        """Identity of exactly these images with these labels in this order, in any place: 16 hexadecimal digits.

        It covers the names of the images and classes (unless there is only one class), the sizes in pixels, the labels
        and the contents. Artifacts computed from the images record it.

        Contents of stored images are hashed when they are indexed, and again when the size or the modification time
        (in nanoseconds) of their file has changed. A change that keeps both goes unnoticed until the cache folder is
        cleared.
        """
        digest = sha256(json.dumps(self.class_names if len(self.class_names) > 1 else ()).encode())
        for index, (height, width) in enumerate(self.sizes.tolist()):
            image = (self.name(index), height, width, int(self.labels[index]), self.content_hash(index))
            digest.update(json.dumps(image).encode())
        return digest.hexdigest()[:16]

    @abstractmethod
    def load(self, index: int) -> RgbImage:
        """The image as (H, W, 3) uint8 RGB, upright."""

    def ignored_files(self) -> dict[str, int]:
        """Extension -> number of the files in a folder that are not named as images; empty for other sources."""
        return {}

    def held_out(self, fraction: float) -> npt.NDArray[np.bool_]:
        """(N,) true for images that are never used for training. For embedded images independent of the fraction.

        Decided by a hash of each name, so an image stays on its side when others are added, and on any machine.
        """
        digests = (sha256(self.name(index).encode("utf-8", "surrogateescape")).digest() for index in range(len(self)))
        return np.array([int.from_bytes(digest[:8], "big") < fraction * 2**64 for digest in digests])


class ImageSubset(ImageSource):
    """Some images of another source, with the same classes.

    Args:
        source: the other source.
        indices: (M,) of its images, in this order.
        part: their name in the description, such as "held out".
    """

    def __init__(self, source: ImageSource, indices: npt.ArrayLike, part: str) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.part = part
        self.class_names = source.class_names
        self.labels = source.labels[self.indices]
        self.sizes = source.sizes[self.indices]
        self.background = source.background
        self.skipped = source.skipped

    @property
    def modes(self) -> npt.NDArray[np.str_]:
        """(M,) as in the whole source."""
        return self.source.modes[self.indices]

    @property
    def transparent(self) -> npt.NDArray[np.bool_]:
        """(M,) as in the whole source."""
        return self.source.transparent[self.indices]

    @property
    def description(self) -> str:
        """The description of the whole source, with the name of the part."""
        return f"{self.source.description}; {self.part}: {len(self):,} images"

    def name(self, index: int) -> str:
        """The name of the image in the whole source."""
        return self.source.name(int(self.indices[index]))

    def content_hash(self, index: int) -> str:
        """The hash of the image in the whole source."""
        return self.source.content_hash(int(self.indices[index]))

    def load(self, index: int) -> RgbImage:
        """The image as (H, W, 3) uint8 RGB, upright."""
        return self.source.load(int(self.indices[index]))

    def ignored_files(self) -> dict[str, int]:
        """As of the whole source."""
        return self.source.ignored_files()

    def held_out(self, fraction: float) -> npt.NDArray[np.bool_]:
        """(M,) as in the whole source."""
        return self.source.held_out(fraction)[self.indices]


def split_source(source: ImageSource, split: Split, held_out_fraction: float = 0.0) -> ImageSource:
    """The images to train on, those to evaluate on, or all.

    Embedded images have a fixed split. Of a folder, `held_out_fraction` of the images are held out, chosen by a hash
    of their names: about that share, and the same ones every time; 0 = everything is for training.

    Raises:
        InputError: an unknown split, a fraction out of range, or a split without images.
    """
    require_known(split, get_args(Split), "split")
    if not 0 <= held_out_fraction < 1:
        raise InputError(
            f"held_out_fraction is {held_out_fraction}; it is a share of the images, at least 0 and below 1."
        )
    if split == "all":
        return source
    held_out = source.held_out(held_out_fraction)
    indices = np.flatnonzero(held_out if split == "held_out" else ~held_out)
    if not len(indices):
        raise InputError(
            f"The {split} split of {source.description} has no images, with held_out_fraction={held_out_fraction:g}; "
            f"{'raise' if split == 'held_out' else 'lower'} held_out_fraction, or use split=all."
        )
    return ImageSubset(source, indices, part=split.replace("_", " "))
