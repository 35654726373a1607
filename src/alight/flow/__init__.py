"""Flow matching: paths from noise to data, training times and objective, guidance, and the solvers that sample."""

from alight.flow.diffusion import DiffusionForm, diffusion_coefficient
from alight.flow.guidance import AutoGuidance, ClassifierFreeGuidance, Guidance, GuidedVelocity
from alight.flow.interval import TimeInterval, default_eps, time_interval
from alight.flow.likelihood import LogLikelihood, log_likelihood, standard_normal_log_density
from alight.flow.objective import FlowMatchingLoss, LossWeight, flow_matching_loss
from alight.flow.path import PATHS, GVPPath, LinearPath, Path, PathSample, VPPath
from alight.flow.predictions import Prediction, VelocityField, to_data, to_noise, to_score, to_velocity
from alight.flow.sde import LastStep, SDEMethod, SDESolution, solve_sde
from alight.flow.solvers import SOLVERS, ODESolution, euler, solve_ode
from alight.flow.timesteps import (
    TimeDistribution,
    dimension_aware_shift,
    sample_timesteps,
    shift_timesteps,
    time_grid,
)

__all__ = [
    "PATHS",
    "SOLVERS",
    "DiffusionForm",
    "FlowMatchingLoss",
    "GVPPath",
    "AutoGuidance",
    "ClassifierFreeGuidance",
    "Guidance",
    "GuidedVelocity",
    "LastStep",
    "LinearPath",
    "LogLikelihood",
    "LossWeight",
    "ODESolution",
    "Path",
    "PathSample",
    "Prediction",
    "SDEMethod",
    "SDESolution",
    "TimeDistribution",
    "TimeInterval",
    "VPPath",
    "VelocityField",
    "default_eps",
    "diffusion_coefficient",
    "dimension_aware_shift",
    "euler",
    "flow_matching_loss",
    "log_likelihood",
    "sample_timesteps",
    "shift_timesteps",
    "solve_ode",
    "solve_sde",
    "standard_normal_log_density",
    "time_grid",
    "time_interval",
    "to_data",
    "to_noise",
    "to_score",
    "to_velocity",
]
