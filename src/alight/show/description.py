"""The description of a file or folder, as text and as data."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alight.runtime.terminal import paint
from alight.show.layout import facts


@dataclass(frozen=True)
class Description:
    """The kind of a file or folder in a few words, and its details, which may be nested."""

    path: Path
    kind: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        return {"path": str(self.path), "kind": self.kind, **self.details}

    def __str__(self) -> str:
        heading = paint(f"{self.path}: {self.kind}", "bold", sys.stdout)
        return f"{heading}\n{facts(self.details, indent=2)}".rstrip()
