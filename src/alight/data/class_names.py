"""Classes by name: what people type, found among the names that a model knows.

The names of ImageNet-1k ship with the package, in the order of the published checkpoints (0 = tench, 999 = toilet
tissue), because those checkpoints hold none.
"""

import difflib
import re
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

from alight.runtime.errors import InputError

IMAGENET_CLASSES = 1000
_INDEX = re.compile(r"[+-]?\d{1,18}")
# of the 1000 synset numbers n01440764 ... n15075141, sorted, one per line: the folders of an ImageNet-1k copy
_IMAGENET_SYNSETS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"


@cache
def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 names in the order of their labels, each with its synonyms: `goldfish, Carassius auratus`."""
    path = Path(__file__).with_name("imagenet_classes.txt")
    return tuple(path.read_text(encoding="utf-8").splitlines())


def readable_class_names(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """The names by which the classes of a model can be asked for; empty if there are none.

    A model of 1000 classes without names knows those of ImageNet-1k. One that was trained on ImageNet's folders knows
    the folders' names (`n01440764`) as a further synonym.
    """
    if not names:
        return imagenet_class_names() if num_classes == IMAGENET_CLASSES else ()
    if sha256("\n".join(names).encode()).hexdigest() == _IMAGENET_SYNSETS:
        return tuple(f"{name}, {synset}" for name, synset in zip(imagenet_class_names(), names, strict=True))
    return tuple(names)


def class_index(label: int | str, names: Sequence[str], num_classes: int) -> int:
    """The label of a class that is given by label or by name.

    Upper and lower case are the same, unless only they tell two classes apart. `goldfish` finds
    `goldfish, Carassius auratus`, and so does `Carassius auratus` where no class has that as its first name.

    Args:
        label: the label itself, as a number or as digits, or a name. Where a class is called `3`, the text "3" means
            that class, and the number 3 the label.
        names: by label, possibly with synonyms after commas; may be empty.
        num_classes: how many labels there are.

    Raises:
        InputError: there is no such class (with the nearest names), or several have that name (with their labels).
    """
    if isinstance(label, str):
        found = _named(label, names)
        if len(found) == 1:
            return found[0]
        if found:
            choices = "; ".join(f"{index} is '{names[index]}'" for index in found)
            raise InputError(f"Several classes are called '{label}': {choices}. Give the index of the one you mean.")
        if not _INDEX.fullmatch(label.strip()):
            raise InputError(
                f"There is no class '{label}'.{_nearest(label, names)} Indices from 0 to {num_classes - 1} work too."
            )
    index = int(label)
    if not 0 <= index < num_classes:
        raise InputError(
            f"Class {index} is out of range: this transformer knows the classes 0 to {num_classes - 1}. Choose one of "
            "them."
        )
    return index


def _named(label: str, names: Sequence[str]) -> list[int]:
    """The classes of that name: first names and whole lines before synonyms, exact spelling before any."""
    wanted = label.strip()
    for names_of in (_main_names, _synonyms):
        found = [i for i, name in enumerate(names) if wanted.casefold() in map(str.casefold, names_of(name))]
        exact = [i for i in found if wanted in names_of(names[i])]
        if found:
            return exact if len(exact) == 1 else found
    return []


def _main_names(name: str) -> tuple[str, str]:
    return name, name.split(",")[0].strip()


def _synonyms(name: str) -> list[str]:
    return [synonym.strip() for synonym in name.split(",")]


def _nearest(label: str, names: Sequence[str]) -> str:
    if not names:
        return " This transformer has no class names."
    known = {synonym.casefold(): synonym for name in names for synonym in _synonyms(name)}
    nearest = [known[match] for match in difflib.get_close_matches(label.casefold(), known, n=3, cutoff=0.6)]
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    return f"{hint} Known are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}."
