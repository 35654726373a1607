"""Notes on images that do not enter training as they are: small ones are enlarged, transparent ones composed."""

from alight.data.crops import scaled_sides
from alight.data.images import ImageSource
from alight.options import Crop
from alight.runtime.console import log

_noted: set[str] = set()  # in this process; a run opens the same images several times


def note_changes(source: ImageSource, size: int, crop: Crop) -> None:
    """Log, once per run, how many images are smaller than the square and how many are transparent.

    Args:
        source: the whole source, before it is split.
        size: side of the square in pixels.
        crop: as in the configuration.
    """
    sides = scaled_sides(source.sizes, crop)
    if small := int((sides < size).sum()):
        height, width = source.sizes[sides.argmin()]
        are = "is" if small == 1 else "are"
        _note(
            f"note: {small:,} of {len(source):,} images {are} smaller than {size} pixels (the smallest "
            f"{width}x{height}) and {are} enlarged; --images.upscale False refuses small images."
        )
    if transparent := int(source.transparent.sum()):
        have, are = ("has", "is") if transparent == 1 else ("have", "are")
        _note(
            f"note: {transparent:,} of {len(source):,} images {have} transparent pixels and {are} composed on "
            f"{source.background}; --images.background chooses another colour."
        )


def _note(text: str) -> None:
    if text not in _noted:
        _noted.add(text)
        log.info(text)
