"""Flow matching: paths from noise to data, training times and objective, guidance, and the solvers that sample."""

from alight.flow.average_velocity import (
    AverageVelocityLoss,
    average_velocity_loss,
    average_velocity_target,
    solve_mean,
)
from alight.flow.diffusion import diffusion_coefficient
from alight.flow.extrapolation import history_extrapolation
from alight.flow.guidance import GUIDANCES, AutoGuidance, ClassifierFreeGuidance, Guidance, GuidedVelocity
from alight.flow.internal_guidance import InternalGuidance
from alight.flow.interval import TimeInterval, default_eps, time_interval
from alight.flow.likelihood import LogLikelihood, log_likelihood, standard_normal_log_density
from alight.flow.objective import FlowMatchingLoss, flow_matching_loss
from alight.flow.path import PATHS, GVPPath, LinearPath, Path, PathSample, VPPath
from alight.flow.predictions import VelocityField, to_data, to_noise, to_score, to_velocity
from alight.flow.sampling import SolverOptions, SolverSettings, sample
from alight.flow.sde import SDESolution, solve_sde
from alight.flow.solvers import SOLVERS, ODESolution, euler, solve_ode
from alight.flow.timesteps import (
    dimension_aware_shift,
    kumaraswamy_grid,
    resolve_shift,
    sample_timesteps,
    shift_timesteps,
    time_grid,
)
from alight.options import DiffusionForm, LastStep, LossWeight, Prediction, SDEMethod, TimeDistribution

__all__ = [
    "GUIDANCES",
    "PATHS",
    "SOLVERS",
    "DiffusionForm",
    "FlowMatchingLoss",
    "GVPPath",
    "AutoGuidance",
    "AverageVelocityLoss",
    "ClassifierFreeGuidance",
    "Guidance",
    "GuidedVelocity",
    "InternalGuidance",
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
    "SolverOptions",
    "SolverSettings",
    "TimeDistribution",
    "TimeInterval",
    "VPPath",
    "VelocityField",
    "average_velocity_loss",
    "average_velocity_target",
    "default_eps",
    "diffusion_coefficient",
    "dimension_aware_shift",
    "euler",
    "flow_matching_loss",
    "history_extrapolation",
    "kumaraswamy_grid",
    "log_likelihood",
    "resolve_shift",
    "sample",
    "sample_timesteps",
    "shift_timesteps",
    "solve_mean",
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
