"""The parts that every configuration is made of: checked types, closed sections, images, the job."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from alight.options import Crop, suggestion

Item = TypeVar("Item")
LARGEST_COUNT, LARGEST_SEED = 2**31 - 1, 2**63 - 1  # what arrays, files and generators of random numbers can take
LONGEST_NAME, LONGEST_PATH = 255, 3_900  # bytes: limits of file systems, with room for the files in a folder

AtLeastOne = Annotated[tuple[Item, ...], Field(min_length=1)]
Positive = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
NonNegative = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Size = Annotated[int, Field(ge=1, le=65_536)]  # pixels, channels and widths; larger ones are misprints
Depth = Annotated[int, Field(ge=1, le=1_000)]  # layers
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a moving average
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
PositiveReal = Annotated[float, Field(gt=0)]
NonNegativeReal = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ClassName = Annotated[str, Field(coerce_numbers_to_str=True)]  # in YAML, an index is a number
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]


def usable_path(path: Path) -> Path:
    """A path with `~` replaced by the home folder.

    Raises:
        ValueError: no file system can hold it.
    """
    text = usable_text(str(path))
    encoded = text.encode("utf-8")
    longest = max((len(part) for part in encoded.split(b"/")), default=0)
    if longest > LONGEST_NAME:
        raise ValueError(f"{text[:40]}... has a name of {longest} bytes, and a file name has {LONGEST_NAME} at most")
    if len(encoded) > LONGEST_PATH:
        raise ValueError(f"{text[:40]}... has {len(encoded):,} bytes, and a path has {LONGEST_PATH:,} at most")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text} begins with a home folder that does not exist") from error


def usable_text(text: str) -> str:
    """The text itself.

    Raises:
        ValueError: it holds what neither files nor paths can hold.
    """
    if "\0" in text:
        raise ValueError("the text holds a NUL character; remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("the text is not valid UTF-8; rename the file or folder, or correct the text") from error
    return text


def _source_with_home(text: str) -> str:
    path = usable_path(Path(text))  # names of hubs and catalogues are shorter than any path may be
    return str(path) if text == "~" or (text.startswith("~") and "/" in text) else text


Source = Annotated[str, AfterValidator(_source_with_home)]  # a path, or a name of another kind
_SECRET = re.compile(r"(^|_)(password|passphrase|token|secret)s?(_|$)")


def is_secret(key: str) -> bool:
    """Tell if the value of a key, such as a password, belongs into no log and no message."""
    return _SECRET.search(key) is not None


def _known_colour(text: str) -> str:
    """An opaque colour that Pillow knows, in lower case.

    Raises:
        ValueError: it is none.
    """
    from PIL import ImageColor  # most commands need no colour

    name = text.lower()
    try:
        opaque = len(ImageColor.getrgb(name)) == 3
    except ValueError:
        opaque = False
    if not opaque:
        nearest = suggestion(name, ImageColor.colormap, cutoff=0.7)
        raise ValueError(f"{text!r:.80} is not a colour.{nearest} Give a name such as white or grey, or '#rrggbb'")
    return name


Colour = Annotated[str, AfterValidator(_known_colour)]


class Section(BaseModel):
    """A part of a configuration: immutable, closed to unknown keys, and of paths and texts that can be used."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _given(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what would silently become something else: an empty path the current folder, false the number 0."""
        if isinstance(value, bool) and not _mentions(cls.model_fields[str(info.field_name)].annotation, bool):
            raise ValueError(f"{str(value).lower()} is neither a number nor a text; null stands for nothing")
        if value == "" or (isinstance(value, list | tuple) and "" in value):
            raise ValueError("the text is empty; give a value, or leave the key out")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _usable(cls, value: Any) -> Any:
        match value:
            case Path():
                return usable_path(value)
            case str():
                return usable_text(value)
            case tuple():
                return tuple(cls._usable(item) for item in value)
            case dict():
                return {cls._usable(key): cls._usable(item) for key, item in value.items()}
            case _:
                return value


def _mentions(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_mentions(part, kind) for part in get_args(annotation))


class ImagesConfig(Section):
    """Images and their crops."""

    source: Source = "digits"  # digits, photographs (embedded), a folder, list, tars or parquet, hf:owner/name[:split]
    image_column: str | None = None  # of a list, tars or a table: where the images are; None = found by name or type
    label_column: str | None = None  # likewise, where the labels are; None = found, or none
    size: Size = 256  # side of the square crop in pixels
    crop: Crop = "center"  # centre crop as in ADM, a random one, or pad: the whole image with borders
    unconditional: bool = False  # take everything as one class, whatever its folders or labels
    horizontal_flip: bool = False  # mirror half of the images at random while training
    held_out_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # not trained on; embedded images have their own
    workers: NonNegative = 0  # processes that decode ahead; 0 = decode when asked
    upscale: bool = True  # enlarge images that are smaller than the crop; False = refuse them
    background: Colour = "white"  # behind transparent pixels, and beside padded images: a colour name or #rrggbb
    max_skipped_fraction: Fraction = 0.5  # give up when more than this share of the files cannot be decoded


class Job(Section):
    """The options of every job."""

    output: Path  # the folder of the artifact
    seed: Seed = 0  # all randomness follows from it
    device: Device = "auto"  # auto, cpu, cuda, cuda:N or mps
