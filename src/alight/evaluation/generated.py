"""Generated images to be scored, from a sampling run, a plain folder, or a `.npz`.

Scores depend on the order of the images, so each kind has one: that of the file, or of the sorted names.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import ConfigDict, JsonValue, with_config
from typing_extensions import TypedDict

from alight.artifacts import SAMPLES_RECORD, Artifact, is_complete, read_artifact, sample_path
from alight.data.provenance import read_npz_entry
from alight.metrics.reference import NpzImageReader
from alight.reporting.report import Conditions
from alight.runtime.background import mapped_ahead
from alight.runtime.errors import InputError
from alight.runtime.pixels import PixelArray
from alight.runtime.reading import check_values, read_json, require_regular

READERS = 4  # threads that decode images while those before are measured
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@with_config(ConfigDict(strict=True, allow_inf_nan=False, extra="allow"))
class SampleSettings(TypedDict):
    """The record of a sampling run, as far as scores need it; more may stand beside it."""

    count: int
    labels: list[int]
    class_names: list[str]
    sampling: dict[str, JsonValue]
    label_protocol: str
    nfe: int | float
    seed: int
    uint8_rule: str
    transformer: str
    tokenizer: str
    latents_tokenizer: NotRequired[str]


class GeneratedImages(ABC):
    """A set of generated images of one size, in a fixed order.

    Attributes:
        name: of the set in reports.
        count: number of images.
        size: (H, W) of each.
        labels: (N,) the classes that were asked for, or None where they are unknown.
        class_names: by label.
        conditions: all known settings that made them, to be stated with every score.
        settings: the record of the sampling run that made them, where there is one.
        remarks: caveats of scores on them.
    """

    name: str
    count: int
    size: tuple[int, int]
    labels: npt.NDArray[np.int64] | None = None
    class_names: Sequence[str] = ()
    conditions: Conditions
    settings: Mapping[str, Any] | None = None
    remarks: Sequence[str] = ()

    def class_name(self, label: int) -> str:
        """The name of a class, or its label where it has none."""
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def _know(self, settings: SampleSettings, source: Path) -> None:
        """Take labels and conditions from the record of a sampling run, which lies in `source`."""
        labels, classes = settings["labels"], len(settings["class_names"])
        if len(labels) != settings["count"] or not all(0 <= label < classes for label in labels):
            raise InputError(
                f"{source} contradicts itself: {settings['count']} images need as many labels, each of one of "
                f"{classes} classes. Generate the samples again."
            )
        self.labels = np.array(settings["labels"], dtype=np.int64)
        self.class_names = settings["class_names"]
        self.conditions = sampling_conditions(settings)
        self.settings = settings
        if trained_on := settings.get("latents_tokenizer"):
            self.remarks = [
                f"The images were decoded by the tokenizer {settings['tokenizer'][:12]}, an improved one: the "
                f"transformer was trained on the latents of {trained_on[:12]}, and only the decoder differs."
            ]

    @abstractmethod
    def read(self, start: int, stop: int, batch_size: int) -> Iterator[PixelArray]:
        """Images `start` to `stop`, in order, as (B, H, W, 3) uint8.

        Raises:
            InputError: one of them is missing, damaged, or not as large as the others.
        """

    @abstractmethod
    def pick(self, numbers: Sequence[int]) -> PixelArray:
        """Some of them, (M, H, W, 3) uint8."""


class GeneratedFiles(GeneratedImages):
    """Image files of one size, in the order in which they are given.

    Attributes:
        paths: of the files.
    """

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name, self.paths, self.count = name, paths, len(paths)
        self.size = self._load(paths[0], None).shape[:2]

    def read(self, start: int, stop: int, batch_size: int) -> Iterator[PixelArray]:
        """See `GeneratedImages`; images are decoded ahead, in threads."""
        decoded = mapped_ahead(lambda number: self._load(self.paths[number], self.size), range(start, stop), READERS)
        for first in range(start, stop, batch_size):
            yield np.stack(list(islice(decoded, min(batch_size, stop - first))))

    def pick(self, numbers: Sequence[int]) -> PixelArray:
        """See `GeneratedImages`."""
        return np.stack([self._load(self.paths[number], self.size) for number in numbers])

    def _load(self, path: Path, size: tuple[int, int] | None) -> PixelArray:
        require_regular(path)
        try:
            with Image.open(path) as image:
                mode, pixels = image.mode, np.asarray(image)
        except Exception as error:  # Pillow has a dozen kinds for damaged files
            raise InputError(
                f"The generated image {path} cannot be read ({error}). Make it again, or remove it."
            ) from error
        if mode != "RGB":
            raise InputError(
                f"{path} is an image of mode {mode}, but scores are taken of 8-bit RGB images. Convert all of them "
                "the same way, and say how beside the scores."
            )
        if size is not None and pixels.shape[:2] != size:
            (height, width), (first_height, first_width) = pixels.shape[:2], size
            raise InputError(
                f"{path} has {width}x{height} pixels, but {self.paths[0].name} {first_width}x{first_height}. Scores "
                "compare images of one size: resize them all the same way, or take away what does not belong."
            )
        return pixels


class FolderImages(GeneratedFiles):
    """The 8-bit RGB images of one size in a folder and its subfolders, in the order of their paths.

    Raises:
        InputError: there is no such folder, or it holds fewer than two images.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"There are no generated images at {folder}; give a folder of images or a .npz.")
        paths = [path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file()]
        paths = sorted(path for path in paths if not path.name.startswith("."))
        if len(paths) < 2:
            raise InputError(
                f"{folder} holds {len(paths)} images, and scores compare distributions: give two at least, and "
                "thousands for scores that mean much."
            )
        super().__init__(folder.name, paths)
        self.conditions = {"images": self.count, "labels": "unknown", "order": "by file name"}
        lossy = sum(path.suffix.lower() in (".jpg", ".jpeg", ".webp") for path in self.paths)
        if lossy:
            self.remarks = [f"{lossy:,} of the images were compressed with loss, which moves every score. Use PNG."]


