"""Tokenizers with their projections, and the networks that measure them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from alight.artifacts import PROJECTION_FILE, Artifact
from alight.config import EvaluateTokenizerConfig, MeasureTokenizerConfig
from alight.interop.tokenizer_sources import alignment_settings, open_tokenizer
from alight.models.foundation import FoundationModel
from alight.models.inception import InceptionV3
from alight.models.latent_projector import BlockProjector, LatentBlock
from alight.models.perceptual import LPIPS
from alight.models.tokenizer import Tokenizer
from alight.runtime.device import narrow_weights
from alight.runtime.errors import InputError
from alight.runtime.files import short_names


@dataclass(frozen=True)
class Projection:
    """The projector that a tokenizer was aligned through, and its settings.

    Attributes:
        weight: of the 1x1 convolution, (D, C, 1, 1) from latents to features, or (C, D, 1, 1) the other way round.
        foundation: the name of the model whose features are meant.
        settings: the alignment section of the configuration that trained it.
        block: that latents pass before the convolution, (B, C, h, w) to the same; None = none.
    """

    weight: Tensor
    foundation: str
    settings: dict[str, Any]
    block: LatentBlock | None = None

    @property
    def to_features(self) -> bool:
        """True if it maps latents to features."""
        return self.settings.get("projection", "to_features") == "to_features"


@dataclass(frozen=True)
class EvaluatedTokenizer:
    """A tokenizer that is to be measured.

    Attributes:
        name: short, and another one than those of the other tokenizers.
        vae: the model.
        artifact: its identity.
        projection: that it was aligned through, if it was and the file is there.
    """

    name: str
    vae: Tokenizer
    artifact: Artifact
    projection: Projection | None

    @property
    def shape(self) -> str:
        """Such as f16d32: downsampling factor and latent channels."""
        return f"f{self.vae.downsampling_factor}d{self.vae.config.latent_channels}"

    def in_bf16(self) -> "EvaluatedTokenizer":
        """The same tokenizer with weights in bf16, under another name; the time of its training counts once."""
        vae = copy.deepcopy(self.vae)
        narrow_weights(vae, "bf16")
        return replace(self, name=f"{self.name} in bf16", vae=vae, artifact=replace(self.artifact, seconds=0.0))


@dataclass(frozen=True)
class MetricNetworks:
    """The networks that measure; None leaves its measures out."""

    lpips: LPIPS | None = None
    inception: InceptionV3 | None = None
    foundation: FoundationModel | None = None
    observer: FoundationModel | None = None

    def to(self, device: torch.device) -> "MetricNetworks":
        """The same networks on a device."""
        for network in (self.lpips, self.inception, self.foundation, self.observer):
            if network is not None:
                network.to(device)
        return self


def open_evaluated(sources: Sequence[Path]) -> list[EvaluatedTokenizer]:
    """Open tokenizers, on the CPU.

    Raises:
        InputError: one of them cannot be used, or is given twice.
    """
    if twice := {str(source) for source in sources if list(sources).count(source) > 1}:
        raise InputError(f"{min(twice)} would be compared with itself; give each tokenizer once.")
    tokenizers = []
    for source, name in zip(sources, short_names(sources), strict=True):
        vae, artifact = open_tokenizer(source)
        tokenizers.append(EvaluatedTokenizer(name, vae, artifact, _projection(artifact)))
    return tokenizers


def open_metric_networks(
    config: MeasureTokenizerConfig, tokenizers: Sequence[EvaluatedTokenizer]
) -> tuple[MetricNetworks, list[str]]:
    """Open the networks that the configuration asks for, on the CPU.

    Returns:
        The networks, and a note on each that was not asked for by name and is not available.

    Raises:
        InputError: a file is missing or damaged, or a foundation model that was asked for cannot be loaded.
    """
    lpips = inception = observer = None
    if config.vgg16_weights and config.lpips_weights:
        lpips = LPIPS.from_files(config.vgg16_weights, config.lpips_weights)
    if isinstance(config, EvaluateTokenizerConfig) and config.inception_weights:
        inception = InceptionV3.from_file(config.inception_weights).eval()
    if isinstance(config, EvaluateTokenizerConfig) and config.observer:
        observer = FoundationModel.from_pretrained(config.observer).eval()
    foundation, notes = _open_foundation(config.foundation, tokenizers)
    return MetricNetworks(lpips, inception, foundation, observer), notes


def applicable_projection(tokenizer: EvaluatedTokenizer, foundation: FoundationModel) -> Projection | None:
    """The tokenizer's projection, if it belongs to this foundation model and to the layers that are summed.

    Raises:
        InputError: it does by its name, but its dimensions are others.
    """
    projection = tokenizer.projection
    if projection is None or not _same_model(projection.foundation, foundation.name):
        return None
    if tuple(projection.settings.get("layers") or ()) != (foundation.layers or ()):
        return None
    expected = (foundation.feature_dim, tokenizer.vae.config.latent_channels)
    found = tuple(projection.weight.shape[:2] if projection.to_features else projection.weight.shape[1::-1])
    if found != expected:
        raise InputError(
            f"The projection in {tokenizer.artifact.path} joins latents of {found[1]} channels with features of "
            f"{found[0]}, but this tokenizer has {expected[1]} channels and the foundation model {foundation.name} "
            f"{expected[0]} features. Give the model that it was aligned with (--foundation), or remove "
            f"{PROJECTION_FILE} to do without."
        )
    return projection


def _projection(artifact: Artifact) -> Projection | None:
    name, file = artifact.facts.get("foundation"), artifact.path / PROJECTION_FILE
    if name is None or not file.is_file():
        return None
    try:
        return _open_projection(load_file(file), str(name), alignment_settings(artifact))
    except Exception as error:
        raise InputError(
            f"{file} cannot be read ({' '.join(str(error).split())[:200]}). Restore it, or remove it to measure the "
            "tokenizer without its projection."
        ) from error


def _open_projection(weights: dict[str, Tensor], foundation: str, settings: dict[str, Any]) -> Projection:
    if settings.get("projector", "linear") == "linear":
        return Projection(weights["weight"], foundation, settings)
    width, channels = weights["linear.weight"].shape[:2]
    projector = BlockProjector(channels, width, settings["projector_width"])
    projector.load_state_dict(weights)
    projector.requires_grad_(False)
    return Projection(projector.linear.weight, foundation, settings, projector.block)


def _open_foundation(
    name: str | None, tokenizers: Sequence[EvaluatedTokenizer]
) -> tuple[FoundationModel | None, list[str]]:
    """The model that is named, with its own output; else that of the first projection, with the layers of it."""
    aligned = [tokenizer.projection for tokenizer in tokenizers if tokenizer.projection is not None]
    if name is not None:  # one measure for all, so that tokenizers compare that were aligned with different layers
        inputs = {projection.foundation: projection.settings["foundation_input"] for projection in aligned}
        mode = next((mode for known, mode in inputs.items() if _same_model(known, name)), "own")
        return FoundationModel.from_pretrained(name, mode), []
    if not aligned:
        return None, []
    name, settings = aligned[0].foundation, aligned[0].settings
    try:
        foundation = FoundationModel.from_pretrained(name, settings["foundation_input"])
        return foundation.with_layers(settings.get("layers")), []
    except InputError as error:
        return None, [f"The alignment was not measured. {error}"]


def _same_model(one: str, other: str) -> bool:
    """Tell if two names mean the same model; a folder may have moved since."""
    return Path(one).name == Path(other).name
