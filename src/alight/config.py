"""Typed, strict configuration of every stage.

One class per job, one default per value, and no value that two classes both own. What is contradictory is refused
here, before any work starts. `recipes.py` fills these classes from YAML files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from alight.config_generation import (  # noqa: F401 (every configuration can be had from here)
    DrawConfig,
    EvaluateConfig,
    EvaluateReferenceConfig,
    FeatureNetworksConfig,
    SampleConfig,
    SolverConfig,
    TuneConfig,
)
from alight.config_parts import (
    Depth,
    Fraction,
    ImagesConfig,
    Job,
    NonNegative,
    NonNegativeReal,
    OptimizerConfig,
    Positive,
    PositiveReal,
    Section,
    Seed,
    Size,
    TrainingConfig,
)
from alight.config_tokenizer import (  # noqa: F401 (every configuration can be had from here)
    AlignmentConfig,
    EvaluateTokenizerConfig,
    FoundationModelConfig,
    LatentRegularisationConfig,
    MeasureTokenizerConfig,
    ReconstructionConfig,
    TokenizerModelConfig,
    TokenizerStageConfig,
    TokenizerStudyConfig,
    TrainFoundationConfig,
    TrainTokenizerConfig,
)
from alight.config_tools import (
    BenchConfig,
    DoctorConfig,
    ExportConfig,
    InfoConfig,
    PlanConfig,
    ReportConfig,
    ServeConfig,
)

# --- latents ------------------------------------------------------------------------------------------------------


class ExtractLatentsConfig(Job):
    """Encode images once, so that the transformer trains on latents."""

    output: Path = Path("runs/latents")
    tokenizer: Path = Path("runs/tokenizer")
    images: ImagesConfig = ImagesConfig()
    flips: bool = True  # also encode each mirrored image
    posterior: Literal["sample", "mode", "moments"] = "sample"  # published: sample; moments: drawn anew when read
    statistics: Literal["tokenizer", "data"] = "tokenizer"  # whose mean and std normalise the latents
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"  # of the stored latents
    precision: Literal["fp32", "bf16"] = "fp32"  # of the encoder; bf16 = autocast, faster and good to two digits
    batch_size: Positive = 64  # images at a time, each with its mirror image
    shard_size: Positive = 10_000  # images per file; what an interruption may cost, and what processes share


class InspectLatentsConfig(Section):
    """Check a folder of latents to the last bit, and show what is in it."""

    latents: Path = Path("runs/latents")
    output: Path | None = None  # a folder for a report with plots; None = the terminal alone
    density_runs: NonNegative = 0  # t-SNE maps that the density figures are averaged over, 10 in the paper; 0 = none
    seed: Seed = 0  # of the positions and maps that are drawn


# --- transformer --------------------------------------------------------------------------------------------------


class TransformerModelConfig(Section):
    """LightningDiT by preset or by its four sizes; everything else is the paper's final architecture."""

    preset: str | None = "LightningDiT-B/1"  # None = the four sizes below, all given
    hidden_size: Size | None = None
    num_layers: Depth | None = None
    num_heads: Size | None = None
    patch_size: Size | None = None
    mlp_ratio: PositiveReal = 4.0
    class_dropout_prob: Fraction = 0.1  # share of labels replaced by the null class while training
    qk_norm: bool = False  # steadier for very long runs, at some cost in FID
    norm: Literal["rms_norm", "layer_norm"] = "rms_norm"
    feed_forward: Literal["swiglu", "gelu"] = "swiglu"
    rope: bool = True  # rotary positions, beside the sin-cos ones
    adaln_shift: bool = True  # modulate by shift and scale, or by scale alone

    @model_validator(mode="after")
    def _preset_or_sizes(self) -> Self:
        names = ("hidden_size", "num_layers", "num_heads", "patch_size")
        given = [name for name in names if getattr(self, name) is not None]
        if self.preset and given:
            raise ValueError(
                f"preset {self.preset} already sets {', '.join(given)}; set preset to null to choose sizes"
            )
        if not self.preset and len(given) < len(names):
            raise ValueError(f"without a preset, give {', '.join(name for name in names if name not in given)} too")
        if self.hidden_size and self.num_heads and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        return self


