"""Typed, strict configuration of every stage.

One class per job, one default per value, and no value that two classes both own. What is contradictory is refused
here, before any work starts. `recipes.py` fills these classes from YAML files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from alight.config_parts import (
    ClassName,
    Device,
    Fraction,
    ImagesConfig,
    Job,
    NonNegative,
    NonNegativeReal,
    OptimizerConfig,
    Positive,
    PositiveReal,
    Section,
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
from alight.runtime.solver_names import SDE_SOLVERS, require_solver

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
    seed: NonNegative = 0  # of the positions and maps that are drawn


# --- transformer --------------------------------------------------------------------------------------------------


class TransformerModelConfig(Section):
    """LightningDiT by preset or by its four sizes; everything else is the paper's final architecture."""

    preset: str | None = "LightningDiT-B/1"  # None = the four sizes below, all given
    hidden_size: Positive | None = None
    num_layers: Positive | None = None
    num_heads: Positive | None = None
    patch_size: Positive | None = None
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


# --- samples and report -------------------------------------------------------------------------------------------


class SolverConfig(Section):
    """How noise becomes latents."""

    solver: str = "euler"  # or heun, ab2, rk4, dopri5, sde_euler, ...; a wrong name is answered with the list
    num_inference_steps: Positive = 50  # steps really taken
    guidance_scale: Annotated[float, Field(ge=0)] = 1.0  # 1 = no guidance
    guidance_interval: tuple[Fraction, Fraction] | None = None  # in model time; None = everywhere
    guidance_channels: Positive | None = None  # None = all; 3 = how the published figures were made
    timestep_shift: PositiveReal | None = None  # s of t' = s t / (1 + (s-1) t); None = off
    diffusion_form: Literal["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"] = "sigma"
    last_step: Literal["mean", "tweedie", "euler"] = "mean"  # the end without noise; both of the sde_ solvers alone

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        require_solver(self.solver)
        if self.stochastic and self.timestep_shift is not None:
            raise ValueError(f"{self.solver} takes even steps; set timestep_shift to null, or choose an ODE solver")
        if self.stochastic and self.num_inference_steps < 2:
            raise ValueError(f"{self.solver} needs num_inference_steps of at least 2: a noisy step and the last one")
        if self.guidance_interval and self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {self.guidance_interval} is empty: give (low, high) with low < high")
        return self

    @property
    def stochastic(self) -> bool:
        """Whether noise is added on the way."""
        return self.solver in SDE_SOLVERS


class SampleConfig(Job):
    """Generate images with a trained transformer and its tokenizer."""

    output: Path = Path("runs/samples")
    transformer: Path = Path("runs/transformer")
    tokenizer: Path = Path("runs/tokenizer")
    guide: Path | None = None  # a weaker transformer: autoguidance by it instead of the null class
    labels: Literal["balanced", "random"] = "balanced"  # equally many of each class, or drawn uniformly from the seed
    classes: tuple[ClassName, ...] = ()  # names or indices; empty = all
    samples_per_class: Positive = 10  # of balanced labels
    num_samples: Positive | None = None  # of random labels, all classes together
    class_counts: dict[ClassName, Positive] = {}  # so many of each class that is named here, and of no other
    sampling: SolverConfig = SolverConfig()
    batch_size: Positive = 64
    precision: Literal["fp32", "bf16"] = "fp32"
    npz: bool = False  # also write samples.npz (arr_0, shuffled)
    trajectory_images: NonNegative = 4  # so many images are shown on their way, in trajectory.png; 0 = none

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.class_counts and (self.labels == "random" or self.classes):
            raise ValueError("class_counts already says which classes; leave out classes and labels")
        if self.labels == "random" and self.num_samples is None:
            raise ValueError("labels 'random' needs num_samples, the number of images")
        if self.labels == "balanced" and self.num_samples is not None:
            raise ValueError("num_samples belongs to labels 'random'; give samples_per_class, or set labels to random")
        if self.guide is not None and self.sampling.guidance_scale == 1:
            raise ValueError("a guide does nothing at guidance_scale 1; set sampling.guidance_scale, 2.0 for example")
        return self


