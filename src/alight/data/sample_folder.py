"""Resumable writing of generated images, one file each.

Every file is written atomically and records its label, its seed and its network evaluations, so a killed run resumes
with the missing images, in any number of processes.
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
_COMPRESSION = 4  # of zlib's 9 levels: half the time of Pillow's 6 for photographs that are 1 % larger


class _State(TypedDict):
    """The content of UNFINISHED."""

    __pydantic_config__ = ConfigDict(strict=True, extra="ignore")  # type: ignore[misc]

    config: dict[str, Any]
    inputs: dict[str, str]
    seconds: float


class Request(NamedTuple):
    """The label and the seed of one image."""

    label: int
    seed: int


class SampleFolder:
    """The folder of one sampling run: `images/000000.png`, ..., and `unfinished.json` until it is finished.

    Args:
        path: the folder of the samples artifact.
        config: the resolved configuration; a resumed run must have the same.
        inputs: hashes of the artifacts that generate the images, by kind; they must also be the same.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        self.path, self.config, self.inputs = path, dict(config), dict(inputs)

    def image_path(self, number: int) -> Path:
        """The path of image `number`."""
        return sample_path(self.path, number)

    def start(self) -> float:
        """Start or resume a run in the folder, and return the seconds that it has taken before.

        Raises:
            InputError: the folder holds images of another run.
        """
        state = self._read_state()
        if state is not None and not any((self.path / "images").glob("*.png")):
            state = None  # nothing depends on its configuration yet, which may have been the mistake
        if state is None and any((self.path / "images").glob("*")):
            raise InputError(
                f"{self.path / 'images'} holds files that are not of an unfinished 'alight sample'. "
                "Choose another --output, or delete that folder."
            )
        changed = differences(state["config"] | state["inputs"], self.config | self.inputs) if state else []
        if changed:
            raise InputError(
                f"{self.path} holds unfinished samples of another configuration ({'; '.join(changed[:4])}). Choose "
                "another --output, restore the configuration, or delete that folder to start again."
            )
        with explained_disk_errors(self.path):
            (self.path / "images").mkdir(parents=True, exist_ok=True)
        seconds = float(state["seconds"]) if state else 0.0
        self.record_time(seconds)
        return seconds

    def record_time(self, seconds: float) -> None:
        """Record the time of the run so far."""
        state = {"config": self.config, "inputs": self.inputs, "seconds": round(seconds, 3)}
        with explained_disk_errors(self.path):
            write_text(self.path / UNFINISHED, json.dumps(state, indent=2) + "\n")

    def finish(self) -> None:
        """Delete the state of the unfinished run, after its manifest was written."""
        (self.path / UNFINISHED).unlink(missing_ok=True)

    def holds(self, number: int, request: Request) -> bool:
        """Tell if image `number` exists, is intact, and was made as requested."""
        try:
            content = read_bytes(self.image_path(number), _LARGEST_PNG)
            if not is_intact_png(content):
                return False
            with Image.open(BytesIO(content)) as image:
                image.load()
                return (image.info.get("label"), image.info.get("seed")) == (str(request.label), str(request.seed))
        except Exception:  # Pillow raises many types for a foreign file of this name
            return False

    def write(self, number: int, pixels: np.ndarray, request: Request, nfe: int, settings: Mapping[str, Any]) -> None:
        """Store image `number`, (H, W, 3) uint8, with its request, its network evaluations and other settings.

        Several threads may do so at once, each for images of its own.
        """
        text = png_text({"label": request.label, "seed": request.seed, "nfe": nfe, **settings})
        with replacing(self.image_path(number), durable=False) as temporary:
            Image.fromarray(pixels).save(temporary, format="png", pnginfo=text, compress_level=_COMPRESSION)

    def write_picture(self, name: str, image: np.ndarray, settings: Mapping[str, Any]) -> None:
        """Store a picture of several samples, with their common settings."""
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
