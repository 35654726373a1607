"""Images arranged into one picture: grids of samples, originals above their reconstructions."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alight.runtime.errors import InputError


def image_grid(
    images: ArrayLike, columns: int, *, padding: int = 2, labels: ArrayLike | None = None
) -> NDArray[np.uint8]:
    """Arranges equally large images in rows, with transparent gaps that suit a light and a dark page.

    Args:
        images: uint8, (N, H, W, C) with C = 1, 3 or 4.
        columns: Images in a row.
        padding: Pixels between neighbours.
        labels: (N,) classes. With them every row is a class, in ascending order, and shows its first `columns`
            images; without them images fill the rows in order and all are shown.

    Returns:
        uint8, (H', W', 4): red, green, blue, opacity.

    Raises:
        InputError: Shapes or types do not fit.
    """
    images = np.asarray(images)
    check_images(images, "The image grid")
    if columns < 1 or padding < 0:
        raise InputError(f"An image grid needs columns >= 1 and padding >= 0, not {columns} and {padding}.")
    if labels is None:
        rows = [np.arange(len(images))[start : start + columns] for start in range(0, len(images), columns)]
    else:
        labels = np.asarray(labels)
        if labels.shape != (len(images),):
            raise InputError(f"The image grid has {len(images)} images and labels of shape {labels.shape}.")
        rows = [np.flatnonzero(labels == label)[:columns] for label in np.unique(labels)]

    cells = _with_opacity(images)
    height, width = images.shape[1] + padding, images.shape[2] + padding
    grid = np.zeros((len(rows) * height - padding, max(map(len, rows)) * width - padding, 4), dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, index in enumerate(row):
            top, left = i * height, j * width
            grid[top : top + height - padding, left : left + width - padding] = cells[index]
    return grid


def pair_strip(
    originals: ArrayLike, reconstructions: ArrayLike, *, padding: int = 2, difference_gain: float | None = None
) -> NDArray[np.uint8]:
    """Originals in one row, their reconstructions below, and the magnified differences below those.

    Args:
        originals: uint8, (N, H, W, C).
        reconstructions: uint8, the same shape.
        padding: Pixels between neighbours.
        difference_gain: Adds a third row: middle grey + gain * (reconstruction - original), so that grey means equal
            and a pixel brighter than grey came out too bright. None leaves the row out.

    Returns:
        uint8, (H', W', 4): red, green, blue, opacity.

    Raises:
        InputError: Shapes or types do not fit.
    """
    return comparison_strip(originals, [reconstructions], padding=padding, difference_gain=difference_gain)


def comparison_strip(
    originals: ArrayLike,
    candidates: Sequence[ArrayLike],
    *,
    padding: int = 2,
    difference_gain: float | None = None,
) -> NDArray[np.uint8]:
    """Originals in one row, and below it, for each candidate, its reconstructions and the magnified differences.

    Args:
        originals: uint8, (N, H, W, C).
        candidates: reconstructions by one method each, uint8, of the same shape.
        padding: Pixels between neighbours.
        difference_gain: As for `pair_strip`.

    Returns:
        uint8, (H', W', 4): red, green, blue, opacity.

    Raises:
        InputError: Shapes or types do not fit.
    """
    originals = np.asarray(originals)
    check_images(originals, "The originals of a pair strip")
    rows = [_with_opacity(originals)]
    for reconstructions in map(np.asarray, candidates):
        check_images(reconstructions, "The reconstructions of a pair strip")
        if originals.shape != reconstructions.shape:
            raise InputError(
                f"A pair strip needs pairs: the originals have shape {originals.shape}, "
                f"the reconstructions {reconstructions.shape}."
            )
        rows.append(_with_opacity(reconstructions))
        if difference_gain is not None:
            rows.append(_with_opacity(difference_picture(rows[0], rows[-1], difference_gain)))
    return image_grid(np.concatenate(rows), columns=len(originals), padding=padding)


def scatter(points: ArrayLike, values: ArrayLike, side: int = 480) -> NDArray[np.uint8]:
    """Points of the plane as a square picture on dark ground, from violet for small values to yellow for large ones.

    Args:
        points: (N, 2); the picture's edges are those of the points.
        values: (N,), which colour the points by rank, so that a few large ones do not make the others alike.
        side: of the picture in pixels.

    Returns:
        uint8, (side, side, 3).
    """
    points, values = np.asarray(points, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or values.shape != points.shape[:1] or not len(points):
        raise InputError(f"A scatter needs points (N, 2) and values (N,), not {points.shape} and {values.shape}.")
    low, extent = points.min(0), np.maximum(np.ptp(points, axis=0), 1e-12)
    columns, rows = (4 + (points - low) / extent * (side - 10)).astype(np.int64).T
    rank = values.argsort().argsort() / max(len(values) - 1, 1)
    stops = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=np.float64)
    colours = np.stack([np.interp(rank, np.linspace(0, 1, len(stops)), channel) for channel in stops.T], axis=1)
    picture = np.full((side, side, 3), 24, dtype=np.uint8)
    order = values.argsort()  # the dense ones on top
    for down in range(2):
        for right in range(2):
            picture[side - 1 - rows[order] - down, columns[order] + right] = colours[order]
    return picture


def difference_picture(a: NDArray[np.uint8], b: NDArray[np.uint8], gain: float) -> NDArray[np.uint8]:
    """Middle grey + gain * (b - a), opaque: grey means equal, brighter that `b` is brighter.

    Args:
        a: uint8, (..., H, W, 3), or 4 with opacity, which is ignored.
        b: uint8, the same shape.
        gain: Factor by which differences are magnified.

    Returns:
        uint8, (..., H, W, 3).
    """
    difference = b[..., :3].astype(np.float64) - a[..., :3]
    return np.clip(np.rint(128 + gain * difference), 0, 255).astype(np.uint8)


def check_images(images: NDArray[np.generic], name: str) -> None:
    """Refuses anything but a non-empty batch (N, H, W, C) of uint8 images."""
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3, 4) or images.size == 0:
        raise InputError(
            f"{name} needs uint8 images of shape (height, width, channels) with 1, 3 or 4 channels in the last place; "
            f"these are {images.dtype} of shape {images.shape[1:]}."
        )


def _with_opacity(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W, 1 | 3 | 4) -> (N, H, W, 4)."""
    if images.shape[-1] == 4:
        return images
    opaque = np.full((*images.shape[:-1], 1), 255, dtype=np.uint8)
    return np.concatenate([np.broadcast_to(images, (*images.shape[:-1], 3)), opaque], axis=-1)
