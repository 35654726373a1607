"""Where images come from: one interface for folders and embedded images, and their split into train and held out.

A source gives whole images, as they are, by index. Cropping and augmentation are the business of `ImageDataset`.
"""

import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from alight.data.decode import Pixels, decode_image
from alight.data.image_index import SkippedImage, index_images, list_images, visible_folders
from alight.runtime.errors import InputError

Split = Literal["train", "held_out", "all"]

_SPLIT_FOLDERS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_NAMED_IN_MESSAGES = 3

logger = logging.getLogger(__name__)


class ImageSource(ABC):
    """Images with class labels, of any sizes, by index.

    Attributes:
        class_names: name of each class; one class if the images are unlabelled.
        labels: (N,) int64, index into `class_names`.
        sizes: (N, 2) int64, height and width in pixels; known without decoding.
        skipped: files that looked like images and cannot be used.
    """

    class_names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    skipped: tuple[SkippedImage, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def description(self) -> str:
        """One line for reports: what the images are, how many, and how many were skipped."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What a report calls this image: for a file its path relative to the folder. Unique, and stable."""

    @abstractmethod
    def load(self, index: int) -> Pixels:
        """The image as (H, W, 3) uint8 RGB, upright."""

    def held_out(self, fraction: float) -> npt.NDArray[np.bool_]:
        """(N,) which images never serve for training. Embedded images have a fixed answer, whatever the fraction.

        Here it is a hash of each name, so an image stays on its side when others come or go, and on any machine.
        """
        digests = (sha256(self.name(index).encode("utf-8", "surrogateescape")).digest() for index in range(len(self)))
        return np.array([int.from_bytes(digest[:8], "big") < fraction * 2**64 for digest in digests])


class ImageFolder(ImageSource):
    """The images of a folder on disk: one subfolder per class, or all in one place and unlabelled.

    Class subfolders are searched recursively, and their sorted names are the classes. Files that do not decode are
    skipped, listed in `skipped` and warned about; see `index_images` for how they are found.

    Args:
        folder: the folder.
        unconditional: take all images, wherever they lie below the folder, as one class.
        max_skipped_fraction: more unusable files than this share are an error.

    Raises:
        InputError: the folder is missing or has no images; images lie both beside and in subfolders; a class has no
            usable image; too many files are damaged.
    """

    def __init__(
        self, folder: str | os.PathLike[str], unconditional: bool = False, max_skipped_fraction: float = 0.5
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            found = "is a file, not a folder; unpack it first" if self.folder.exists() else "does not exist"
            raise InputError(f"The image folder {self.folder} {found}.")
        names = list_images(self.folder)
        if not names:
            raise InputError(
                f"The folder {self.folder} holds no images; it should hold files such as .jpg, .png or .webp, either "
                "directly or in one subfolder per class."
            )
        one_class = unconditional or self._is_flat(names)
        index = index_images(self.folder, names)
        self.skipped = index.skipped
        self._judge_skipped(len(names), max_skipped_fraction)

        def class_of(name: str) -> str:
            return root if one_class else name.split("/", 1)[0]

        root = self.folder.resolve().name
        self.class_names = tuple(sorted({class_of(name) for name in names}))
        number = {class_name: label for label, class_name in enumerate(self.class_names)}
        self.labels = np.array([number[class_of(record.name)] for record in index.images], dtype=np.int64)
        self.sizes = np.array([(record.height, record.width) for record in index.images], dtype=np.int64)
        # One array instead of a list of strings: worker processes share it without copying.
        self._names = np.array([os.fsencode(record.name) for record in index.images])
        self._require_every_class()

    @property
    def description(self) -> str:
        """The folder, its number of images and classes, and how many files were skipped."""
        skipped = f", {len(self.skipped):,} damaged files skipped" if self.skipped else ""
        return f"{self.folder}: {_count(self)}{skipped}"

    def name(self, index: int) -> str:
        """The path relative to the folder, with forward slashes."""
        return os.fsdecode(self._names[index])

    def load(self, index: int) -> Pixels:
        """The decoded file; see `decode_image`.

        Raises:
            InputError: the file has changed or vanished since it was indexed.
        """
        path = self.folder / self.name(index)
        try:
            return decode_image(path)
        except Exception as error:
            raise InputError(
                f"{path} could be decoded when the folder was indexed, but no longer ({error}); put the file back, or "
                "start again so that the folder is indexed anew."
            ) from error

    def _is_flat(self, names: list[str]) -> bool:
        """Whether the images lie beside each other rather than in class folders; a doubtful layout is an error."""
        per_folder = Counter(name.split("/", 1)[0] for name in names if "/" in name)
        loose = len(names) - per_folder.total()
        if not per_folder:
            return True
        if loose:
            raise InputError(
                f"{self.folder} holds {loose:,} images beside {len(per_folder)} subfolders with images (such as "
                f"{min(per_folder)}), so it is unclear whether the subfolders are classes; move the loose images into "
                "class folders or away, or take everything as one class with unconditional=True."
            )
        if empty := [name for name in visible_folders(self.folder) if name not in per_folder]:
            raise InputError(
                f"{len(empty)} of the class folders in {self.folder} hold no images (such as {empty[0]}); every class "
                "needs some, so fill them or remove them."
            )
        if per_folder.keys() <= _SPLIT_FOLDERS:
            logger.warning(
                "The class folders of %s are named %s: if these are splits of a data set, give one of them instead.",
                self.folder,
                ", ".join(sorted(per_folder)),
            )
        return False

    def _judge_skipped(self, total: int, max_fraction: float) -> None:
        if not self.skipped:
            return
        examples = "; ".join(f"{path}: {reason}" for path, reason in self.skipped[:_NAMED_IN_MESSAGES])
        skipped = f"{len(self.skipped):,} of {total:,} image files in {self.folder} cannot be decoded ({examples})"
        if len(self.skipped) == total:
            raise InputError(f"{skipped}, which leaves none; look at how they were downloaded or unpacked.")
        if len(self.skipped) > max_fraction * total:
            raise InputError(
                f"{skipped}, more than the share of {max_fraction:g} that may be skipped; replace them, or allow more "
                "with max_skipped_fraction."
            )
        logger.warning("%s; they are skipped.", skipped)

    def _require_every_class(self) -> None:
        missing = np.flatnonzero(np.bincount(self.labels, minlength=len(self.class_names)) == 0)
        if len(missing):
            raise InputError(
                f"Not one image of the class folder {self.folder / self.class_names[missing[0]]} can be decoded; "
                "replace its files or remove it."
            )


class ImageSubset(ImageSource):
    """Some images of another source, with the same classes.

    Args:
        source: the whole.
        indices: (M,) which of its images, in this order.
        part: what to call them in the description, such as "held out".
    """

    def __init__(self, source: ImageSource, indices: npt.ArrayLike, part: str) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.part = part
        self.class_names = source.class_names
        self.labels = source.labels[self.indices]
        self.sizes = source.sizes[self.indices]
        self.skipped = source.skipped

    @property
    def description(self) -> str:
        """The whole, and which part of it this is."""
        return f"{self.source.description}; {self.part}: {len(self):,} images"

    def name(self, index: int) -> str:
        """The name that the image has in the whole."""
        return self.source.name(int(self.indices[index]))

    def load(self, index: int) -> Pixels:
        """The image as (H, W, 3) uint8 RGB, upright."""
        return self.source.load(int(self.indices[index]))

    def held_out(self, fraction: float) -> npt.NDArray[np.bool_]:
        """(M,) the decision of the whole."""
        return self.source.held_out(fraction)[self.indices]


def split_source(source: ImageSource, split: Split, held_out_fraction: float = 0.0) -> ImageSource:
    """The images to train on, those to judge on, or all.

    Embedded images have a fixed split. Of a folder, `held_out_fraction` of the images are held out, chosen by a hash
    of their names: about that share, and the same ones every time; 0 = everything is for training.

    Args:
        source: the whole.
        split: "train", "held_out" or "all".
        held_out_fraction: share of a folder that is held out, in [0, 1).

    Raises:
        InputError: an unknown split, a fraction out of range, or a split without images.
    """
    if split not in get_args(Split):
        raise InputError(f"There is no split {split!r}; choose one of {', '.join(get_args(Split))}.")
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


def _count(source: ImageSource) -> str:
    classes = len(source.class_names)
    return f"{len(source):,} images" + (f" in {classes:,} classes" if classes > 1 else ", one class")
