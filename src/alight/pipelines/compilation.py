"""Compiled networks of a pipeline, where that is wanted or pays."""

from typing import TypeVar

from alight.config import DrawConfig
from alight.device_settings import SAMPLED, with_compilation
from alight.models.lightning_dit import LightningDiT
from alight.pipelines.lightning_dit import LightningDiTPipeline
from alight.runtime.device import compile_blocks

Draw = TypeVar("Draw", bound=DrawConfig)


def compile_pipeline(
    pipeline: LightningDiTPipeline, draw: Draw, images: int, guide: LightningDiT | None = None
) -> Draw:
    """Compile the blocks of transformer, guide and tokenizer as far as a configuration wants it.

    Args:
        pipeline: on its device.
        draw: of the images; its `compile` may be `auto`.
        images: that this process makes.
        guide: a weaker transformer, if there is one.

    Returns:
        The configuration with what was decided.
    """
    draw = with_compilation(draw, pipeline.device, images, SAMPLED)
    if draw.compile:
        for model in (pipeline.transformer, guide):
            compile_blocks([] if model is None else model.all_blocks)
        compile_blocks(pipeline.tokenizer.blocks, fixed_size=True)
    return draw
