"""The configuration of studies, which join many stages into one report."""

from __future__ import annotations

from pathlib import Path

from alight.config.base import Job
from alight.config.evaluation import EvaluateConfig, EvaluateTokenizerConfig
from alight.config.latents import ExtractLatentsConfig
from alight.config.sampling import SampleConfig
from alight.config.tokenizer import TrainFoundationConfig, TrainTokenizerConfig
from alight.config.transformer import TrainTransformerConfig


class QuickstartConfig(Job):
    """The whole arrow on the embedded digits: foundation, tokenizer, latents, transformer, samples, report."""

    output: Path = Path("runs/quickstart")
    foundation: TrainFoundationConfig = TrainFoundationConfig()
    tokenizer: TrainTokenizerConfig = TrainTokenizerConfig()
    latents: ExtractLatentsConfig = ExtractLatentsConfig()
    transformer: TrainTransformerConfig = TrainTransformerConfig()
    samples: SampleConfig = SampleConfig()
    report: EvaluateConfig = EvaluateConfig()


class AlignmentStudyConfig(Job):
    """A plain and an aligned tokenizer with the same seed and budget, side by side in one report."""

    output: Path = Path("runs/study")
    foundation: TrainFoundationConfig = TrainFoundationConfig()
    tokenizer: TrainTokenizerConfig = TrainTokenizerConfig()  # the aligned one; the plain one differs in nothing else
    report: EvaluateTokenizerConfig = EvaluateTokenizerConfig()
