"""Guidance that a transformer cannot have, refused before any work starts."""

from alight.flow import GUIDANCES
from alight.models.lightning_dit import LightningDiT
from alight.options import GuidanceName, require_known
from alight.runtime.errors import InputError


def check_guidance(
    transformer: LightningDiT,
    scale: float,
    channels: int | None = None,
    guide: LightningDiT | None = None,
    guidance: GuidanceName | None = None,
    internal_scale: float = 1.0,
) -> None:
    """Refuse guidance that a transformer cannot have; the arguments are those of a pipeline's call.

    Raises:
        InputError: more channels than the latent has, no null class to guide with, a guide of another kind, or
            internal guidance of a transformer without an auxiliary output.
    """
    config = transformer.config
    if channels is not None and channels > config.in_channels:
        raise InputError(
            f"guidance_channels={channels}, but the latents have only {config.in_channels} channels. Give fewer, or "
            "none to guide all of them."
        )
    if internal_scale != 1:
        transformer.require_auxiliary_output()
    if guidance is not None:
        require_known(guidance, GUIDANCES, "guidance")
        if scale != 1 and (guidance == "autoguidance") != (guide is not None):
            raise InputError("Autoguidance and a guide belong together. Give both or neither.")
    if guide is None:
        if scale != 1 and guidance in (None, "classifier_free"):
            _ = transformer.null_label  # raises where there is none
        return
    kinds = [(model.config.num_classes, *latent_shape(model)) for model in (transformer, guide)]
    if kinds[0] != kinds[1]:
        own, other = (f"{classes} classes and latents of {shape}" for classes, *shape in kinds)
        raise InputError(
            f"The guide knows {other}, but the transformer that it guides {own}. Give a guide that was trained on the "
            "same latents."
        )


def latent_shape(transformer: LightningDiT) -> tuple[int, int, int]:
    """(C, h, w) of the latents that a transformer makes."""
    size = transformer.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return transformer.config.in_channels, height, width
