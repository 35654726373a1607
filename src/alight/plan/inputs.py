"""The parts that a job is made from, as far as a clock needs them: as they are, as another job makes them, or assumed.

A folder that is not there yet is looked up among the jobs of the same arrow, and then among the shipped recipes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TypeVar

from alight.artifacts import is_complete, read_artifact
from alight.config import (
    ExtractLatentsConfig,
    FoundationModelConfig,
    ImagesConfig,
    Job,
    PlanConfig,
    TrainFoundationConfig,
    TrainTokenizerConfig,
    TrainTransformerConfig,
)
from alight.config.recipes import load_config, shipped_names
from alight.data.latent_features import LatentFeatures
from alight.data.latents import LatentDataset
from alight.data.loading import open_source
from alight.interop.tokenizer_sources import open_tokenizer
from alight.lineage import require_tokenizer_of
from alight.models.foundation import FoundationModel
from alight.models.lightning_dit import LightningDiT
from alight.models.tokenizer import Tokenizer
from alight.models.vavae import VAVAE
from alight.options import Split
from alight.plan.untrained import (
    LatentShape,
    TransformerShape,
    block_within,
    num_layers,
    shallower,
    small_foundation,
    untrained_foundation,
)
from alight.runtime.errors import InputError
from alight.training.inputs import foundation_inputs
from alight.training.tokenizer_networks import new_tokenizer
from alight.training.transformer_networks import build_model

JobT = TypeVar("JobT", bound=Job)
IMAGENET_IMAGES, IMAGENET_VALIDATION = 1_281_167, 50_000
KINDS_OF_IMAGES = {"train": "training images", "held_out": "held-out images", "all": "images"}
DECODED_IMAGES = 16  # that the time of decoding is the mean of
ASSUMED_LATENTS, ASSUMED_CLASSES, ASSUMED_FEATURES = (32, 16, 16), 1000, 768


class Inputs:
    """Finds the parts of a job, and notes what was taken for granted.

    Args:
        config: the numbers that the user gives for what is not there yet.
        jobs: that make the parts, such as those of the same arrow.

    Attributes:
        notes: sentences on what was taken for granted.
    """

    def __init__(self, config: PlanConfig, jobs: Iterable[Job] = ()) -> None:
        self.config, self.notes, self._jobs = config, list[str](), tuple(jobs)

    def note(self, text: str) -> None:
        """Add a sentence, unless it is there."""
        if text not in self.notes:
            self.notes.append(text)

    def images(self, images: ImagesConfig, split: Split = "train") -> tuple[int, int]:
        """The number of images of a split, and of their classes."""
        wanted = self.config.num_images
        try:
            source = open_source(images, split)
        except InputError as error:
            if wanted is None:
                missing = f"There are no {KINDS_OF_IMAGES[split]} at {images.source} yet"
                reason = f"The {KINDS_OF_IMAGES[split]} at {images.source} cannot be counted ({error})"
                wanted = IMAGENET_VALIDATION if split == "held_out" else IMAGENET_IMAGES
                self.note(
                    f"{reason if os.path.exists(images.source) else missing}: they are taken to be {wanted:,}, as in "
                    "ImageNet; --num-images says otherwise."
                )
            return wanted, self.config.num_classes or ASSUMED_CLASSES
        return wanted or len(source), len(source.class_names)

    def latents(self, folder: Path) -> tuple[LatentShape, int]:
        """Shape and classes of latents, and their number."""
        config = self.config
        if is_complete(folder):
            dataset = LatentDataset(folder)
            return LatentShape(dataset.shape, dataset.num_classes), config.num_images or len(dataset)
        maker = self.maker(folder, ExtractLatentsConfig)
        if maker is not None and config.latent_shape is None:
            vae = self.tokenizer(maker.tokenizer)
            side = maker.images.size // vae.downsampling_factor
            count, classes = self.images(maker.images)
            shape = LatentShape((vae.config.latent_channels, side, side), config.num_classes or classes)
            if maker in self._jobs:
                return shape, count
        else:
            shape = LatentShape(config.latent_shape or ASSUMED_LATENTS, config.num_classes or ASSUMED_CLASSES)
            count = config.num_images or IMAGENET_IMAGES
        self.note(
            f"There are no latents at {folder} yet: they are taken to be {count:,} of "
            f"{' x '.join(map(str, shape.shape))} in {shape.num_classes:,} classes; --num-images, --latent-shape and "
            "--num-classes say otherwise."
        )
        return shape, count

    def feature_dim(self, recipe: TrainTransformerConfig) -> int | None:
        """Width of the features that the tokens of a transformer are aligned with; None where they are not.

        Raises:
            InputError: the latents are there, and hold no features, or those of another model.
        """
        wanted = recipe.representation
        if not wanted.enabled:
            return None
        if is_complete(recipe.latents):
            artifact = read_artifact(recipe.latents, "latents", verify=False)
            return LatentFeatures(
                artifact, wanted.foundation, foundation_inputs(wanted.foundation).get("foundation")
            ).shape[0]
        maker = self.maker(recipe.latents, ExtractLatentsConfig)
        name = (maker.features.foundation if maker is not None else None) or wanted.foundation
        if name is not None:
            return self.foundation(name, "own").feature_dim
        self.note(
            f"There are no features at {recipe.latents} yet: they are taken to be {ASSUMED_FEATURES} wide, as those "
            "of DINOv2-B; representation.foundation says otherwise."
        )
        return ASSUMED_FEATURES

    def tokenizer(self, source: Path | str) -> Tokenizer:
        """A tokenizer, with random weights if it is not there yet.

        Raises:
            InputError: it is there and cannot be used.
        """
        maker = None if is_complete(Path(source)) else self.maker(source, TrainTokenizerConfig)
        if maker is not None and maker.init_from is not None:
            return self.tokenizer(maker.init_from)
        if maker is not None:
            self._note_origin("tokenizer", source, maker)
            return self.new_tokenizer(maker)
        try:
            return open_tokenizer(source).vae
        except InputError:
            if os.path.exists(source):
                raise
            self.note(
                f"There is no tokenizer at {source}, and no shipped recipe makes it: the paper's f16d32 is assumed."
            )
            return VAVAE.build()

    def new_tokenizer(self, recipe: TrainTokenizerConfig) -> Tokenizer:
        """The tokenizer that a training run begins with, its frozen encoder with random weights."""
        name = recipe.frozen_encoder.foundation
        return new_tokenizer(recipe, None if name is None else self.foundation(name, "own"))

    def foundation(self, name: str, input_mode: str) -> FoundationModel:
        """A foundation model with random weights.

        Raises:
            InputError: its folder holds no usable configuration.
        """
        maker = None if is_complete(Path(name)) else self.maker(name, TrainFoundationConfig)
        if maker is not None:
            self._note_origin("foundation model", name, maker)
            return small_foundation(maker.model, maker.images.size, name, input_mode)
        try:
            return untrained_foundation(name, input_mode)
        except InputError:
            if os.path.exists(name):
                raise
            self.note(
                f"There is no foundation model at {name}, and no shipped recipe makes it: the small one that "
                "'alight foundation train' makes by default is assumed."
            )
            return small_foundation(FoundationModelConfig(), 256, name, input_mode)

    def transformer(self, folder: Path) -> TransformerShape:
        """A transformer with random weights, of any depth."""
        if is_complete(folder):
            config = dict(LightningDiT.load_config(folder))
            size = config["sample_size"]
            return TransformerShape(
                lambda layers: LightningDiT.from_config(
                    config
                    | {"num_layers": layers, "auxiliary_block": block_within(config.get("auxiliary_block"), layers)}
                ),
                config["num_layers"],
                config["num_classes"],
                size if isinstance(size, int) else size[0],
            )
        maker = self.maker(folder, TrainTransformerConfig)
        if maker is not None:
            self._note_origin("transformer", folder, maker)
        else:
            self.note(f"There is no transformer at {folder}, and no shipped recipe makes it: an XL/1 is assumed.")
        recipe = maker or TrainTransformerConfig()
        latents, _ = self.latents(recipe.latents)
        return TransformerShape(
            lambda layers: build_model(shallower(recipe, layers), latents),
            num_layers(recipe),
            latents.num_classes,
            latents.shape[1],
        )

    def tokenizer_of(self, transformer: Path) -> Path:
        """The place of the tokenizer whose latents a transformer makes."""
        if is_complete(transformer):
            return require_tokenizer_of(read_artifact(transformer, "transformer", verify=False))
        recipe = self.maker(transformer, TrainTransformerConfig)
        latents = self.maker(recipe.latents, ExtractLatentsConfig) if recipe is not None else None
        return latents.tokenizer if latents is not None else transformer.parent / "tokenizer"

    def foundation_of(self, tokenizer: Path) -> str | None:
        """The foundation model that a tokenizer is aligned with, if any."""
        if is_complete(tokenizer):
            return read_artifact(tokenizer, "tokenizer", verify=False).facts.get("foundation")
        recipe = self.maker(tokenizer, TrainTokenizerConfig)
        return recipe.aligning_foundation if recipe is not None else None

    def reading(self, images: ImagesConfig, split: Split = "train") -> float:
        """Seconds to decode an image of a split, the mean of a few; 0 where they are not there yet."""
        try:
            source = open_source(images, split)
        except InputError:
            return 0.0
        chosen = range(0, len(source), max(len(source) // DECODED_IMAGES, 1))[:DECODED_IMAGES]
        source.load(chosen[0])  # opens files
        started = time.perf_counter()
        for index in chosen:
            source.load(index)
        return (time.perf_counter() - started) / len(chosen)

    def maker(self, folder: Path | str, kind: type[JobT]) -> JobT | None:
        """The job that makes a folder, if one is known."""
        place = os.path.abspath(folder)
        for job in (*self._jobs, *shipped_jobs().values()):
            if isinstance(job, kind) and os.path.abspath(job.output) == place:
                return job
        return None

    def _note_origin(self, kind: str, place: Path | str, maker: Job) -> None:
        """Name the shipped recipe that a part is taken from; of the same arrow, nothing is taken for granted."""
        for name, job in shipped_jobs().items():
            if job is maker:
                self.note(f"There is no {kind} at {place} yet: it is taken to be that of the recipe {name}.")


@cache
def shipped_jobs() -> dict[str, Job]:
    """The shipped recipes by name."""
    return {name: load_config(name) for name in shipped_names()}
