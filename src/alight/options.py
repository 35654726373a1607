"""The vocabulary of every option that is a name, in one place and without torch, and suggestions for misspelt names.

Configuration, flow, models and data take their names from here. A table such as `flow.solvers.FIXED_STEP` holds what a
name stands for; a test compares both.
"""

import difflib
from collections.abc import Iterable
from typing import Any, Literal, get_args

from alight.runtime.errors import InputError

# --- images and latents -------------------------------------------------------------------------------------------
EMBEDDED = ("digits", "photographs")  # images that come with the package, and with held-out ones of their own
Split = Literal["train", "held_out", "all"]
Crop = Literal["center", "random", "pad"]
Posterior = Literal["sample", "mode"]
StoredPosterior = Literal["sample", "mode", "moments"]
MeterFigure = Literal[  # of latents: how easily will they be generated?
    "ambiguity_bound",
    "whole_ambiguity_bound",
    "posterior_ambiguity",
    "probe_loss",
    "density_cv",
    "density_gini",
    "density_entropy",
    "decoder_drift",
    "neighbour_accuracy",
    "gram_agreement",
    "midpoint_distance",
]
StoredDtype = Literal["fp32", "fp16", "bf16"]
LabelProtocol = Literal["balanced", "random"]

# --- networks and training ----------------------------------------------------------------------------------------
Norm = Literal["rms_norm", "layer_norm"]
FeedForwardKind = Literal["swiglu", "gelu"]
PositionResize = Literal["interpolate", "extrapolate"]
Reduction = Literal["sum", "mean"]
AUTO = "auto"  # a setting that is left to the device, see `device_settings`
Precision = Literal["auto", "fp32", "bf16"]
FixedPrecision = Literal["fp32", "bf16"]
Compilation = bool | Literal["auto"]
OptimizerName = Literal["adamw", "muon"]
MuonMatrices = Literal["blocks", "all"]
MuonStepSize = Literal["match_rms", "original", "product"]
ParameterKind = Literal["matrices", "vectors"]
Schedule = Literal["constant", "cosine", "linear"]
Sharding = Literal["replicate", "shard"]
OnNonFinite = Literal["stop", "skip", "rollback"]
Projection = Literal["to_features", "to_latent", "components"]
LatentProjectorKind = Literal["linear", "block"]
LatentSpace = Literal["gaussian", "sphere"]
NoiseLaw = Literal["uniform", "normal"]
TokenProjectorKind = Literal["mlp", "conv"]
DistanceOn = Literal["projected", "latent"]
AdversarialLoss = Literal["hinge", "vanilla"]
FeatureNormalisation = Literal["position", "channel"]
InitialEncoder = Literal["random", "principal_components"]

AcceleratorPart = Literal[
    "ceilings", "training", "processes", "sampling", "autoencoder", "tokenizer", "extraction", "agreement", "attention"
]

# --- flow ---------------------------------------------------------------------------------------------------------
PathName = Literal["linear", "gvp", "vp"]
Prediction = Literal["velocity", "noise", "score"]
Objective = Literal["velocity", "average_velocity"]
LossWeight = Literal["none", "velocity", "likelihood"]
TimeDistribution = Literal["logit_normal", "uniform"]
GuidanceName = Literal["classifier_free", "autoguidance"]
DiffusionForm = Literal["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"]
SDEMethod = Literal["euler", "heun"]
LastStep = Literal["mean", "tweedie", "euler"]

ADAPTIVE_SOLVERS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "explicit_adams", "implicit_adams")
ODE_SOLVERS = ("euler", "midpoint", "heun2", "heun3", "rk4", "rk4_classic", "heun", "ab2", "ucgm", *ADAPTIVE_SOLVERS)
PUBLISHED_KAPPA, PUBLISHED_WARP = 0.5, (1.17, 0.8, 1.1)  # of ucgm, for LightningDiT
MEAN_SOLVER = "mean"  # by average velocities, which few models predict
SDE_SOLVERS = tuple(f"sde_{method}" for method in get_args(SDEMethod))


def names_of(vocabulary: Any) -> tuple[str, ...]:
    """The names of a vocabulary above."""
    return get_args(vocabulary)


def require_known(name: Any, known: Iterable[str], kind: str) -> None:
    """Refuse a name that is not known, and suggest the nearest.

    Raises:
        InputError: `name` is not known.
    """
    known = list(known)
    if name in known:
        return
    given = " ".join(repr(name).split())
    raise InputError(f"Unknown {kind} {given:.80}.{suggestion(str(name), known)} Choose one of: {', '.join(known)}.")


def require_solver(name: str) -> None:
    """Refuse a solver that does not exist.

    Raises:
        InputError: suggests the nearest and lists all.
    """
    require_known(name, (*ODE_SOLVERS, *SDE_SOLVERS, MEAN_SOLVER), "solver")


def suggestion(name: str, known: Iterable[str], cutoff: float = 0.4) -> str:
    """' Did you mean ...?' with the nearest of the known names, or nothing.

    Args:
        name: that was given; a very long one is not compared, which would take long and find nothing.
        known: the names that exist.
        cutoff: the least similarity, in [0, 1].
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff) if len(name) <= 80 else []
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
