"""Columns of images and labels in tables and records, found by their usual names."""

import logging
import re
from collections.abc import Iterable, Sequence

from alight.data.readable_names import readable

# each in order of preference; upper and lower case, spaces, hyphens and underscores do not count
_IMAGES = (
    *("path", "file_name", "file", "image", "image_path", "file_path", "img_path", "image_file", "img_file"),
    *("image_name", "img_name", "image_filename", "img", "images"),
)
_LABELS = (
    *("label", "labels", "class", "category", "class_name", "class_label", "category_name", "label_name", "cls"),
    *("class_id", "category_id", "label_id", "class_index", "class_idx", "label_index", "label_idx", "target"),
    *("targets", "classes", "categories", "synset", "wnid"),
)
_MOST_NAMED = 8  # columns in a message

logger = logging.getLogger(__name__)


def image_columns(names: Iterable[str]) -> list[str]:
    """The names that usually hold images or their paths, the most usual first."""
    return _usual(names, _IMAGES)


def label_columns(names: Iterable[str]) -> list[str]:
    """The names that usually hold labels, the most usual first."""
    return _usual(names, _LABELS)


def wanted_column(wanted: str, names: Iterable[str]) -> str | None:
    """The column of that exact name, else the only one that differs in case, spaces, hyphens or underscores."""
    names = list(names)
    alike = [name for name in names if _plain(name) == _plain(wanted)]
    return wanted if wanted in names else alike[0] if len(alike) == 1 else None


def pick_label_column(names: Iterable[str], place: str) -> str | None:
    """The column with the most usual name for labels; warns if there are several candidates."""
    found = label_columns(names)
    if len(found) > 1:
        logger.warning(
            "%s has several columns that may hold the labels (%s); '%s' is used. Choose another with label_column.",
            place,
            listed(found),
            readable(found[0]),
        )
    return found[0] if found else None


def warn_of_unused(columns: Sequence[str], place: str) -> None:
    """Warn of columns that could hold labels, when all images are taken as one class."""
    if columns:
        logger.warning(
            "No labels were found in %s, so all its images are one class. Not used: %s. If one of these holds the "
            "labels, choose it with label_column; if there are none, set unconditional=True.",
            place,
            listed(columns),
        )


def listed(columns: Sequence[str]) -> str:
    """Names of columns for a message."""
    shown = ", ".join(f"{readable(column):.60}" for column in columns[:_MOST_NAMED])
    return shown + (", ..." if len(columns) > _MOST_NAMED else "")


def _usual(names: Iterable[str], usual: Sequence[str]) -> list[str]:
    plain = [_plain(name) for name in usual]
    found = [name for name in names if _plain(name) in plain]
    return sorted(found, key=lambda name: (plain.index(_plain(name)), name not in usual))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.casefold())
