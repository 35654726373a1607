"""The configuration of studies, which join many stages into one report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from alight.config.base import Colour, Device, ImagesConfig, Job, Section, Seed, Size, Source
from alight.config.evaluation import EvaluateConfig, EvaluateTokenizerConfig
from alight.config.latents import ExtractLatentsConfig
from alight.config.sampling import SampleConfig
from alight.config.tokenizer import TrainFoundationConfig, TrainTokenizerConfig
from alight.config.transformer import TrainTransformerConfig
from alight.options import Crop, Precision

LONGEST = 60 * 24 * 365  # minutes


class QuickstartConfig(Job):
    """The whole arrow, on the embedded digits: foundation, tokenizer, latents, transformer, samples, report."""

    output: Path = Path("runs/quickstart")
    images: ImagesConfig = ImagesConfig()  # of every stage that has no `images` of its own
    public_foundation: Source | None = None  # align with this model, such as dinov2-base, instead of training one
    stock_tokenizer: Source | None = None  # use this one instead of training a tokenizer and a foundation model
    foundation: TrainFoundationConfig = TrainFoundationConfig()
    tokenizer: TrainTokenizerConfig = TrainTokenizerConfig()
    latents: ExtractLatentsConfig = ExtractLatentsConfig()
    transformer: TrainTransformerConfig = TrainTransformerConfig()
    samples: SampleConfig = SampleConfig()
    report: EvaluateConfig = EvaluateConfig()


class StartConfig(Section):
    """Look at your own images, plan a generator of them that fits the time, and train it to a report.

    The same command again goes on after an interruption.
    """

    source: Source | None = None  # a folder of images, a list, tars, hf:owner/name, photographs; always needed
    minutes: Annotated[float, Field(gt=0, le=LONGEST)] = 10.0  # for all of it, on this machine
    output: Path | None = None  # None = runs/NAME-10min, of the images and the time
    plan_only: bool = False  # show the plan, and stop there
    recipe: Source | None = None  # of the whole arrow, to begin from; None = the shipped one that fits the time
    size: Size | None = None  # side of the square images in pixels; None = that of the recipe
    crop: Crop | None = None  # center or random cuts what sticks out, pad keeps all; None = by the shapes
    background: Colour = "white"  # behind transparent pixels, and around padded images
    horizontal_flip: bool | None = None  # mirror images at random; None = unless they are digits
    unconditional: bool = False  # take everything as one class, whatever its folders or labels
    image_column: str | None = None  # of a list, tars or a table: where the images are; None = found by name or type
    label_column: str | None = None  # likewise, where the labels are; None = found, or none
    held_out_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.1  # not trained on, for honest figures
    stock_tokenizer: Source | None = None  # try this one first; None = a published one, where a GPU makes it pay
    public_foundation: Source | None = None  # align with this model; None = a public one with a GPU, else a small own
    seed: Seed = 0  # all randomness follows from it
    device: Device = "auto"  # auto, cpu, cuda, cuda:N or mps
    precision: Precision | None = None  # of training: fp32 or bf16; None = the faster one on this machine

    @field_validator("source")
    @classmethod
    def _as_one_path(cls, source: str | None) -> str | None:
        """The same text for `images`, `images/` and `./images`, which are one folder to go on with."""
        plain = str(Path(source)) if source and not source.startswith("hf:") else source
        return source if plain in ("digits", "photographs") else plain  # which name embedded images

    @property
    def folder(self) -> Path:
        """The output, or its default."""
        name = Path((self.source or "images").removeprefix("hf:")).absolute().name.split(".")[0].split(":")[0]
        return self.output or Path("runs") / f"{name or 'images'}-{self.minutes:g}min"


class AlignmentStudyConfig(Job):
    """A plain and an aligned tokenizer with the same seed and budget, side by side in one report."""

    output: Path = Path("runs/study")
    foundation: TrainFoundationConfig = TrainFoundationConfig()
    tokenizer: TrainTokenizerConfig = TrainTokenizerConfig()  # the aligned one; the plain one differs in nothing else
    report: EvaluateTokenizerConfig = EvaluateTokenizerConfig()