class EvaluateConfig(MeasureTokenizerConfig):
    """Measure reconstructions and samples, and write the report."""

    output: Path = Path("runs/report")
    transformer: Path = Path("runs/transformer")
    samples: Path = Path("runs/samples")


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
    source: Path | None = None  # a checkpoint, or a folder of latent shards or of an artifact; always needed
    output: Path = Path("runs/converted")  # a folder; of weights to the published layout, a file
    weights: Literal["ema", "model"] | None = None  # of a transformer file; None = ema where it is there
    num_heads: Positive | None = None  # of a transformer file that does not tell
    num_classes: Positive | None = None  # of latents; None = as far as their labels go
    statistics: Path | None = None  # the latents_stats.pt that belongs to the source
    tokenizer: Path | None = None  # the tokenizer artifact that transformer or latents were made with


# --- tools --------------------------------------------------------------------------------------------------------


class PlanConfig(Section):
    """Estimate memory and time of a training recipe on this machine from a short measured run; --json for programs."""

    recipe: str | None = None  # of 'transformer train' or 'tokenizer train': a file or a shipped name; always needed
    processes: Positive = 1  # that will share the batch, on as many machines or devices like this one
    seconds: PositiveReal = 60.0  # about how long to measure; a model too large for that is measured in part
    device: Device | None = None  # None = the recipe's
    latent_shape: tuple[Positive, Positive, Positive] = (32, 16, 16)  # channels, height, width; if not there yet
    num_classes: Positive = 1000  # likewise
    num_images: Positive | None = None  # of an epoch; None = of the recipe's data, or ImageNet's if not there yet


class DoctorConfig(Section):
    """Check the installation, and a recipe, a run or a tokenizer, and name the mend; --json for programs."""

    recipe: str | None = None  # also check that it loads and has what it needs, and compare the run with it
    run: Path | None = None  # a training run, finished or not: look for trouble in its log
    tokenizer: Path | None = None  # encode and decode images with it; a folder, a hub id or a published checkpoint
    images: str | None = None  # a folder, or anything that images.source may be
    num_images: Positive = 16  # so many of them
    output: Path = Path("runs")  # where results are going to be written
    network: bool = False  # also see whether the Hugging Face hub can be reached
    device: Device = "auto"

    @model_validator(mode="after")
    def _images_and_tokenizer(self) -> Self:
        if (self.images is None) != (self.tokenizer is None):
            raise ValueError("a tokenizer is tried on images: give both images and tokenizer, or neither")
        return self


class ServeConfig(Section):
    """Try a pipeline in the browser: generate, reconstruct, look at latents, compare.

    The folder may stand first, without its option: alight serve runs/quickstart
    """

    pipeline: Path | None = None  # of a quickstart, a pipeline or an export; always needed
    compare: Path | None = None  # another one, to see both make images of the same seeds
    compare_tokenizer: Path | None = None  # another tokenizer, to see both reconstruct; a folder or a published file
    foundation: str | None = None  # whose features are shown beside latents; None = the quickstart's own, if it is one
    host: str = "127.0.0.1"  # this machine alone; 0.0.0.0 = every machine that can reach it
    port: Annotated[int, Field(ge=0, le=65535)] = 7860  # 0 = a free one
    user: str | None = None  # ask every visitor for this name and the password
    password: str | None = None
    max_images: Positive = 64  # in one request
    max_upload_mb: PositiveReal = 20.0  # of the files that are sent at once
    queue_size: Positive = 20  # requests that may wait; further ones are turned away
    batch_size: Positive = 16  # images at a time
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Device = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("give both user and password, or neither")
        if self.user is not None and (not self.user or not self.password or ":" in self.user):
            raise ValueError("user and password cannot be empty, and user cannot contain a colon")
        if self.compare is not None and self.compare == self.pipeline:
            raise ValueError("compare is the pipeline itself; leave it out to compare two settings of one pipeline")
        return self


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
    "convert": ConvertConfig,
    "plan": PlanConfig,
    "doctor": DoctorConfig,
    "serve": ServeConfig,
}
