"""The configuration of studies, which join many stages into one report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from alight.config.base import Colour, Device, ImagesConfig, Job, Positive, Section, Seed, Size, Source
from alight.config.evaluation import EvaluateConfig, EvaluateTokenizerConfig
from alight.config.latents import ExtractLatentsConfig
from alight.config.sampling import SampleConfig
from alight.config.tokenizer import TrainFoundationConfig, TrainTokenizerConfig
from alight.config.transformer import TrainTransformerConfig
from alight.options import Crop, FixedPrecision

LONGEST = 60 * 24 * 365  # minutes


def require_averages(transformer: TrainTransformerConfig, samples: SampleConfig) -> None:
    """Refuse to sample with an average of which the training keeps nothing.

    Raises:
        ValueError: names the keys.
    """
    if samples.average is not None and transformer.training.power_averages is None:
        raise ValueError(
            "samples.average takes averages that training has kept; set transformer.training.power_averages, "
            "[0.05, 0.1] for example"
        )


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

    @model_validator(mode="after")
    def _averages_are_kept(self) -> Self:
        require_averages(self.transformer, self.samples)
        return self


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
    precision: FixedPrecision | None = None  # of training: fp32 or bf16; None = the faster one on this machine

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


class GridStudyConfig(Job):
    """The arrow that every run of a study takes; runs differ in their seed and in the settings under study."""

    output: Path = Path("runs/study")
    images: ImagesConfig = ImagesConfig()  # of every stage
    public_foundation: Source | None = None  # align with this model, such as dinov2-base, instead of training one
    foundation: TrainFoundationConfig = TrainFoundationConfig()  # that the aligned tokenizers are aligned with
    observer: TrainFoundationConfig = TrainFoundationConfig(task="masked_autoencoder")  # measures, and trains nothing
    tokenizer: TrainTokenizerConfig = TrainTokenizerConfig()
    reconstruction: EvaluateTokenizerConfig = EvaluateTokenizerConfig()
    latents: ExtractLatentsConfig = ExtractLatentsConfig()
    transformer: TrainTransformerConfig = TrainTransformerConfig()
    samples: SampleConfig = SampleConfig()
    report: EvaluateConfig = EvaluateConfig()
    measurements: Positive = 4  # of samples while a transformer trains, after even shares of its steps
    seeds: Positive = 3  # runs of every setting, with the seeds from `seed` on
    jobs: Positive = 1  # runs at once, each with its share of the cores, or with a GPU of its own
    keep_checkpoints: bool = False  # of measured transformers; they take some gigabytes

    @model_validator(mode="after")
    def _measured_at_whole_steps(self) -> Self:
        if self.transformer.training.steps % self.measurements:
            raise ValueError(
                f"transformer.training.steps {self.transformer.training.steps} is not a multiple of measurements "
                f"{self.measurements}"
            )
        return self

    @model_validator(mode="after")
    def _averages_are_kept(self) -> Self:
        require_averages(self.transformer, self.samples)
        between, interval = self.measured_steps[0], self.transformer.training.snapshot_interval
        if self.samples.average is not None and between % interval:
            raise ValueError(
                f"samples.average needs a snapshot at every measurement, but there are {between} steps between these "
                f"and {interval} between snapshots; set transformer.training.snapshot_every to a divisor"
            )
        return self

    @property
    def measured_steps(self) -> tuple[int, ...]:
        """Steps of a transformer after which samples of it are measured."""
        each = self.transformer.training.steps // self.measurements
        return tuple(each * number for number in range(1, self.measurements + 1))


class FrontierStudyConfig(GridStudyConfig):
    """Reconstruction against generation over latent widths, with and without alignment, in one report."""

    output: Path = Path("runs/frontier")
    latent_channels: Annotated[tuple[Size, ...], Field(min_length=1)] = (8, 16, 32, 64)
    seeds_at_widest: Positive | None = None  # None = as elsewhere

    @field_validator("latent_channels")
    @classmethod
    def _rising(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(channels)) < len(channels):
            raise ValueError(f"latent_channels {', '.join(map(str, channels))} names a width twice")
        return tuple(sorted(channels))


Changes = dict[str, Any]  # dotted keys of a study's arrow, such as tokenizer.alignment.cosine_margin -> their values


class AblationStudyConfig(GridStudyConfig):
    """Named changes of one arrow, one at a time and one on top of the other, in one report."""

    output: Path = Path("runs/ablation")
    alone: dict[str, Changes] = {}  # name -> changes of the arrow, each against the arrow as it is
    cumulated: dict[str, Changes] = {}  # likewise, each on top of those before
    equal_time: bool = False  # also compare after the same time of training, by the measured cost of a step


class AlignmentStudyConfig(Job):
    """A plain and an aligned tokenizer with the same seed and budget, side by side in one report."""

    output: Path = Path("runs/study")
    foundation: TrainFoundationConfig = TrainFoundationConfig()
    tokenizer: TrainTokenizerConfig = TrainTokenizerConfig()  # the aligned one; the plain one differs in nothing else
    report: EvaluateTokenizerConfig = EvaluateTokenizerConfig()
