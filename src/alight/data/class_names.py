"""Classes by name: look-up of a given name among the class names of a model.

The names of ImageNet-1k ship with the package, in the order of the published checkpoints (0 = tench, 999 = toilet
tissue), because those checkpoints hold none.
"""

import difflib
import operator
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

from alight.data.readable_names import folded, readable
from alight.runtime.errors import InputError

IMAGENET_CLASSES = 1000
# of the 1000 synset numbers n01440764 ... n15075141, sorted, one per line: the folders of an ImageNet-1k copy
_IMAGENET_SYNSETS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"

_DIGITS = re.compile(r"[+-]?[0-9]{1,18}")


@cache
def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 names in the order of their labels, each with its synonyms: `goldfish, Carassius auratus`."""
    path = Path(__file__).with_name("imagenet_classes.txt")
    return tuple(path.read_text(encoding="utf-8").splitlines())


def readable_class_names(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """The names by which the classes of a model can be selected; empty if there are none.

    A model of 1000 classes without names gets those of ImageNet-1k. One trained on ImageNet's folders has the folders'
    names (`n01440764`) as further synonyms.
    """
    if not names:
        return imagenet_class_names() if num_classes == IMAGENET_CLASSES else ()
    names = tuple(map(readable, names))
    if sha256("\n".join(names).encode()).hexdigest() == _IMAGENET_SYNSETS:
        return tuple(f"{name}, {synset}" for name, synset in zip(imagenet_class_names(), names, strict=True))
    return names


def class_index(label: int | str, names: Sequence[str], num_classes: int) -> int:
    """Find the label of a class that is given by label or by name.

    Case and Unicode normal forms do not matter, unless only they distinguish two classes. `goldfish` finds `goldfish,
    Carassius auratus`, and so does `Carassius auratus` if no class has that as its first name.

    Args:
        label: the label, as a number or as digits, or a name. If a class is called `3`, the text "3" means that class,
            and the number 3 the label; if classes are called by numbers, other digits are refused.
        names: by label, possibly with synonyms after commas; may be empty.
        num_classes: number of labels.

    Raises:
        InputError: there is no such class (with the nearest names), or several have that name (with their labels).
    """
    index = _named_index(label, names, num_classes) if isinstance(label, str) else _number(label)
    if not 0 <= index < num_classes:
        raise InputError(
            f"Class {index} is out of range: this transformer has the classes 0 to {num_classes - 1}. Choose one of "
            "them."
        )
    return index


def _number(label: int) -> int:
    try:
        if isinstance(label, bool):
            raise TypeError
        return operator.index(label)
    except TypeError:
        raise InputError(f"{label!r:.100} is not a class. Give names as text, or labels as integers.") from None


def _named_index(label: str, names: Sequence[str], num_classes: int) -> int:
    """The label of a class given as text, by name or in digits."""
    found = _named(label, names)
    if len(found) == 1:
        return found[0]
    if found:
        choices = "; ".join(f"{index} is '{names[index]}'" for index in found)
        raise InputError(f"Several classes are called '{label}': {choices}. Give the index of the one you mean.")
    if not _DIGITS.fullmatch(label.strip()):
        raise InputError(
            f"There is no class '{readable(label):.100}'.{_nearest(label, names)} Indices from 0 to {num_classes - 1} "
            "work too."
        )
    index = int(label)
    _require_unambiguous(label, index, names)
    return index


def _require_unambiguous(label: str, index: int, names: Sequence[str]) -> None:
    """Refuse digits that could mean an index or a differently written name, if classes are called by numbers.

    An unquoted 010 in YAML is such a case, since YAML 1.1 reads it as the number 8.
    """
    numbers = [int(first) if _DIGITS.fullmatch(first := name.split(",")[0].strip()) else None for name in names]
    same = [position for position, number in enumerate(numbers) if number == index]
    if same == [index] or (not same and None in numbers) or not numbers:
        return
    meant = f" Did you mean '{names[same[0]]}'?" if same else ""
    raise InputError(
        f"There is no class called '{label.strip()}', and since classes are called by numbers here, it is not taken "
        f"as an index.{meant} Known are {_some(names)}. Give the exact name with its zeros, and in quotes in YAML: "
        '["01", "010"].'
    )


def _named(label: str, names: Sequence[str]) -> list[int]:
    """The classes of a name: first names and whole lines before synonyms, exact spelling before any other."""
    wanted = readable(label).strip()
    for names_of in (_main_names, _synonyms):
        found = [i for i, name in enumerate(names) if folded(wanted) in map(folded, names_of(name))]
        for spelling in (str, _composed):
            exact = [i for i in found if spelling(label.strip()) in map(spelling, names_of(names[i]))]
            if len(exact) == 1:
                return exact
        if found:
            return found
    return []


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _main_names(name: str) -> tuple[str, str]:
    return name, name.split(",")[0].strip()


def _synonyms(name: str) -> list[str]:
    return [synonym.strip() for synonym in name.split(",")]


def _nearest(label: str, names: Sequence[str]) -> str:
    if not names:
        return " This transformer has no class names."
    known = {folded(synonym): synonym for name in names for synonym in _synonyms(name)}
    nearest = [known[match] for match in difflib.get_close_matches(folded(label)[:100], known, n=3, cutoff=0.6)]
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    return f"{hint} Known are {_some(names)}."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
