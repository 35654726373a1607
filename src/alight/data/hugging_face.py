"""Tables of images as a source, through Hugging Face `datasets`: from the hub, saved to disk, or in parquet files."""

import glob
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alight.data.class_labels import number_classes
from alight.data.columns import image_columns, listed, pick_label_column, wanted_column, warn_of_unused
from alight.data.decode import WHITE
from alight.data.file_patterns import find_files
from alight.data.image_store import ImageStore, file_stamp, first_special, read_image
from alight.data.readable_names import readable_classes
from alight.data.stored_images import StoredImages
from alight.runtime.console import log
from alight.runtime.errors import InputError, one_line

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "hf:"
_DEFAULT_SPLIT = "train"
_IMAGE_COLUMN = "image"
_MOST_OF_A_MESSAGE = 400  # characters of an error of datasets, some of which are very long


class HuggingFaceImages(StoredImages):
    """The rows of a table that hold images.

    Rows are read from Arrow files by number, which `datasets` makes on first use and keeps in its own cache.

    Args:
        word: `hf:owner/name` or `hf:owner/name:split` for the hub, also with a local folder in place of `owner/name`;
            a folder that `save_to_disk` wrote; a parquet file, or a pattern for several.
        unconditional: take all images as one class.
        max_skipped_fraction: more unusable images than this share are an error.
        image_column: the column of images; None = the one of that type, else `image` or the like.
        label_column: the column of labels; None = the one with class names, else `label`, `class` or the like, if
            there is one.
        background: the colour behind transparent pixels.

    Raises:
        InputError: `datasets` is not installed or cannot open this; there is no such split or column; some rows have
            no label; too many images are damaged.
    """

    def __init__(
        self,
        word: str | os.PathLike[str],
        unconditional: bool = False,
        max_skipped_fraction: float = 0.5,
        image_column: str | None = None,
        label_column: str | None = None,
        background: str = WHITE,
    ) -> None:
        word = os.fspath(word)
        table, key = _open_table(word)
        image = _image_column(table, word, image_column)
        store = _TableStore(word, key, table, image)
        if not len(store):
            raise InputError(f"{word} has no rows; choose another split.")
        label = None if unconditional else _label_column(table, word, label_column, image)
        super().__init__(store, *_labels(table, label, store), max_skipped_fraction, background)


class _TableStore(ImageStore):
    """The encoded images of one column, by row."""

    def __init__(self, place: str, key: str, table: "Dataset", column: str) -> None:
        import datasets

        self.place, self.key = place, f"{key}\0{column}"
        with _explained(place):
            self._images = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self._column = column
        stamps = [file_stamp(file["filename"]) for file in table.cache_files]
        self._stamp = sha256(" ".join(stamps).encode()).hexdigest()[:32]

    def __len__(self) -> int:
        return len(self._images)

    def name(self, position: int) -> str:
        """The number of the row, from 0."""
        return f"row-{position:08d}"

    def location(self, position: int) -> str:
        """The table and the number of the row, from 0."""
        return f"{self.place} row {position}"

    def stamp(self, position: int) -> str:
        """One for all: sizes and times of the table's files."""
        return self._stamp

    def read(self, position: int) -> bytes:
        """The bytes in the row, or in the file that it names.

        Raises:
            OSError: the file is not there.
            ValueError: the row has no image, or its file is not a regular file.
        """
        image = self._images[position][self._column]
        if image is None:
            raise ValueError("the row has no image")
        if image["bytes"] is None and not image["path"]:
            raise ValueError("the row has neither an image nor a path")
        return image["bytes"] if image["bytes"] is not None else read_image(image["path"])


def is_saved_table(folder: Path) -> bool:
    """Tell if `datasets` wrote this folder with `save_to_disk`."""
    return any(os.path.isfile(folder / name) for name in ("state.json", "dataset_dict.json"))


