"""Options that are names: take a known one, or say which known one was probably meant."""

import difflib
from collections.abc import Iterable

from alight.runtime.errors import InputError


def require_known(name: str, known: Iterable[str], what: str) -> None:
    """Refuses a name that is not in `known` and suggests the nearest, so that a typing slip mends itself.

    Args:
        name: what the caller gave.
        known: the names that exist.
        what: the kind of thing that is named, as it should read in the message ("solver").

    Raises:
        InputError: `name` is not known.
    """
    known = list(known)
    if name in known:
        return
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f"Did you mean '{nearest[0]}'? " if nearest else ""
    raise InputError(f"Unknown {what} {name!r}. {hint}Choose one of: {', '.join(known)}.")
