"""Scores: images come as batches, networks as arguments, and every number carries its conditions."""

from alight.metrics.features import FeatureExtractor, GreyPixels, ModelFeatures, feature_statistics
from alight.metrics.frechet import FeatureStatistics, FrechetDistance, frechet_distance
from alight.metrics.generation import GenerationMetrics, GenerationScores
from alight.metrics.label_accuracy import DigitJudge, LabelAccuracy, SVCJudge
from alight.metrics.reconstruction import ReconstructionMetrics, ReconstructionScores, psnr, ssim

__all__ = [
    "DigitJudge",
    "FeatureExtractor",
    "FeatureStatistics",
    "FrechetDistance",
    "GenerationMetrics",
    "GenerationScores",
    "GreyPixels",
    "LabelAccuracy",
    "ModelFeatures",
    "ReconstructionMetrics",
    "ReconstructionScores",
    "SVCJudge",
    "feature_statistics",
    "frechet_distance",
    "psnr",
    "ssim",
]