class FlowConfig(Section):
    """The flow (paper, section 4): path and prediction, how time is drawn, and what the loss is.

    The defaults are rectified flow as the paper trains it; the others are its ablations and relatives.
    """

    path: Literal["linear", "gvp", "vp"] = "linear"
    prediction: Literal["velocity", "noise", "score"] = "velocity"
    loss_weight: Literal["none", "velocity", "likelihood"] = "none"  # of noise and score predictions
    time_sampling: Literal["logit_normal", "uniform"] = "logit_normal"
    uniform_from_step: NonNegative | None = None  # draw time uniformly from this step on, as the 800-epoch recipe does
    timestep_shift: PositiveReal | None = None  # warp of the training times; below 1 looks more often at noise
    logit_normal_mean: float = 0.0
    logit_normal_std: PositiveReal = 1.0
    cosine_weight: NonNegativeReal = 1.0  # of the velocity direction loss


class TrainTransformerConfig(Job):
    """Train LightningDiT on latents with rectified flow."""

    output: Path = Path("runs/transformer")
    latents: Path = Path("runs/latents")
    model: TransformerModelConfig = TransformerModelConfig()
    flow: FlowConfig = FlowConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    samples_every: Positive | None = None  # steps between grids of samples, drawn beside the log; None = none
    sample_images: Positive = 16  # so many in a grid, of the same noise and classes every time
    samples_tokenizer: Path | None = None  # decodes them; None = the folder that the latents were made with


class QuickstartConfig(Job):
    """The whole arrow on the embedded digits: foundation, tokenizer, latents, transformer, samples, report."""

    output: Path = Path("runs/quickstart")
    foundation: TrainFoundationConfig = TrainFoundationConfig()
    tokenizer: TrainTokenizerConfig = TrainTokenizerConfig()
    latents: ExtractLatentsConfig = ExtractLatentsConfig()
    transformer: TrainTransformerConfig = TrainTransformerConfig()
    samples: SampleConfig = SampleConfig()
    report: EvaluateConfig = EvaluateConfig()


class ConvertConfig(Section):
    """Bring published files in as artifacts, or write artifacts in the published layout."""

    kind: Literal["transformer", "tokenizer", "latents"] = "transformer"  # what the source holds
    to: Literal["alight", "published"] = "alight"  # alight: a published file in; published: an artifact back out
    source: Path | None = None  # a checkpoint, a hub id, or a folder: shards, diffusers', an artifact; always needed
    output: Path = Path("runs/converted")  # a folder; of weights to the published layout, a file
    weights: Literal["ema", "model"] | None = None  # of a transformer file; None = ema where it is there
    num_heads: Positive | None = None  # of a transformer file that does not tell
    num_classes: Positive | None = None  # of latents; None = as far as their labels go
    statistics: Path | None = None  # the latents_stats.pt that belongs to the source
    tokenizer: Path | None = None  # the tokenizer artifact that transformer or latents were made with


JOBS: dict[str, type[Section]] = {
    "quickstart": QuickstartConfig,
    "foundation train": TrainFoundationConfig,
    "tokenizer train": TrainTokenizerConfig,
    "tokenizer evaluate": EvaluateTokenizerConfig,
    "tokenizer study": TokenizerStudyConfig,
    "latents extract": ExtractLatentsConfig,
    "latents inspect": InspectLatentsConfig,
    "transformer train": TrainTransformerConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
    "evaluate reference": EvaluateReferenceConfig,
    "tune": TuneConfig,
    "convert": ConvertConfig,
    "export": ExportConfig,
    "report": ReportConfig,
    "info": InfoConfig,
    "bench": BenchConfig,
    "plan": PlanConfig,
    "doctor": DoctorConfig,
    "serve": ServeConfig,
}
