"""The configuration of latents: their extraction, and a look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from alight.config.base import (
    Depth,
    ImagesConfig,
    Job,
    NonNegative,
    Positive,
    PositiveReal,
    Section,
    Seed,
    Size,
    Source,
)
from alight.options import (
    Compilation,
    FixedPrecision,
    MeterFigure,
    Posterior,
    Precision,
    Split,
    StoredDtype,
    StoredPosterior,
)


class FeaturesConfig(Section):
    """Features of a vision foundation model, stored beside the latents for the alignment of a transformer's tokens."""

    foundation: Source | None = None  # folder or hub id of a transformers model; None = no features
    foundation_input: Literal["own", "published"] = "own"  # the model's own normalisation, or [-1, 1] as published
    dtype: StoredDtype = "bf16"  # of the stored features


class ExtractLatentsConfig(Job):
    """Encode images once, so that the transformer trains on latents."""

    output: Path = Path("runs/latents")
    tokenizer: Path = Path("runs/tokenizer")
    images: ImagesConfig = ImagesConfig()
    flips: bool = True  # also encode each mirrored image
    posterior: StoredPosterior = "sample"  # published: sample; moments: a new sample at every read
    statistics: Literal["tokenizer", "data"] = "tokenizer"  # origin of the mean and std that normalise the latents
    dtype: StoredDtype = "fp32"  # of the stored latents
    features: FeaturesConfig = FeaturesConfig()  # for 'alight transformer train --representation.weight'
    precision: Precision = "auto"  # of the encoder; bf16 = autocast, good to two digits; auto = bf16 on CUDA
    tokenizer_weights: FixedPrecision = "fp32"  # bf16 = encode with narrow weights, faster on CUDA, at a small loss
    compile: Compilation = "auto"  # the blocks of the encoder; auto = on CUDA, from 50,000 images on
    batch_size: Positive = 64  # images at a time, each with its mirror image
    shard_size: Positive = 10_000  # images per file; the unit of resuming, and of dividing the work between processes


class InspectLatentsConfig(Section):
    """Check a folder of latents to the last bit, and show what is in it."""

    latents: Path = Path("runs/latents")
    output: Path | None = None  # a folder for a report with plots; None = the terminal alone
    density_runs: NonNegative = 0  # t-SNE maps that the density figures are averaged over, 10 in the paper; 0 = none
    seed: Seed = 0  # of the positions and maps that are drawn


class MeterImagesConfig(ImagesConfig):
    """Images that latents are measured on; their size is that of the tokenizers, where it is on record."""

    size: Annotated[int, Field(ge=0, le=65_536)] = 0  # side of the square in pixels; 0 = that of the tokenizers


class ProbeConfig(Section):
    """The small LightningDiT whose error after a fixed budget is measured."""

    hidden_size: Size = 128  # a multiple of 4 * num_heads
    num_layers: Depth = 2
    num_heads: Positive = 2
    steps: NonNegative = 600  # of training, the same for all; 0 = no probe
    batch_size: Positive = 128
    lr: PositiveReal = 2e-3  # lower it if the probe diverges

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of 4 * num_heads {self.num_heads}")
        return self


class MeterLatentsConfig(Job):
    """Say which of several tokenizers will be easier to generate, before any transformer is trained.

    With a finished study instead, say which of the figures ranks its tokenizers as its transformers did.
    """

    output: Path = Path("runs/meter")
    tokenizers: tuple[Path, ...] = ()  # folders, hub ids or published checkpoints
    latents: tuple[Path, ...] = ()  # folders of latents, or files of published latent vectors (.pt), without decoder
    study: Path | None = None  # a frontier or an ablation: do the figures predict how well its runs generate?
    images: MeterImagesConfig = MeterImagesConfig()
    split: Split = "train"  # the images that transformers would learn
    count: Annotated[int, Field(ge=2, le=100_000)] = 2_000  # images or latents at most, evenly spread
    posterior: Posterior = "sample"  # as 'alight latents extract' stores
    foundation: Source | None = None  # folder or hub id: also measure if latents relate as its features do
    observer: Source | None = None  # compares midpoints with images; None = the foundation model, else grey pixels
    rank_by: MeterFigure = "probe_loss"  # the figure that decides on the order; not for a study
    probe: ProbeConfig = ProbeConfig()
    density_runs: NonNegative = 1  # t-SNE maps that the density figures are averaged over, 10 in the paper; 0 = none
    perturbation: PositiveReal = 0.5  # size of the step in the latent, relative to it, for the drift of the decoder
    interpolation: Literal["spherical", "linear"] = "spherical"  # way to the points halfway between latents
    posterior_time: Annotated[float, Field(gt=0, lt=1)] = 0.3  # of the ambiguity by other latents; 1 is data
    draws: Annotated[int, Field(ge=20, le=10_000)] = 200  # bootstrap samples of the images, for the intervals
    minutes: PositiveReal = 60.0  # for all figures; where they do not fit, the most expensive are left out first
    batch_size: Positive = 64
