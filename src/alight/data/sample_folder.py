"""Generated images on their way to disk: one file each, found again after an interruption.

Every file is written whole or not at all and says which label and seed made it and what it cost, so a run that was
killed goes on with the images that are missing, whoever of several processes makes them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pydantic import ConfigDict
from typing_extensions import TypedDict

from alight.artifacts import differences, sample_path
from alight.data.png_check import is_intact_png
from alight.data.provenance import png_text
from alight.runtime.errors import InputError
from alight.runtime.files import explained_disk_errors, replacing, write_text
from alight.runtime.reading import read_bytes, read_json

UNFINISHED = "unfinished.json"
_LARGEST_PNG = 256 * 2**20  # bytes


class _State(TypedDict):
    """The content of UNFINISHED."""

    __pydantic_config__ = ConfigDict(strict=True, extra="ignore")  # type: ignore[misc]

    config: dict[str, Any]
    inputs: dict[str, str]
    seconds: float


class Request(NamedTuple):
    """One image to be made."""

    label: int
    seed: int


class SampleFolder:
    """`images/000000.png`, ... of one sampling run, and `unfinished.json` while it goes on.

    Args:
        path: the folder of the samples artifact.
        config: the resolved configuration; a run that goes on must have the same.
        inputs: kind -> hash of what the images are made with; they must be the same, too.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        self.path, self.config, self.inputs = path, dict(config), dict(inputs)

    def image_path(self, number: int) -> Path:
        """Where image `number` lies."""
        return sample_path(self.path, number)

    def start(self) -> float:
        """Claim the folder, or find this very run in it.

        Returns:
            The seconds that the run has taken before.

        Raises:
            InputError: another run has left images here.
        """
        state = self._read_state()
        if state is not None and not any((self.path / "images").glob("*.png")):
            state = None  # nothing depends on its configuration yet, which may be what kept it from going on
        if state is None and any((self.path / "images").glob("*")):
            raise InputError(
                f"{self.path / 'images'} holds files that no unfinished 'alight sample' has left there. "
                "Choose another --output, or delete that folder."
            )
        changed = differences(state["config"] | state["inputs"], self.config | self.inputs) if state else []
        if changed:
            raise InputError(
                f"{self.path} holds unfinished samples of another configuration ({'; '.join(changed[:4])}). Choose "
                "another --output, restore the configuration, or delete that folder to start anew."
            )
        with explained_disk_errors(self.path):
            (self.path / "images").mkdir(parents=True, exist_ok=True)
        seconds = float(state["seconds"]) if state else 0.0
        self.record_time(seconds)
        return seconds

    def record_time(self, seconds: float) -> None:
        """Note how long the run has taken so far."""
        state = {"config": self.config, "inputs": self.inputs, "seconds": round(seconds, 3)}
        with explained_disk_errors(self.path):
            write_text(self.path / UNFINISHED, json.dumps(state, indent=2) + "\n")

    def finish(self) -> None:
        """Forget that the run was ever unfinished; its manifest is written."""
        (self.path / UNFINISHED).unlink(missing_ok=True)

    def holds(self, number: int, request: Request) -> bool:
        """Tell if image `number` is here, bit by bit as it was written, and made as requested."""
        try:
            content = read_bytes(self.image_path(number), _LARGEST_PNG)
            if not is_intact_png(content):
                return False
            with Image.open(BytesIO(content)) as image:
                image.load()
                return (image.info.get("label"), image.info.get("seed")) == (str(request.label), str(request.seed))
        except Exception:  # of a foreign file of this name, Pillow raises nearly everything
            return False

    def write(self, number: int, pixels: np.ndarray, request: Request, nfe: int, settings: Mapping[str, Any]) -> None:
        """Store image `number`, (H, W, 3) uint8, with what made it, its cost, and what else it is to say of itself."""
        text = png_text({"label": request.label, "seed": request.seed, "nfe": nfe, **settings})
        with replacing(self.image_path(number), durable=False) as temporary:
            Image.fromarray(pixels).save(temporary, format="png", pnginfo=text)

    def write_picture(self, name: str, image: np.ndarray, settings: Mapping[str, Any]) -> None:
        """Store a picture of several samples, with what they have in common."""
        with replacing(self.path / name) as temporary:
            Image.fromarray(image).save(temporary, format="png", pnginfo=png_text(settings))

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """The pixels of images, (H, W, 3) uint8, one after another."""
        for number in numbers:
            with Image.open(self.image_path(number)) as image:
                yield np.asarray(image)

    def evaluations(self, number: int) -> int:
        """The network evaluations that image `number` took."""
        with Image.open(self.image_path(number)) as image:
            return int(image.info["nfe"])

    def _read_state(self) -> _State | None:
        path = self.path / UNFINISHED
        if not path.is_file():
            return None
        return read_json(path, _State, f"Delete {self.path} to start from the beginning.")
