"""Plain values of well-known types beside the weights in a torch file, rebuilt without executing anything.

torch reads files of weights by an allow-list of classes. Trainers also store their arguments, paths, dates and NumPy
numbers, for which torch would refuse the whole file. Each name below is therefore bound to a constructor that makes a
plain value of its arguments, and to nothing else of its original module.
"""

import argparse
import datetime
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

_PLAIN_KINDS = "biufcSU"  # of NumPy types whose bytes are the value


class StoredArguments(argparse.Namespace):
    """An object that only holds attributes, such as parsed arguments."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, Mapping):
            raise ValueError("the attributes of a namespace are not a mapping")
        self.__dict__.update({str(name): value for name, value in state.items()})


class StoredType:
    """A NumPy type from its code, such as `f8`, and its byte order."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self._code, self._order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self._order = str(state[1])

    def resolve(self) -> np.dtype[Any]:
        """Build the type.

        Raises:
            ValueError: its values are objects or records.
        """
        order = self._order if self._order in "<>=" else "="
        dtype = np.dtype(self._code).newbyteorder(order)  # type: ignore[arg-type]
        if dtype.kind not in _PLAIN_KINDS:
            raise ValueError(f"values of the type {self._code} are not plain")
        return dtype


class StoredArray:
    """A NumPy array rebuilt from its bytes."""

    array: np.ndarray | None = None

    def __init__(self, *_: Any) -> None:
        pass

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return () if self.array is None else self.array.shape

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, column_major, content = state
        order: Any = "F" if column_major else "C"
        self.array = np.frombuffer(_as_bytes(content), kind.resolve()).reshape(shape, order=order)


def stored_scalar(kind: StoredType, content: Any = b"") -> Any:
    """A NumPy number from its type and its bytes."""
    return np.frombuffer(_as_bytes(content), kind.resolve(), count=1)[0]


def _as_bytes(content: Any) -> bytes:
    return content.encode("latin-1") if isinstance(content, str) else bytes(content)


def _modules_of_numpy(name: str) -> list[str]:
    return [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")]


# Pairs of a constructor and its name in files, in the form of torch's allow-list.
HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (StoredArguments, "argparse.Namespace"),
    (StoredArguments, "types.SimpleNamespace"),
    (StoredType, "numpy.dtype"),
    (StoredArray, "numpy.ndarray"),
    *[(stored_scalar, name) for name in _modules_of_numpy("scalar")],
    *[(StoredArray, name) for name in _modules_of_numpy("_reconstruct")],
    *[
        (path, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for path, names in (
            (PurePosixPath, ("PosixPath", "PurePosixPath")),
            (PureWindowsPath, ("WindowsPath", "PureWindowsPath")),
        )
        for name in names
    ],
    *[(getattr(datetime, name), f"datetime.{name}") for name in ("datetime", "date", "time", "timedelta", "timezone")],
]
