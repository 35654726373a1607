"""A file that lists images and their labels as a source: CSV, JSON lines or plain text."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from alight.data.class_labels import RawLabel, number_classes
from alight.data.image_store import ImageFiles, is_image_name
from alight.data.stored_images import StoredImages
from alight.runtime.errors import InputError

LIST_EXTENSIONS = (".csv", ".jsonl", ".txt")
_PATH_COLUMNS = ("path", "file_name", "filename", "file", "image")  # file_name as in the `imagefolder` of datasets
_LABEL_COLUMN = "label"

Entry = tuple[str, RawLabel]  # path and label


class ImageList(StoredImages):
    """The images that a list names, relative to the folder in which the list lies, or by absolute paths.

    - `.csv`: two columns, path and label, or only the first. A header may give them other names and places.
    - `.jsonl`: one object per line, such as `{"path": "cat/1.jpg", "label": "cat"}`, or only a path in quotes.
    - `.txt`: one path per line; a label may follow after a comma, or after a space if there is no comma.

    Labels are names or numbers, or absent everywhere; see `number_classes`. Listed files that are missing or damaged
    are skipped.

    Args:
        file: the list.
        unconditional: take all images as one class.
        max_skipped_fraction: more unusable files than this share are an error.
        image_column: which column or key holds the paths; None = path, file_name or the like.
        label_column: which column or key holds the labels; None = label, if there is one.

    Raises:
        InputError: the list cannot be read, is empty, has no such column, or names an image twice; a class has no
            usable image; too many files are missing or damaged.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        unconditional: bool = False,
        max_skipped_fraction: float = 0.5,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        file = Path(file)
        readers = {".csv": _read_csv, ".jsonl": _read_json_lines, ".txt": _read_text}
        try:
            entries = list(readers[file.suffix.lower()](file, _Columns(image_column, label_column)))
        except (OSError, csv.Error) as error:
            raise InputError(f"The list {file} cannot be read ({error}).") from error
        if not entries:
            raise InputError(f"The list {file} is empty; it should name one image per line.")
        names = [path for path, _ in entries]
        _require_unique(file, names)
        store = ImageFiles(file, file.parent, names)
        labels = number_classes([None if unconditional else label for _, label in entries], store)
        super().__init__(store, *labels, max_skipped_fraction)


class _Columns(NamedTuple):
    """Which columns the user asked for; None = those with the usual names."""

    image: str | None
    label: str | None

    def find(self, names: Sequence[str], file: Path) -> tuple[str, str | None]:
        """Which of the names are the columns of paths and of labels.

        Raises:
            InputError: there is no such column.
        """
        images = [name for name in ([self.image] if self.image else _PATH_COLUMNS) if name in names]
        label = self.label or (_LABEL_COLUMN if _LABEL_COLUMN in names else None)
        if not images or (label and label not in names):
            missing = label if images else self.image or " or ".join(_PATH_COLUMNS)
            raise InputError(
                f"{file} has no column {missing}, but only {', '.join(names)}; say which ones hold the paths and the "
                "labels with image_column and label_column."
            )
        return images[0], label


def _read_csv(file: Path, columns: _Columns) -> Iterator[Entry]:
    with _opened(file) as lines:
        rows = [row for row in csv.reader(lines) if row]
    path, label = 0, 1
    has_header = columns != (None, None) or bool(rows and {*_PATH_COLUMNS} & {*rows[0]})
    if has_header and rows:
        header = rows.pop(0)
        path_name, label_name = columns.find(header, file)
        path, label = header.index(path_name), header.index(label_name) if label_name else len(header)
    for row in rows:
        yield row[path] if path < len(row) else "", row[label].strip() if label < len(row) else None


def _read_json_lines(file: Path, columns: _Columns) -> Iterator[Entry]:
    with _opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"Line {number} of {file} is not JSON ({error}).") from error
            if isinstance(value, str):
                value = {_PATH_COLUMNS[0]: value}
            if not isinstance(value, dict):
                raise InputError(f'Line {number} of {file} is not an object such as {{"path": "cat/1.jpg"}}.')
            image_key, label_key = columns.find([*value], file)
            path, label = value[image_key], value[label_key] if label_key else None
            if not isinstance(path, str) or isinstance(label, bool) or not isinstance(label, int | str | None):
                raise InputError(
                    f"Line {number} of {file} should give the path as text and the label as text or a whole number, "
                    f"but has {path!r} and {label!r}."
                )
            yield path, label


def _read_text(file: Path, columns: _Columns) -> Iterator[Entry]:
    with _opened(file) as lines:
        for line in filter(None, map(str.strip, lines)):
            if is_image_name(line):
                yield line, None
            else:
                path, *label = line.rsplit("," if "," in line else None, 1)
                yield path.strip(), label[0].strip() if label else None


def _opened(file: Path) -> TextIO:
    """As text: a byte-order mark is dropped, and names that are not Unicode survive."""
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _require_unique(file: Path, names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(
            f"{file} names {len(repeated):,} images more than once (such as {repeated[0]}); leave each in it once."
        )
