"""Typed, strict configuration of every command, one file per subject, and the recipes that fill it.

One class per command, one default per value, and no value that two classes both own. Contradictions are refused here,
before any work starts.
"""

from alight.config.base import ImagesConfig, Job, Section
from alight.config.evaluation import (
    EvaluateConfig,
    EvaluateReferenceConfig,
    EvaluateTokenizerConfig,
    FeatureNetworksConfig,
    MeasureTokenizerConfig,
)
from alight.config.latents import ExtractLatentsConfig, FeaturesConfig, InspectLatentsConfig
from alight.config.sampling import DrawConfig, SampleConfig, SolverConfig
from alight.config.studies import (
    AblationStudyConfig,
    AlignmentStudyConfig,
    FrontierStudyConfig,
    GridStudyConfig,
    QuickstartConfig,
    StartConfig,
)
from alight.config.tokenizer import (
    AlignmentConfig,
    FoundationModelConfig,
    FrozenEncoderConfig,
    LatentRegularisationConfig,
    ReconstructionConfig,
    TokenizerModelConfig,
    TokenizerPhaseConfig,
    TrainFoundationConfig,
    TrainTokenizerConfig,
)
from alight.config.tools import (
    AverageConfig,
    BenchAcceleratorConfig,
    BenchConfig,
    ConvertConfig,
    DoctorConfig,
    ExportConfig,
    InfoConfig,
    InfoImagesConfig,
    PlanConfig,
    ReportConfig,
    ServeConfig,
    TuneConfig,
)
from alight.config.training import MuonConfig, OptimizerConfig, TrainingConfig, TransformerTrainingConfig
from alight.config.transformer import (
    AverageVelocityConfig,
    FlowConfig,
    RepresentationConfig,
    TrainTransformerConfig,
    TransformerModelConfig,
)

LATER_SECTIONS = {  # which earlier versions lacked; their defaults are what those had built in
    "optimizer.muon": MuonConfig,
    "flow.average_velocity": AverageVelocityConfig,
    "features": FeaturesConfig,
    "representation": RepresentationConfig,
    "frozen_encoder": FrozenEncoderConfig,
}

__all__ = [
    "AverageVelocityConfig",
    "AlignmentConfig",
    "AverageConfig",
    "BenchAcceleratorConfig",
    "BenchConfig",
    "ConvertConfig",
    "DoctorConfig",
    "DrawConfig",
    "EvaluateConfig",
    "EvaluateReferenceConfig",
    "EvaluateTokenizerConfig",
    "ExportConfig",
    "ExtractLatentsConfig",
    "FeatureNetworksConfig",
    "FeaturesConfig",
    "FlowConfig",
    "FoundationModelConfig",
    "ImagesConfig",
    "InfoConfig",
    "InfoImagesConfig",
    "InspectLatentsConfig",
    "Job",
    "LATER_SECTIONS",
    "LatentRegularisationConfig",
    "MeasureTokenizerConfig",
    "MuonConfig",
    "OptimizerConfig",
    "PlanConfig",
    "QuickstartConfig",
    "ReconstructionConfig",
    "ReportConfig",
    "RepresentationConfig",
    "SampleConfig",
    "Section",
    "ServeConfig",
    "SolverConfig",
    "StartConfig",
    "TokenizerModelConfig",
    "TokenizerPhaseConfig",
    "AblationStudyConfig",
    "AlignmentStudyConfig",
    "FrontierStudyConfig",
    "FrozenEncoderConfig",
    "GridStudyConfig",
    "TrainFoundationConfig",
    "TrainTokenizerConfig",
    "TrainTransformerConfig",
    "TrainingConfig",
    "TransformerModelConfig",
    "TransformerTrainingConfig",
    "TuneConfig",
]
