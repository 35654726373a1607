"""A folder of images as a source: its subfolders are the classes."""

import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np

from alight.data.decode import WHITE
from alight.data.image_store import FileStore, count_other_files, list_images, visible_folders
from alight.data.readable_names import readable, readable_classes
from alight.data.stored_images import StoredImages
from alight.runtime.errors import InputError

_SPLIT_FOLDERS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_SHOWN_EXTENSIONS = 5
FEW_LOOSE = 0.05  # share of the images, up to which those beside class folders are left out

logger = logging.getLogger(__name__)


class ImageFolder(StoredImages):
    """The images of a folder on disk: one subfolder per class, or all in one place and unlabelled.

    Class subfolders are searched recursively, and their sorted names are the classes. Files that do not decode are
    skipped, listed in `skipped` and warned about; see `list_images` for how they are found.

    Args:
        folder: the folder.
        unconditional: take all images below the folder as one class.
        max_skipped_fraction: more unusable files than this share are an error.
        background: the colour behind transparent pixels.

    Raises:
        InputError: the folder is missing or has no images; there are many images both beside and in subfolders; a
            class has no usable image; too many files are damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        unconditional: bool = False,
        max_skipped_fraction: float = 0.5,
        background: str = WHITE,
    ) -> None:
        folder = Path(folder)
        if not os.path.isdir(folder):
            found = "is a file, not a folder; unpack it first" if os.path.exists(folder) else "does not exist"
            raise InputError(f"The image folder {folder!s:.300} {found}.")
        self.folder = folder
        names = list_images(folder)
        if not names:
            others = _others(" but other files: ", self.ignored_files())
            raise InputError(
                f"The folder {folder} holds no images{others}; it should hold files such as .jpg, .png or .webp, "
                "either directly or in one subfolder per class."
            )
        names = names if unconditional else _without_few_loose(folder, names)
        if unconditional or _is_flat(folder, names):
            classes = [readable(folder.resolve().name)] * len(names)
        else:
            folders = [name.split("/", 1)[0] for name in names]
            shown = readable_classes(dict.fromkeys(folders), str(folder))
            classes = [shown[name] for name in folders]
        class_names, labels = np.unique(classes, return_inverse=True)
        super().__init__(
            FileStore(folder, folder, names),
            labels.astype(np.int64),
            tuple(class_names.tolist()),
            max_skipped_fraction,
            background,
        )

    def ignored_files(self) -> dict[str, int]:
        """Extension -> number of files that are not named as images, such as videos and documents."""
        return count_other_files(self.folder)


def _others(before: str, counts: dict[str, int]) -> str:
    """The numbers of files of other kinds, after a few words; nothing if there are none."""
    shown = [f"{count:,} {readable(extension)}" for extension, count in list(counts.items())[:_SHOWN_EXTENSIONS]]
    return f"{before}{', '.join(shown)}{', ...' if len(counts) > len(shown) else ''}" if shown else ""


def _without_few_loose(folder: Path, names: list[str]) -> list[str]:
    """The images without those beside the class folders, where these are so few that they can only be strays."""
    loose = [name for name in names if "/" not in name]
    if not 0 < len(loose) <= FEW_LOOSE * len(names):
        return names
    logger.warning(
        "%s holds %d image%s beside the class folders (such as %s), which %s left out.",
        *(folder, len(loose), "s" * (len(loose) > 1), readable(loose[0]), "are" if len(loose) > 1 else "is"),
    )
    return [name for name in names if "/" in name]


def _is_flat(folder: Path, names: list[str]) -> bool:
    """Tell if the images are directly in the folder rather than in class folders; an ambiguous layout is an error."""
    per_folder = Counter(name.split("/", 1)[0] for name in names if "/" in name)
    loose = len(names) - per_folder.total()
    if not per_folder:
        return True
    if loose:
        raise InputError(
            f"{folder} holds {loose:,} images beside {len(per_folder)} subfolders with images (such as "
            f"{readable(min(per_folder))}), so it is unclear if the subfolders are classes; move the loose images "
            "into class folders or away, or take everything as one class with the option unconditional."
        )
    if empty := [name for name in visible_folders(folder) if name not in per_folder]:
        held = _others(", which holds ", count_other_files(folder / empty[0]))
        raise InputError(
            f"{len(empty)} of the class folders in {folder} hold no images (such as {readable(empty[0])}{held}); "
            "every class needs some, so fill them, convert their files to .jpg or .png, or move them elsewhere."
        )
    if per_folder.keys() <= _SPLIT_FOLDERS:
        logger.warning(
            "The class folders of %s are named %s: if these are splits of a data set, give one of them instead.",
            folder,
            ", ".join(sorted(per_folder)),
        )
    _warn_of_deeper_classes(folder, names)
    return False


def _warn_of_deeper_classes(folder: Path, names: list[str]) -> None:
    """Warn if the only class folder has subfolders, which may be the classes."""
    if len({name.split("/", 1)[0] for name in names}) == 1:
        common = os.path.commonpath([os.path.dirname(name) for name in names])
        below = sorted({name.removeprefix(f"{common}/").split("/")[0] for name in names})
        if len(below) > 1 and all(os.path.dirname(name) != common for name in names):
            logger.warning(
                "%s has one class folder, so all images are one class, but %s has subfolders (%s). If these are the "
                "classes, give that folder instead.",
                folder,
                readable(str(folder / common)),
                ", ".join(map(readable, below[:4])) + (", ..." if len(below) > 4 else ""),
            )
