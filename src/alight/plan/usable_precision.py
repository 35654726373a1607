"""A recipe in a precision that this machine computes in: bf16 on a processor without it would take a hundred times as
long, also to measure.
"""

from __future__ import annotations

from typing import TypeVar

import torch

from alight.config.base import Section
from alight.runtime.console import log
from alight.runtime.device import bf16_advantage

Config = TypeVar("Config", bound=Section)


def in_usable_precision(recipe: Config, device: torch.device) -> Config:
    """The recipe in fp32, with a warning, where the device is slower in the bf16 that it asks for; else the recipe."""
    in_fp32 = without_bf16(recipe)
    if in_fp32 == recipe or (advantage := bf16_advantage(device)) >= 1:
        return recipe
    log.warning(
        "plan: %s multiplies matrices %.3g times as slowly in bf16 as in fp32, so the recipe is planned in fp32. Set "
        "precision to fp32, too, where it is used here.",
        "this CPU" if device.type == "cpu" else device,
        1 / advantage,
    )
    return in_fp32


def without_bf16(config: Config) -> Config:
    """The configuration with every precision of bf16 turned to fp32, in all sections."""
    changed: dict[str, object] = {}
    for name, value in config:
        if isinstance(value, Section):
            changed[name] = without_bf16(value)
        elif name == "precision" and value == "bf16":
            changed[name] = "fp32"
    return config.model_copy(update=changed)
