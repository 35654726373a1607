"""Arguments of a pipeline call as callers write them, brought into one form or refused."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alight.runtime.errors import InputError


def as_labels(class_labels: Any) -> list[int | str]:
    """Class labels as a list: of numbers, names, arrays or tensors, or a single one.

    Raises:
        InputError: there is none, or one is neither a whole number nor a text.
    """
    single = isinstance(class_labels, str) or _is_integer(class_labels)
    values = [class_labels] if single else _items(class_labels, "class_labels")
    for value in values:
        if not isinstance(value, str) and not _is_integer(value):
            raise InputError(f"class_labels holds {value!r}, but a class is given by its name or its whole number.")
    if not values:
        raise InputError("class_labels is empty. Give the class of each image that you want.")
    return [value if isinstance(value, str) else operator.index(value) for value in values]


def as_seeds(seeds: Any, count: int) -> list[int] | None:
    """Seeds as a list of one per image, or None; a single number will do for a single image.

    Raises:
        InputError: one is not a whole number, or there are more or fewer than images.
    """
    if seeds is None:
        return None
    values = [seeds] if _is_integer(seeds) else _items(seeds, "seeds")
    wrong = [value for value in values if not _is_integer(value)]
    if wrong:
        raise InputError(f"seeds holds {wrong[0]!r}, but a seed is a whole number.")
    if len(values) != count:
        raise InputError(f"{count} class labels need as many seeds; {len(values)} were given.")
    return [operator.index(value) for value in values]


def check_generator(generator: Any, count: int) -> None:
    """Refuse anything that cannot draw noise.

    Raises:
        InputError: it is neither a `torch.Generator`, nor a list of one per image, nor None.
    """
    if generator is None:
        return
    several = isinstance(generator, list | tuple)
    for each in generator if several else [generator]:
        if not isinstance(each, torch.Generator):
            raise InputError(
                f"generator holds {each!r}, where a torch.Generator is needed, or a list of one per image."
            )
    if several and len(generator) != count:
        raise InputError(
            f"{count} class labels need as many generators, or a single one; {len(generator)} were given."
        )


def as_steps(steps: Any) -> int:
    """A number of steps.

    Raises:
        InputError: it is not a whole number.
    """
    if not _is_integer(steps):
        raise InputError(f"num_inference_steps is {steps!r}, but must be a whole number. Give at least one step.")
    return operator.index(steps)


def check_numbers(**settings: Any) -> None:
    """Refuse settings that are not finite numbers; None stands for an unset one.

    Raises:
        InputError: names the setting.
    """
    for name, value in settings.items():
        if value is not None and not _is_finite(value):
            raise InputError(f"{name} is {value!r}, but must be a finite number.")


def check_interval(interval: Any) -> None:
    """Refuse anything but a pair of times, or None for all times.

    Raises:
        InputError: it is something else.
    """
    pair = isinstance(interval, list | tuple) and len(interval) == 2
    if interval is not None and not (pair and all(isinstance(t, int | float) and t == t for t in interval)):
        raise InputError(f"The guidance interval is {interval!r}, but must be a pair of times such as (0.1, 0.9).")


def noise_of_generators(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, row i from the i-th generator, on its device."""
    return torch.stack([torch.randn(shape, generator=each, device=each.device) for each in generators])


def require_finite(values: Tensor, name: str, settings: Mapping[str, Any]) -> None:
    """Refuse a result that is not finite.

    Raises:
        InputError: names the settings that may have led there.
    """
    if not values.isfinite().all():
        chosen = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
        raise InputError(
            f"{name} are not finite with these settings: {chosen}. Lower the guidance scale; if that does not help, "
            "take more steps or another solver, or run in float32."
        )


def _items(values: Any, name: str) -> list[Any]:
    if isinstance(values, Tensor | np.ndarray):
        if values.ndim > 1:
            raise InputError(f"{name} has the shape {tuple(values.shape)}, but must be a list of one per image.")
        values = np.atleast_1d(np.asarray(values.cpu() if isinstance(values, Tensor) else values)).tolist()
    if not isinstance(values, Iterable):
        raise InputError(f"{name} is {values!r}, but must be a list of one per image.")
    return list(values)


def _is_integer(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return False
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0 and not isinstance(value.item(), bool | float | complex)
    return hasattr(value, "__index__")


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, bool | str) and math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False