class SampledImages(GeneratedFiles):
    """Images that 'alight sample' has made, with every setting that made them.

    Raises:
        InputError: an image or a record is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.artifact: Artifact = read_artifact(folder, "samples")
        settings = read_json(folder / SAMPLES_RECORD, SampleSettings, "Generate the samples again.")
        self._know(settings, folder / SAMPLES_RECORD)
        paths = [sample_path(folder, number) for number in range(settings["count"])]
        missing = next((path for path in paths if not path.is_file()), None)
        if missing is not None or len(paths) < 2:
            raise InputError(
                f"The samples in {folder} are not complete ({missing or 'fewer than two images'}). Generate them "
                "again, two at least."
            )
        super().__init__(folder.name, paths)


class NpzImages(GeneratedImages):
    """The images of a `.npz`, as evaluators exchange them.

    Args:
        path: its `arr_0` is (N, H, W, 3) uint8; its `arr_1`, if any, the labels. One that this package wrote also says
            how the images were made.

    Raises:
        InputError: the file is missing or damaged, or has fewer than two such images.
    """

    def __init__(self, path: Path) -> None:
        self._file = NpzImageReader(path)
        self.name = path.name
        self.count, height, width, _ = self._file.shape
        if self.count < 2:
            raise InputError(f"{path} holds a single image, and scores compare distributions: give two at least.")
        self.size = (height, width)
        self.labels = self._file.labels()
        known = "unknown" if self.labels is None else "of the file"
        self.conditions = {"images": self.count, "labels": known, "order": "of the file"}
        settings = read_npz_entry(path)
        if settings.get("count") == self.count and "sampling" in settings:  # none of another program's
            known_settings = check_values(settings, SampleSettings, f"The record in {path}", "Make the file again.")
            self._know(known_settings, path)

    def read(self, start: int, stop: int, batch_size: int) -> Iterator[PixelArray]:
        """See `GeneratedImages`."""
        return self._file.read(start, stop, batch_size)

    def pick(self, numbers: Sequence[int]) -> PixelArray:
        """See `GeneratedImages`."""
        return np.concatenate([next(self._file.read(number, number + 1)) for number in numbers])


def open_generated(path: Path) -> GeneratedImages:
    """Open generated images of any kind.

    Raises:
        InputError: there are none, or they cannot be used.
    """
    if path.suffix == ".npz":
        return NpzImages(path)
    return SampledImages(path) if is_complete(path) or not path.is_dir() else FolderImages(path)


def sampling_conditions(settings: Mapping[str, Any]) -> Conditions:
    """The conditions to state beside a score, from the settings that a sampling run records."""
    sampling = {name: "off" if value is None else value for name, value in settings["sampling"].items()}
    sampling["guidance_channels"] = settings["sampling"].get("guidance_channels") or "all"
    return {
        "images": settings["count"],
        "labels": settings["label_protocol"],
        **{name: value if isinstance(value, int | float) else str(value) for name, value in sampling.items()},
        **({"average": settings["average"]} if "average" in settings else {}),
        "NFE": settings["nfe"],
        "seed": settings["seed"],
        "uint8 rule": settings["uint8_rule"],
        "transformer": settings["transformer"][:12],
        "tokenizer": settings["tokenizer"][:12],
    }
