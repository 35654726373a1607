"""Guidance that a transformer cannot have, refused before any work starts."""

from alight.flow import GUIDANCES
from alight.flow.guidance import require_trained_guidance
from alight.models.lightning_dit import LightningDiT
from alight.options import MEAN_SOLVER, GuidanceName, require_known
from alight.runtime.errors import InputError


def check_guidance(
    transformer: LightningDiT,
    scale: float,
    channels: int | None = None,
    guide: LightningDiT | None = None,
    guidance: GuidanceName | None = None,
    internal_scale: float = 1.0,
    trained_scale: float | None = None,
) -> None:
    """Refuse guidance that a transformer cannot have; the arguments are those of a pipeline's call.

    A transformer whose training took part in guidance, at `trained_scale`, has it already.

    Raises:
        InputError: more channels than the latent has, no null class to guide with, a guide of another kind,
            guidance that is trained in, or internal guidance of a transformer without an auxiliary output.
    """
    config = transformer.config
    if scale != 1 and trained_scale is not None:
        raise InputError(
            f"This transformer was trained to average velocities with guidance of scale {trained_scale:g} in them, so "
            "guiding it again would count twice. Set guidance_scale to 1."
        )
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


def check_solver(transformer: LightningDiT, solver: str, *scales: float) -> None:
    """Refuse the solver `mean` for a transformer without average velocities, or with guidance of these scales.

    Raises:
        InputError: says what to choose instead.
    """
    if solver == MEAN_SOLVER:
        transformer.require_interval_embedding()
        require_trained_guidance(*scales)


def latent_shape(transformer: LightningDiT) -> tuple[int, int, int]:
    """(C, h, w) of the latents that a transformer makes."""
    size = transformer.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return transformer.config.in_channels, height, width
