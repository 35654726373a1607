"""Images in one `.npz`, as evaluators of generated images exchange them."""

import zipfile
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from alight.data.provenance import npz_member, write_npz_entry


def write_images_npz(
    path: Path, images: Iterable[np.ndarray], count: int, settings: Mapping[str, Any] | None = None
) -> None:
    """Write `arr_0`, (N, H, W, 3) uint8. The images are streamed, so they need not fit into memory.

    Args:
        path: of the file.
        images: (H, W, 3) uint8 of one size; shuffled, since the Inception score reads chunks in file order.
        count: number of images.
        settings: of their generation; written beside them.
    """
    stream = iter(images)
    first = next(stream)
    header = {
        "descr": np.lib.format.dtype_to_descr(first.dtype),
        "fortran_order": False,
        "shape": (count, *first.shape),
    }
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open(npz_member("arr_0"), "w", force_zip64=True) as file:
            np.lib.format.write_array_header_2_0(cast(BinaryIO, file), header)
            for pixels in chain([first], stream):
                file.write(np.ascontiguousarray(pixels).tobytes())
        if settings:
            write_npz_entry(archive, settings)
