"""A file that lists images and their labels as a source: CSV, JSON lines or plain text."""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TextIO

from alight.data.class_labels import RawLabel, number_classes
from alight.data.columns import (
    image_columns,
    label_columns,
    listed,
    pick_label_column,
    wanted_column,
    warn_of_unused,
)
from alight.data.decode import WHITE
from alight.data.image_store import FileStore, is_image_name
from alight.data.readable_names import readable
from alight.data.stored_images import StoredImages
from alight.runtime.errors import InputError
from alight.runtime.reading import require_regular

LIST_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".txt")
_SEPARATOR = re.compile(r"[,;\t]|\s+")

Entry = tuple[str, RawLabel]  # path and label


class ImageList(StoredImages):
    """The images that a list names, by paths relative to the list's folder or absolute paths.

    - `.csv`, `.tsv`: two columns, path and label, or only the first, separated by commas, semicolons or tabs. A header
      may give them other names and places.
    - `.jsonl`: one object per line, such as `{"path": "cat/1.jpg", "label": "cat"}`, or only a path in quotes.
    - `.txt`: one path per line; a label may follow after a comma, or after a space.

    Columns and keys are found by their usual names (path, file_name, image_path, ...; label, class, category, ...), in
    upper or lower case. If none holds labels, a warning names the unused ones. Labels are names or numbers, or absent
    everywhere; see `number_classes`. Listed files that are missing or damaged are skipped.

    Args:
        file: the list.
        unconditional: take all images as one class.
        max_skipped_fraction: more unusable files than this share are an error.
        image_column: the column or key of paths; None = path, file_name or the like.
        label_column: the column or key of labels; None = label, class or the like, if there is one.
        background: the colour behind transparent pixels.

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
        background: str = WHITE,
    ) -> None:
        file = Path(file)
        require_regular(file)
        readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_json_lines, ".txt": _read_text}
        columns = _Columns(file, image_column, None if unconditional else label_column, unconditional)
        try:
            table = readers[file.suffix.lower()](file, columns)
        except (OSError, csv.Error) as error:
            raise InputError(f"The list {file} cannot be read ({error}). Check the file and its format.") from error
        if not table.entries:
            raise InputError(f"The list {file} is empty; it should name one image per line.")
        names = [path for path, _ in table.entries]
        _require_unique(file, names)
        store = FileStore(file, file.parent, names)
        labels = number_classes([None if unconditional else label for _, label in table.entries], store)
        if not unconditional and all(label in (None, "") for _, label in table.entries):
            warn_of_unused(table.unused, str(file))
        super().__init__(store, *labels, max_skipped_fraction, background)


class _Table(NamedTuple):
    """The entries of a list, and the columns or keys that were neither paths nor labels."""

    entries: list[Entry]
    unused: Sequence[str]


class _Columns(NamedTuple):
    """The columns that the user chose; None = those with the usual names."""

    file: Path
    image: str | None
    label: str | None
    unconditional: bool

    def find(self, names: Sequence[str]) -> tuple[str, str | None]:
        """Find the columns of paths and of labels among the names.

        Raises:
            InputError: there is no such column.
        """
        found = [wanted_column(self.image, names)] if self.image else image_columns(names)
        image = found[0] if found else None
        if self.label:
            label = wanted_column(self.label, names)
        elif self.unconditional:
            label = None
        else:
            label = pick_label_column([name for name in names if name != image], str(self.file))
        if image is None or (self.label and label is None):
            missing = self.image or "path or file_name" if image is None else self.label
            raise InputError(
                f"{self.file} has no column {missing}, but only {listed(names)}; name the columns of paths and labels "
                "with image_column and label_column."
            )
        return image, label


def _read_csv(file: Path, columns: _Columns) -> _Table:
    with _opened(file) as lines:
        delimiter = _delimiter(lines.readline())
        lines.seek(0)
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    if rows and (columns.image or columns.label or _is_header(rows[0])):
        header = [name.strip() for name in rows.pop(0)]
        path_name, label_name = columns.find(header)
        path, label = header.index(path_name), header.index(label_name) if label_name else len(header)
    else:
        _require_no_unknown_header(file, rows)
        header = [f"column {number}" for number in range(1, 1 + max(map(len, rows), default=0))]
        path, label = 0, 1
    entries: list[Entry] = [
        (row[path] if path < len(row) else "", row[label].strip() if label < len(row) else None) for row in rows
    ]
    return _Table(entries, [name for number, name in enumerate(header) if number not in (path, label) and name])


def _delimiter(first_line: str) -> str:
    """A comma, unless the first line has none and another character between its parts."""
    for delimiter in ";\t":
        first = first_line.split(delimiter)[0].strip().strip('"')
        if "," not in first_line and delimiter in first_line and (is_image_name(first) or _is_header([first])):
            return delimiter
    return ","


def _is_header(row: Sequence[str]) -> bool:
    """Tell if these are names of columns and none is that of an image."""
    return not any(map(is_image_name, row)) and bool(image_columns(row) or (len(row) > 1 and label_columns(row)))


def _require_no_unknown_header(file: Path, rows: Sequence[Sequence[str]]) -> None:
    """Refuse a header with unusual names, which would otherwise be taken for a missing image."""
    if len(rows) < 2 or any(map(is_image_name, rows[0])) or not any(map(is_image_name, rows[1])):
        return
    try:
        exists = (file.parent / rows[0][0]).exists()
    except (OSError, ValueError):  # not a valid path
        exists = False
    if not exists:
        raise InputError(
            f"The first line of {file} names no image, so it seems to be a header, of the columns {listed(rows[0])}; "
            "name the columns of paths and labels with image_column and label_column."
        )


def _read_json_lines(file: Path, columns: _Columns) -> _Table:
    find = lru_cache(maxsize=1024)(columns.find)  # lines have few different sets of keys; warn once for each
    entries: list[Entry] = []
    unused: dict[str, None] = {}  # in order
    for number, value in _json_lines(file):
        if isinstance(value, str):
            value = {"path": value}
        if not isinstance(value, dict):
            raise InputError(f'Line {number} of {file} is not an object such as {{"path": "cat/1.jpg"}}.')
        image_key, label_key = find(tuple(value))
        path, label = value[image_key], value[label_key] if label_key else None
        if not isinstance(path, str) or isinstance(label, bool) or not isinstance(label, int | float | str | None):
            raise InputError(
                f"Line {number} of {file} should give the path as text and the label as text or a whole number, "
                f"but has {path!r:.100} and {label!r:.100}."
            )
        if isinstance(label, float) and label == label and not label.is_integer():
            raise InputError(
                f"Line {number} of {file} has the label {label}, which is not a whole number; give text or whole "
                "numbers, or take all images as one class with unconditional=True."
            )
        entries.append((path, label))
        unused |= dict.fromkeys(key for key in value if key not in (image_key, label_key))
    return _Table(entries, list(unused))


def _json_lines(file: Path) -> Iterator[tuple[int, object]]:
    """The numbers of the lines that are not empty, and their values."""
    with _opened(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"Line {number} of {file} is not JSON ({error}).") from error


def _read_text(file: Path, columns: _Columns) -> _Table:
    with _opened(file) as lines:
        return _Table([_text_entry(line) for line in filter(None, map(str.strip, lines))], ())


def _text_entry(line: str) -> Entry:
    """Split a line after the extension of an image; without such an extension, before the last comma or space."""
    if is_image_name(line):
        return line, None
    for separator in _SEPARATOR.finditer(line):
        if is_image_name(line[: separator.start()].rstrip()):
            return line[: separator.start()].rstrip(), line[separator.end() :].strip()
    path, *label = line.rsplit("," if "," in line else None, 1)
    return path.strip(), label[0].strip() if label else None


def _opened(file: Path) -> TextIO:
    """Open as text: a byte-order mark is dropped, and names that are not Unicode survive."""
    with file.open("rb") as content:
        start = content.read(2)
    if start in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{file} is text in UTF-16. Save it in UTF-8.")
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _require_unique(file: Path, names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(
            f"{file} names {len(repeated):,} images more than once (such as {readable(repeated[0]):.200}); list each "
            "only once."
        )
