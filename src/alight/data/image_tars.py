"""Images in tar files, as WebDataset lays them out, as a source: any image by one seek."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from alight.data.class_labels import number_classes
from alight.data.file_patterns import find_files
from alight.data.image_store import ImageStore, file_stamp
from alight.data.stored_images import StoredImages
from alight.data.tar_index import TarColumns, TarImage, index_tar
from alight.runtime.console import progress_bar
from alight.runtime.errors import InputError

_SECONDS_BEFORE_PROGRESS_BAR = 2.0


class ImageTars(StoredImages):
    """The images of tar files, in the order of the files, each sample with its label from `.cls` or `.json`.

    Samples without an image do not count. Labels are names or numbers, or absent everywhere; see `number_classes`.

    Args:
        tars: a tar file, a folder of them, or a pattern such as `train-{000..146}.tar` or `train-*.tar`.
        unconditional: take all images as one class.
        max_skipped_fraction: more unusable images than this share are an error.
        image_column: extension of the images, where samples have several, such as `input.png`.
        label_column: key of the label in each sample's `.json`; None = its `.cls`, else the key `label`.

    Raises:
        InputError: a file is missing, cut off, damaged or compressed; a sample has several images; no image has such
            an extension; some have no label; a class has no usable image; too many images are damaged.
    """

    def __init__(
        self,
        tars: str | os.PathLike[str],
        unconditional: bool = False,
        max_skipped_fraction: float = 0.5,
        image_column: str | None = None,
        label_column: str | None = None,
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
        labels = [None if unconditional else image.label for _, images in contents for image in images]
        super().__init__(store, *number_classes(labels, store), max_skipped_fraction)


class _TarStore(ImageStore):
    """Images by their place in tar files.

    The file is opened for each image, so that nothing must be kept open, shared or sent to worker processes.
    """

    def __init__(self, place: str, files: Sequence[Path], contents: Sequence[tuple[str, Sequence[TarImage]]]) -> None:
        self.place, self.key = place, os.path.realpath(place)
        self._files = [str(file) for file in files]
        self._root = os.path.commonpath([file.parent for file in files])
        self._stamps = [stamp for stamp, _ in contents]
        images = [image for _, images in contents for image in images]
        self._file_numbers = np.repeat(np.arange(len(files)), [len(images) for _, images in contents])
        self._names = np.array([os.fsencode(image.name) for image in images], dtype=np.bytes_)
        self._spans = np.array([(image.offset, image.size) for image in images], dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, position: int) -> str:
        """The tar file, relative to the folder of all, and the member in it."""
        return os.path.relpath(self.location(position), self._root)

    def location(self, position: int) -> str:
        """The tar file and the member in it."""
        return f"{self._files[self._file_numbers[position]]}/{os.fsdecode(self._names[position])}"

    def stamp(self, position: int) -> str:
        """That of the tar file when it was listed, and the place in it."""
        offset, size = self._spans[position]
        return f"{self._stamps[self._file_numbers[position]]}-{offset}-{size}"

    def read(self, position: int) -> bytes:
        """The bytes of the member.

        Raises:
            OSError: the tar file is not there.
            ValueError: it has changed since it was listed.
        """
        number = self._file_numbers[position]
        offset, size = self._spans[position].tolist()
        with open(self._files[number], "rb") as file:
            if file_stamp(file.fileno()) != self._stamps[number]:
                raise ValueError("the tar file has changed since it was listed")
            file.seek(offset)
            return file.read(size)
