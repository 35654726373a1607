"""Keys that later versions added, with the values that earlier ones had built in, so that their folders still open."""

from __future__ import annotations

from typing import Any

from alight.config.latents import FeaturesConfig
from alight.config.tokenizer import FrozenEncoderConfig
from alight.config.training import MuonConfig
from alight.config.transformer import AverageVelocityConfig, RepresentationConfig, WideHeadConfig

_SECTIONS = {  # whole sections; their defaults are what was built in
    "optimizer.muon": MuonConfig,
    "flow.average_velocity": AverageVelocityConfig,
    "features": FeaturesConfig,
    "model.head": WideHeadConfig,
    "representation": RepresentationConfig,
    "frozen_encoder": FrozenEncoderConfig,
}

LATER_KEYS: dict[str, Any] = {
    **{name: section().model_dump(mode="json") for name, section in _SECTIONS.items()},
    # images
    "images.background": "white",
    # tokenizers
    "model.initial_encoder": "random",
    "model.latent_space": "gaussian",
    "regularisation.noise_law": "uniform",
    "regularisation.continuity_weight": 0.0,
    "regularisation.continuity_angles": [42.5, 85.0],
    "alignment.gram_weight": 0.0,
    "alignment.pooled_weight": 0.0,
    "alignment.patch_weight": 0.0,
    "alignment.projector": "linear",
    "alignment.projector_width": 256,
    "alignment.latent_noise": 0.0,
    "alignment.layers": None,
    "tokenizer_weights": "fp32",
    "also_in_bf16": False,
    "geometry": False,
    # transformers
    "optimizer.name": "adamw",
    "flow.objective": "velocity",
    "flow.auxiliary_weight": 0.5,
    "auxiliary_block": None,
    "interval_embedding": False,
    "first_time": 0.0,
    "training.power_averages": None,
    "training.snapshot_every": None,
    "save_at": [],
    # sampling
    "sampling.time_warp": None,
    "sampling.kappa": 0.5,
    "sampling.last_step_size": 0.04,
    "sampling.internal_scale": 1.0,
    "sampling.internal_interval": None,
    "last_time": 1.0,
    "guide_checkpoint": None,
    "average": None,
    # reports, searches and studies
    "grid_classes": 50,
    "shown_classes": 50,
    "time_warps": [None],
    "kappas": [0.5],
    "internal_scales": [1.0],
    "internal_intervals": [[0.0, 1.0]],
    "averages_of": None,
    "averages": [],
    "within": 0.0,
    "equal_time": False,
}


def as_before(key: str, value: Any) -> bool:
    """Tell if a dotted key of a later version has the value that earlier versions had built in, or one as good."""
    return any(f".{key}".endswith(f".{added}") and value == built_in for added, built_in in LATER_KEYS.items())
