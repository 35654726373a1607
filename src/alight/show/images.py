"""`alight info images`: describe the images of a folder or of another source, before anything is trained on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alight.config import InfoImagesConfig
from alight.data.duplicates import Groups
from alight.data.images import ImageSource
from alight.data.loading import open_images
from alight.data.survey import COMMON_SIZES, ImageSurvey, survey
from alight.show.description import Description

_SHOWN_GROUPS, _SHOWN_IN_GROUP = 5, 4


@dataclass(frozen=True)
class DescribedImages:
    """A survey with the names of the images."""

    place: Path
    source: ImageSource
    survey: ImageSurvey

    def as_data(self) -> dict[str, Any]:
        """For programs: the survey, with names in place of indices."""
        data = self.survey.as_data()
        groups = {kind: self._named(getattr(self.survey.duplicates, kind)) for kind in ("exact", "near")}
        return {"path": str(self.place), **data, "duplicates": {**data["duplicates"], **groups}}

    def __str__(self) -> str:
        found = self.survey
        classes = "one class" if len(found.classes) == 1 else f"{len(found.classes):,} classes"
        details: dict[str, Any] = {
            "classes": found.classes,
            "short side": self._sides(),
            "taller than 2:1": found.taller,
            "wider than 2:1": found.wider,
            "stored as": _counted(found.modes),
            "transparent": found.transparent,
            "skipped": found.skipped or "none",
            "other files": _counted(found.ignored) if found.ignored else "none",
            **self._duplicates(),
        }
        images = "1 image" if found.count == 1 else f"{found.count:,} images"
        return str(Description(self.place, f"{images} in {classes}", details))

    def _sides(self) -> dict[str, Any]:
        short = self.survey.short_sides
        spread = f"{short.min()} to {short.max()} pixels, median {np.median(short):g}"
        return {"all": spread} | {f"under {size} pixels": self.survey.smaller_than(size) for size in COMMON_SIZES}

    def _duplicates(self) -> dict[str, Any]:
        found = self.survey.duplicates
        different = self.survey.count - sum(len(group) - 1 for group in found.exact)
        among = f" (among {found.examined:,} images, spread evenly)" if found.examined < different else ""
        return {"exact duplicates": self._shown(found.exact), f"near duplicates{among}": self._shown(found.near)}

    def _shown(self, groups: Groups) -> dict[str, str] | str:
        """Groups by number, the first few; the number of all follows."""
        if not groups:
            return "none"
        shown = {}
        for number, names in enumerate(self._named(groups[:_SHOWN_GROUPS]), start=1):
            more = f", ... {len(names)} in all" if len(names) > _SHOWN_IN_GROUP else ""
            shown[str(number)] = ", ".join(names[:_SHOWN_IN_GROUP]) + more
        if len(groups) > _SHOWN_GROUPS:
            shown["..."] = f"{len(groups):,} groups in all; --json lists every one"
        return shown

    def _named(self, groups: Groups) -> list[list[str]]:
        return [[self.source.name(index) for index in group] for group in groups]


def run(config: InfoImagesConfig) -> DescribedImages:
    """Survey the images of a source.

    Raises:
        InputError: there is no such source, or it holds no usable images.
    """
    source = open_images(
        config.source,
        unconditional=config.unconditional,
        max_skipped_fraction=1.0,
        image_column=config.image_column,
        label_column=config.label_column,
    )
    return DescribedImages(Path(config.source), source, survey(source))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
