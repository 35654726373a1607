"""Scores: images come as batches, networks as arguments, and every number carries its conditions."""

from alight.metrics.features import ColourPixels, FeatureExtractor, GreyPixels, ModelFeatures, feature_statistics
from alight.metrics.frechet import FeatureStatistics, FrechetDistance, frechet_distance
from alight.metrics.generation import GenerationMetrics, GenerationScores
from alight.metrics.inception_score import ClassProbabilities, InceptionScore
from alight.metrics.inception_set import InceptionScores, InceptionSet, inception_scores
from alight.metrics.kernel_distance import KernelDistance, kernel_distance
from alight.metrics.label_accuracy import DigitClassifier, LabelAccuracy, LabelClassifier
from alight.metrics.manifold import DensityCoverage, PrecisionRecall, authenticity, density_coverage, precision_recall
from alight.metrics.reconstruction import ReconstructionMetrics, ReconstructionScores, image_scores, psnr, ssim
from alight.metrics.reference import Reference, read_images, read_reference
from alight.metrics.ridge import RidgeRegression

__all__ = [
    "ColourPixels",
    "ClassProbabilities",
    "DensityCoverage",
    "DigitClassifier",
    "FeatureExtractor",
    "FeatureStatistics",
    "FrechetDistance",
    "GenerationMetrics",
    "GenerationScores",
    "GreyPixels",
    "InceptionScore",
    "InceptionScores",
    "InceptionSet",
    "KernelDistance",
    "LabelAccuracy",
    "ModelFeatures",
    "PrecisionRecall",
    "ReconstructionMetrics",
    "ReconstructionScores",
    "Reference",
    "RidgeRegression",
    "LabelClassifier",
    "authenticity",
    "density_coverage",
    "feature_statistics",
    "frechet_distance",
    "image_scores",
    "inception_scores",
    "kernel_distance",
    "precision_recall",
    "psnr",
    "read_images",
    "read_reference",
    "ssim",
]
