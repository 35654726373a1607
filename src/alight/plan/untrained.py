"""Networks without their weights, and the shapes that they are built for: the clock needs no more of them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from transformers import AutoConfig, AutoModel, PreTrainedConfig, ViTConfig, ViTModel

from alight.config import FoundationModelConfig, TrainTransformerConfig
from alight.models.foundation import FoundationModel
from alight.models.foundation_catalogue import FoundationRow, find_row
from alight.models.lightning_dit import PRESETS, LightningDiT
from alight.runtime.errors import InputError

HEAD_WIDTH = 64  # of every published foundation model


class LatentShape(NamedTuple):
    """Latents as the transformer sees them.

    Attributes:
        shape: (C, h, w).
        num_classes: of their labels.
        feature_dim: width of the features that tokens are aligned with; None = they are not.
    """

    shape: tuple[int, ...]
    num_classes: int
    feature_dim: int | None = None


class TransformerShape(NamedTuple):
    """A transformer with random weights.

    Attributes:
        build: number of layers -> model.
        num_layers: that it really has.
        num_classes: of its labels.
        latent_side: of the latents that it makes.
    """

    build: Callable[[int], LightningDiT]
    num_layers: int
    num_classes: int
    latent_side: int


def untrained_foundation(name: str, input_mode: str) -> FoundationModel:
    """A foundation model without its weights: by the catalogue, else by its own configuration.

    Raises:
        InputError: its configuration is neither in a folder nor on the hub.
    """
    row = None if Path(name).is_dir() else find_row(name)
    try:
        config = AutoConfig.from_pretrained(name) if row is None else catalogued_config(row)
        backbone = AutoModel.from_config(getattr(config, "vision_config", config))
    except Exception as error:  # of the library, the hub or the network
        raise InputError(
            f"The size of the foundation model '{name}' is not known here ({' '.join(str(error).split())[:200]}). "
            "Give the recipe a folder with its config.json (train one first with 'alight foundation train'), or "
            "one of the short names such as dinov2-large."
        ) from error
    return FoundationModel(backbone, name=name, input_mode=input_mode)


def catalogued_config(row: FoundationRow) -> PreTrainedConfig:
    """The configuration of a catalogued model; its depth follows from its width, as in all of them."""
    return AutoConfig.for_model(
        row.family,
        hidden_size=row.feature_dim,
        num_hidden_layers=24 if row.feature_dim >= 1024 else 12,
        num_attention_heads=row.feature_dim // HEAD_WIDTH,
        intermediate_size=4 * row.feature_dim,
        patch_size=row.patch_size,
        image_size=row.native_size,
    )


def small_foundation(model: FoundationModelConfig, image_size: int, name: str, input_mode: str) -> FoundationModel:
    """The backbone that 'alight foundation train' makes, with random weights."""
    config = ViTConfig(
        image_size=image_size,
        patch_size=model.patch_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        intermediate_size=4 * model.hidden_size,
    )
    return FoundationModel(ViTModel(config, add_pooling_layer=False), name=name, input_mode=input_mode)


def num_layers(config: TrainTransformerConfig) -> int:
    """Blocks of the recipe's transformer."""
    return PRESETS[config.model.preset].num_layers if config.model.preset else config.model.num_layers or 0


def shallower(config: TrainTransformerConfig, layers: int) -> TrainTransformerConfig:
    """The same recipe for a model of another depth."""
    sizes = PRESETS[config.model.preset]._asdict() if config.model.preset else {}
    block = block_within(config.model.auxiliary_block, layers)
    model = config.model.model_copy(update={"preset": None, **sizes, "num_layers": layers, "auxiliary_block": block})
    aligned = config.representation.model_copy(update={"block": min(config.representation.block, layers)})
    return config.model_copy(update={"model": model, "representation": aligned})


def block_within(auxiliary_block: int | None, layers: int) -> int | None:
    """The block that an auxiliary output follows, in a model of that many layers."""
    return None if auxiliary_block is None else min(auxiliary_block, layers - 1)
