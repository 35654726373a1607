"""Names beside the rows of a grid of images, drawn into the picture itself.

They are for pictures that are looked at alone; the page of a report writes names beside the picture as text.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LOWEST_ROW = 10  # pixels; lower rows have no room for letters
SMALLEST, LARGEST = 10, 24  # sizes of the letters in pixels
LONGEST = 20  # characters of a name
GREY = (128, 128, 128, 255)  # can be read on a light and on a dark ground


def with_row_names(grid: NDArray[np.uint8], names: Sequence[str], padding: int = 2) -> NDArray[np.uint8]:
    """Adds a column with the names of the rows on the left of a grid.

    Args:
        grid: uint8, (H, W, 4), of equally high rows.
        names: one per row, from top to bottom.
        padding: Pixels between neighbouring rows.

    Returns:
        uint8, (H, W', 4) on transparent ground; the grid itself where its rows are lower than 10 pixels.
    """
    height = (grid.shape[0] + padding) // len(names) - padding
    if height < LOWEST_ROW:
        return grid
    font = ImageFont.load_default(min(max(height // 5, SMALLEST), LARGEST))
    written = [drawable(name, number) for number, name in enumerate(names)]
    width = int(max(map(font.getlength, written))) + 8
    margin = Image.new("RGBA", (width, grid.shape[0]))
    draw = ImageDraw.Draw(margin)
    for number, name in enumerate(written):
        middle = number * (height + padding) + height / 2
        draw.text((width - 6, middle), name, fill=GREY, font=font, anchor="rm")
    return np.concatenate([np.asarray(margin), grid], axis=1)


def drawable(name: str, number: int) -> str:
    """A name in the letters of Pillow's own font, which are those of ASCII.

    Accents are left out, and a name in another script is replaced by the number of its row.
    """
    decomposed = unicodedata.normalize("NFKD", name)
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    if not (plain.isascii() and plain.isprintable()):
        plain = f"row {number + 1}"
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 3]}..."
