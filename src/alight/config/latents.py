"""The configuration of latents: their extraction, and a look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alight.config.base import ImagesConfig, Job, NonNegative, Positive, Section, Seed, Source
from alight.options import Compilation, FixedPrecision, Precision, StoredDtype, StoredPosterior


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
