"""Images in one `.npz`, as evaluators of generated images exchange them."""

import zipfile
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from alight.data.provenance import npz_member, software, write_npz_entry
from alight.runtime.seeding import random_stream


def write_images_npz(
    path: Path, images: Iterable[np.ndarray], count: int, settings: Mapping[str, Any] | None = None
) -> None:
    """Write `arr_0`, (N, H, W, 3) uint8, and the settings beside it; images are streamed in the order given."""
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


def write_shuffled_npz(
    path: Path,
    read: Callable[[list[int]], Iterable[np.ndarray]],
    count: int,
    seed: int,
    settings: Mapping[str, Any] | None,
) -> None:
    """Write generated images in an order drawn from the seed, since the Inception score needs classes mixed.

    Args:
        path: of the file.
        read: gives the images of these numbers, in their order, (H, W, 3) uint8 each.
        count: of all images.
        seed: of the order.
        settings: the record of the sampling run, whose labels and seeds are shuffled along; None where there is none.
    """
    order = torch.randperm(count, generator=random_stream(seed, "npz order")).tolist()
    if settings is not None:
        shuffled = {name: [settings[name][number] for number in order] for name in ("labels", "seeds")}
        settings = software() | dict(settings) | shuffled
    write_images_npz(path, read(order), count, settings)