def _open_table(word: str) -> tuple["Dataset", str]:
    """The table, and a name for it that does not depend on the working directory."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"Reading {word} needs the package datasets, which cannot be imported ({error}); install it with "
            "pip install 'alight[data]'."
        ) from error
    if not log.isEnabledFor(logging.INFO):
        datasets.disable_progress_bars()
    name, split = word, ""
    if word.startswith(PREFIX):
        name, _, split = word.removeprefix(PREFIX).partition(":")
    key = f"{os.path.realpath(name) if os.path.exists(name) else name}\0{split}"
    with _explained(word):
        if is_saved_table(Path(name)):
            return _saved_table(name, split), key
        if name.lower().endswith(".parquet") and not os.path.isdir(name):
            # datasets reads brackets and stars in these names as patterns
            where = {"path": "parquet", "data_files": [glob.escape(str(file)) for file in find_files(name)]}
        elif os.path.isdir(name) and (odd := first_special(Path(name))) is not None:
            raise InputError(f"{odd} is neither a file nor a folder, so reading it may never end. Remove it.")
        elif "[" in name and os.path.isdir(name):
            parquet = any(file.suffix.lower() == ".parquet" for file in Path(name).rglob("*"))
            where = {"path": "parquet" if parquet else "imagefolder", "data_dir": glob.escape(name)}
        else:
            where = {"path": name}
        return datasets.load_dataset(**where, split=split or _DEFAULT_SPLIT, keep_in_memory=False), key


def _saved_table(folder: str, split: str) -> "Dataset":
    """The table of a folder, or one of its splits.

    Raises:
        InputError: there is no such split.
    """
    import datasets

    saved = datasets.load_from_disk(folder, keep_in_memory=False)
    tables = {"": saved} if isinstance(saved, datasets.Dataset) else saved
    wanted = split if "" in tables else split or _DEFAULT_SPLIT
    if wanted not in tables:
        splits = f"the splits {', '.join(tables)}" if any(tables) else "no splits"
        raise InputError(f"{folder} has no split {wanted}, it has {splits}; choose one as in hf:{folder}:SPLIT.")
    return tables[wanted]


def _image_column(table: "Dataset", word: str, wanted: str | None) -> str:
    import datasets

    typed = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    usual = [_IMAGE_COLUMN] if _IMAGE_COLUMN in table.column_names else image_columns(table.column_names)[:1]
    chosen = wanted and (wanted_column(wanted, table.column_names) or wanted)
    candidates = [chosen] if chosen else typed or usual or [_IMAGE_COLUMN]
    if len(candidates) > 1 or candidates[0] not in table.column_names:
        found = f"{len(typed)} columns of images" if len(candidates) > 1 else f"no column {candidates[0]}"
        raise InputError(
            f"{word} has {found} among {listed(table.column_names)}; name the column of images with image_column."
        )
    return candidates[0]


def _label_column(table: "Dataset", word: str, wanted: str | None, image: str) -> str | None:
    import datasets

    typed = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    if not wanted and not typed:
        others = [name for name in table.column_names if name != image]
        usual = pick_label_column(others, word)
        if usual is None:
            warn_of_unused(others, word)
        return usual
    candidates = [wanted_column(wanted, table.column_names)] if wanted else typed
    if len(candidates) > 1 or candidates[0] is None:
        found = f"{len(typed)} columns of classes" if len(candidates) > 1 else f"no column {wanted}"
        raise InputError(
            f"{word} has {found} among {listed(table.column_names)}; name the column of labels with label_column, or "
            "take all images as one class with unconditional=True."
        )
    return candidates[0]


def _labels(table: "Dataset", column: str | None, store: ImageStore) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Labels and class names: those of the column's type if it has them, else as `number_classes`.

    Raises:
        InputError: a row has no label, or the column holds neither whole numbers nor text.
    """
    import datasets

    if column is None:
        return number_classes([None] * len(store), store)
    values = table.select_columns([column])[:][column]
    feature = table.features[column]
    if not isinstance(feature, datasets.ClassLabel):
        if not all(_is_label(value) for value in values):
            raise InputError(
                f"The column {column} of {store.place} holds neither whole numbers nor text, so it cannot be the "
                "labels; choose another with label_column, or take all images as one class with unconditional=True."
            )
        return number_classes(values, store)
    if any(value is None or not 0 <= value < len(feature.names) for value in values):
        raise InputError(
            f"Some rows of {store.place} have no class in the column {column}, as those of test splits often do; "
            "choose another split, or take all images as one class with unconditional=True."
        )
    shown = readable_classes(feature.names, store.place)
    return np.array(values, dtype=np.int64), tuple(shown.values())


def _is_label(value: object) -> bool:
    """Tell if a value is text, a whole number (also as 3.0), or missing (also as NaN)."""
    return isinstance(value, int | str | None) or (isinstance(value, float) and (value != value or value.is_integer()))


@contextmanager
def _explained(word: str) -> Iterator[None]:
    """Turn the many kinds of errors of `datasets` into one about the user's word."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = one_line(error, _MOST_OF_A_MESSAGE)
        raise InputError(
            f"The package datasets cannot open {word} ({reason}); check the name, the split and the network."
        ) from error
