"""The served models: one pipeline or two, tokenizers, a foundation model, and the settings of their runs."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from alight.artifacts import PIPELINE_OF_A_RUN, find_pipeline, is_complete, read_artifact
from alight.config import ServeConfig, SolverConfig
from alight.data.readable_names import folded, readable
from alight.device_settings import settled
from alight.interop.tokenizer_sources import open_tokenizer
from alight.models.foundation import FoundationModel
from alight.models.tokenizer import Tokenizer
from alight.models.weight_files import weights_hash
from alight.pipelines import LightningDiTPipeline
from alight.pipelines.lightning_dit import latent_shape
from alight.pipelines.opening import open_pipeline
from alight.runtime.console import log
from alight.runtime.device import compile_blocks, resolve_device
from alight.runtime.files import short_names
from alight.sharing.source import Source, records_of
from alight.web.folders import pipeline_folders

QUICKSTART_FOUNDATION, QUICKSTART_SAMPLES = "foundation", "samples"


@dataclass(frozen=True)
class ServedPipeline:
    """A pipeline under a name.

    Attributes:
        name: short, and different from the other pipeline's.
        pipeline: on its device.
        hashes: of the weights; recorded in every image.
        sampling: the page's initial settings: those of the run's own samples, if known.
    """

    name: str
    pipeline: LightningDiTPipeline
    hashes: dict[str, str]
    sampling: SolverConfig

    @property
    def num_classes(self) -> int:
        """Number of classes to choose from."""
        return int(self.pipeline.transformer.config.num_classes)

    def class_name(self, label: int) -> str:
        """The name of a class, or its label as text."""
        names = self.pipeline.class_names
        return names[label] if names else f"class {label}"

    def class_choice(self, label: int) -> str:
        """The entry of a class in a list: its name, with the label if several names look the same."""
        name = self.class_name(label)
        return f"{name} ({label})" if self._alike[folded(name)] > 1 else name

    @cached_property
    def _alike(self) -> Counter[str]:
        return Counter(folded(self.class_name(label)) for label in range(self.num_classes))

    @property
    def image_size(self) -> int:
        """Side of the generated images in pixels."""
        return latent_shape(self.pipeline.transformer)[1] * self.pipeline.tokenizer.downsampling_factor


@dataclass(frozen=True)
class Served:
    """All models of one server, in memory.

    Attributes:
        pipelines: the pipeline, and optionally one to compare it with.
        tokenizers: by name: the pipeline's, and optionally one to compare it with.
        foundation: model whose features are shown beside latents.
        config: limits and precision.
        lock: held during computations, since there is one accelerator.
    """

    pipelines: tuple[ServedPipeline, ...]
    tokenizers: dict[str, Tokenizer]
    foundation: FoundationModel | None
    config: ServeConfig
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def main(self) -> ServedPipeline:
        """The first pipeline."""
        return self.pipelines[0]

    @property
    def device(self) -> torch.device:
        """The device of all models."""
        return self.main.pipeline.transformer.device


def open_served(config: ServeConfig) -> Served:
    """Open all models that the configuration names.

    Raises:
        InputError: no pipeline was given, or a model cannot be opened.
    """
    device, folders = resolve_device(config.device), pipeline_folders(config)
    config = settled(config, device)
    names = [readable(name) for name in short_names([_run_folder(folder) for folder in folders])]
    pipelines = tuple(_open_pipeline(*pair, device) for pair in zip(folders, names, strict=True))
    if config.compile:
        compile_blocks(block for each in pipelines for block in each.pipeline.transformer.all_blocks)
    tokenizers = {
        f"Tokenizer of {names[0]}" if config.compare_tokenizer else "Tokenizer": pipelines[0].pipeline.tokenizer
    }
    if config.compare_tokenizer is not None:
        tokenizers[readable("/".join(config.compare_tokenizer.resolve().parts[-2:]))] = (
            open_tokenizer(config.compare_tokenizer).vae.to(device).eval()
        )
    return Served(pipelines, tokenizers, _open_foundation(config, folders[0], device), config)


def _run_folder(folder: Path) -> Path:
    """The folder whose name describes a pipeline: its parent if it is called `pipeline`."""
    whole = find_pipeline(folder).resolve()
    return whole.parent if whole.name == PIPELINE_OF_A_RUN else whole


def _open_pipeline(folder: Path, name: str, device: torch.device) -> ServedPipeline:
    place = find_pipeline(folder)
    pipeline = open_pipeline(place).to(device)
    hashes = {part: weights_hash(place / part)[:12] for part in ("transformer", "tokenizer")}
    return ServedPipeline(name, pipeline, hashes, starting_settings(pipeline, _run_folder(folder)))


def starting_settings(pipeline: LightningDiTPipeline, folder: Path) -> SolverConfig:
    """The page's initial settings: those that `alight tune` recommends, else those of the run's own samples."""
    if pipeline.recommended_sampling:
        return SolverConfig.model_validate(pipeline.recommended_sampling)
    samples = folder / QUICKSTART_SAMPLES
    if not is_complete(samples):
        return SolverConfig()
    return SolverConfig.model_validate(read_artifact(samples, "samples").config["sampling"])


def _open_foundation(config: ServeConfig, folder: Path, device: torch.device) -> FoundationModel | None:
    name = config.foundation or recorded_foundation(folder)
    if name is None:
        log.info("No foundation model is recorded; --foundation NAME shows its features beside the latents.")
        return None
    return FoundationModel.from_pretrained(name).to(device)


def recorded_foundation(folder: Path) -> str | None:
    """The local foundation model that a pipeline's tokenizer was aligned with; None if none is known.

    It is in the folder of the run, or named in the record of the tokenizer, which is found by the hash of the
    weights. Names of hub models are ignored, because they would start a download.
    """
    place, run = find_pipeline(folder), _run_folder(folder)
    if is_complete(run / QUICKSTART_FOUNDATION):
        return str(run / QUICKSTART_FOUNDATION)
    record = records_of(Source(place / "tokenizer", place / "transformer", place, place.resolve().parent))["tokenizer"]
    name = record.facts.get("foundation")
    known = isinstance(name, str) and is_local_folder(name)
    return name if known else None


def is_local_folder(name: str) -> bool:
    """Tell if a name is the path of an existing folder."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # too long, or with a NUL
        return False
