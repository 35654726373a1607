"""Faults of an alignment that a recipe shows before anything is trained, where it trains its own foundation model."""

from __future__ import annotations

from alight.config import TrainFoundationConfig, TrainTokenizerConfig
from alight.runtime.errors import InputError
from alight.runtime.units import numbers_to


def require_fit(tokenizer: TrainTokenizerConfig, foundation: TrainFoundationConfig, whose: str) -> None:
    """Refuse an alignment that asks for more than the foundation model beside it is going to have.

    Args:
        tokenizer: of which only the name of its foundation model may be another one.
        foundation: the job that trains the model.
        whose: the recipe or setting, for the message.

    Raises:
        InputError: it asks for a layer that will not be there, or for more components than features.
    """
    if tokenizer.aligning_foundation is None:
        return
    alignment, size = tokenizer.alignment, foundation.model
    if beyond := [number for number in alignment.layers or () if number > size.num_layers]:
        raise InputError(
            f"{whose} asks in tokenizer.alignment.layers for layer {beyond[0]} of the foundation model, which is "
            f"going to have {size.num_layers} (foundation.model.num_layers). Give {numbers_to(size.num_layers)}."
        )
    channels = tokenizer.model.latent_channels
    if alignment.projection == "components" and tokenizer.init_from is None and channels > size.hidden_size:
        raise InputError(
            f"{whose} asks in tokenizer.alignment.projection for {channels} components, as many as the latent has "
            f"channels, but the features of the foundation model are going to be {size.hidden_size} wide "
            "(foundation.model.hidden_size). Give the latent fewer channels, or set projection to to_features."
        )
