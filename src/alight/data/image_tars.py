"""Images in tar files, by samples, by class folders or by a tar per class, as a source: any image by one seek."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alight.data.class_labels import name_classes, number_classes
from alight.data.columns import listed, pick_label_column, warn_of_unused
from alight.data.decode import WHITE
from alight.data.file_patterns import find_files
from alight.data.image_store import ImageStore, encoded_names, file_stamp, require_image_size
from alight.data.readable_names import readable
from alight.data.stored_images import StoredImages
from alight.data.tar_classes import TarPlace, classes_by_place
from alight.data.tar_index import TarColumns, TarContents, index_tar
from alight.runtime.console import progress_bar
from alight.runtime.errors import InputError

_SECONDS_BEFORE_PROGRESS_BAR = 2.0

logger = logging.getLogger(__name__)


class ImageTars(StoredImages):
    """The images of tar files, in the order of the files, each sample with its label from `.cls` or `.json`.

    Samples without an image are ignored. Labels are names or numbers; see `number_classes`. If no sample has one, the
    classes are the tar files (a folder of `n01440764.tar`, ..., or ImageNet's own tar of these) or the folders inside
    them; see `classes_by_place`.

    Args:
        tars: a tar file, a folder of them, or a pattern such as `train-{000..146}.tar` or `train-*.tar`.
        unconditional: take all images as one class.
        max_skipped_fraction: more unusable images than this share are an error.
        image_column: extension of the images, if samples have several, such as `input.png`.
        label_column: key of the label in each sample's `.json`; None = its `.cls`, else the key `label`,
            `class` or the like.
        background: the colour behind transparent pixels.

    Raises:
        InputError: a file is missing, truncated, damaged or compressed; a sample has several images; no image has the
            extension; some have no label; a class has no usable image; too many images are damaged.
    """

    def __init__(
        self,
        tars: str | os.PathLike[str],
        unconditional: bool = False,
        max_skipped_fraction: float = 0.5,
        image_column: str | None = None,
        label_column: str | None = None,
        background: str = WHITE,
    ) -> None:
        word = os.fspath(tars)
        files = sorted(Path(word).glob("[!.]*.tar")) if os.path.isdir(word) else find_files(word)
        columns = TarColumns(image_column, label_column)
        with ThreadPoolExecutor() as pool:
            indices = pool.map(lambda file: index_tar(file, columns), files)
            contents = list(
                progress_bar(
                    indices, total=len(files), desc="listing tars", unit="tar", delay=_SECONDS_BEFORE_PROGRESS_BAR
                )
            )
        store = _TarStore(word, files, contents)
        if not len(store):
            kind = f"images with the extension {image_column}" if image_column else "images"
            raise InputError(
                f"{word} holds no {kind}; samples should be laid out as 0001.jpg, 0001.cls, 0002.jpg, ..."
            )
        _warn_of_special(word, contents)
        super().__init__(store, *_classes(store, contents, columns, unconditional), max_skipped_fraction, background)


def _classes(
    store: "_TarStore", contents: Sequence[TarContents], columns: TarColumns, unconditional: bool
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Labels and class names, from the samples or from their places.

    Raises:
        InputError: no sample has the key `columns.label`, or as `number_classes` and `classes_by_place`.
    """
    raw = [None if unconditional else image.label for content in contents for image in content.images]
    keys = list(dict.fromkeys(key for content in contents for key in content.keys))
    extensions = dict.fromkeys(extension for content in contents for extension in content.extensions)
    labelled = any(label not in (None, "") for label in raw)
    if not unconditional and not labelled:
        if columns.label is not None:
            found = f"only {listed(keys)}" if keys else "and no sample has a .json that can be read"
            raise InputError(
                f"No sample in {store.place} has a label under the key {columns.label}, {found}; correct label_column."
            )
        unused = [f".{extension}" for extension in extensions if extension != "json"] + keys
        names = None if keys else classes_by_place(store.places(contents), store.place)
        if names is not None:
            return name_classes(names, store)
        warn_of_unused(unused, store.place)
    if labelled and columns.label is None and "cls" not in extensions:
        pick_label_column(keys, store.place)  # the index has picked it; a warning names others
    return number_classes(raw, store)


def _warn_of_special(word: str, contents: Sequence[TarContents]) -> None:
    special = [name for content in contents for name in content.special]
    if special:
        logger.warning(
            "%s members of %s are links, devices, archives or the like and not regular image files (such as %s); they "
            "are skipped.",
            f"{len(special):,}",
            word,
            readable(special[0]),
        )


class _TarStore(ImageStore):
    """Images by their position in tar files.

    The file is opened for each image, so that no open file must be shared with worker processes.
    """

    def __init__(self, place: str, files: Sequence[Path], contents: Sequence[TarContents]) -> None:
        self.place, self.key = place, os.path.realpath(place)
        self._files = [str(file) for file in files]
        self._root = os.path.commonpath([file.parent for file in files])
        self._stamps = [content.stamp for content in contents]
        images = [image for content in contents for image in content.images]
        self._file_numbers = np.repeat(np.arange(len(files)), [len(content.images) for content in contents])
        self._names = encoded_names([image.name for image in images], place)
        self._spans = np.array([(image.offset, image.size) for image in images], dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, position: int) -> str:
        """The tar file, relative to the folder of all, and the member in it."""
        return os.path.relpath(self.location(position), self._root)

    def places(self, contents: Sequence[TarContents]) -> list[TarPlace]:
        """The tar file and the folder of each image, which may name its class."""
        return [
            TarPlace(image.inner or file, os.path.dirname(image.name.removeprefix(f"{image.inner}/")))
            for file, content in zip(self._files, contents, strict=True)
            for image in content.images
        ]

    def location(self, position: int) -> str:
        """The tar file and the member in it."""
        return f"{self._files[self._file_numbers[position]]}/{os.fsdecode(self._names[position])}"

    def stamp(self, position: int) -> str:
        """The stamp of the tar file when it was listed, and the position in it."""
        offset, size = self._spans[position]
        return f"{self._stamps[self._file_numbers[position]]}-{offset}-{size}"

    def read(self, position: int) -> bytes:
        """The bytes of the member.

        Raises:
            OSError: the tar file is not there.
            ValueError: it has changed since it was listed, or the member is too large for an image.
        """
        number = self._file_numbers[position]
        offset, size = self._spans[position].tolist()
        require_image_size(size)
        with open(self._files[number], "rb") as file:
            if file_stamp(file.fileno()) != self._stamps[number]:
                raise ValueError("the tar file has changed since it was listed")
            file.seek(offset)
            return file.read(size)
