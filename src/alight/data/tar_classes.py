"""Classes of unlabelled images in tar files: a tar per class, as in ImageNet's own, or folders inside them."""

import logging
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from alight.data.readable_names import readable
from alight.runtime.errors import InputError

_SYNSET = re.compile(r"n[0-9]{8}")  # a class of ImageNet, not the number of a shard
_NAMED_IN_MESSAGES = 4

logger = logging.getLogger(__name__)


class TarPlace(NamedTuple):
    """The place of an image.

    Attributes:
        tar: path of the tar file, or of the inner tar file, that contains it.
        folder: inside the tar file.
    """

    tar: str
    folder: str


def classes_by_place(images: Sequence[TarPlace], place: str) -> list[str] | None:
    """The class of each image: the name of its tar file if these are names of classes, else that of its folder.

    Tar files whose names end in numbers are shards, except ImageNet's synsets (`n01440764`). Folders that all images
    share are not classes.

    Returns:
        The names; None if neither tars nor folders distinguish classes.

    Raises:
        InputError: some images are beside the folders of the others.
    """
    stems = {image.tar: os.path.splitext(os.path.basename(image.tar))[0] for image in images}
    if len(stems) > 1 and _are_classes(set(stems.values())):
        return [stems[image.tar] for image in images]
    folders = _class_folders(images, place)
    if folders is None and len(stems) > 1:
        logger.warning(
            "No labels were found in %s, and its %d tar files (%s) are taken as parts of one class. If each is a "
            "class, name them by their classes, without numbers at the end; if there are no labels, set "
            "unconditional=True.",
            place,
            len(stems),
            _some(sorted(stems.values())),
        )
    return folders


def _are_classes(stems: set[str]) -> bool:
    return all(map(_SYNSET.fullmatch, stems)) or (len(stems) > 1 and not any(stem[-1:].isdigit() for stem in stems))


def _class_folders(images: Sequence[TarPlace], place: str) -> list[str] | None:
    distinct = {image.folder.strip("/") for image in images}
    if len(distinct) < 2:
        return None
    common = os.path.commonpath(distinct) if "" not in distinct else ""
    below = {folder: os.path.relpath(folder or ".", common or ".").split("/")[0] for folder in distinct}
    if "." in below.values():
        loose = sum(below[image.folder.strip("/")] == "." for image in images)
        others = sorted({name for name in below.values() if name != "."})
        raise InputError(
            f"{place} holds {loose:,} images beside folders with images ({_some(others)}), and no labels, so it is "
            "unclear if the folders are classes; move the loose images into folders, or take everything as one class "
            "with unconditional=True."
        )
    return [below[image.folder.strip("/")] for image in images]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(readable, names[:_NAMED_IN_MESSAGES]))
    return shown + (", ..." if len(names) > _NAMED_IN_MESSAGES else "")
