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
from alight.runtime.solver_names import SDE_SOLVERS, require_solver

# --- foundation ---------------------------------------------------------------------------------------------------


class FoundationModelConfig(Section):
    """A small vision transformer, for images that no public foundation model knows."""

    hidden_size: Positive = 192
    num_layers: Positive = 6
    num_heads: Positive = 3
    patch_size: Positive = 16

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        return self


class TrainFoundationConfig(Job):
    """Train a small vision foundation model where no pretrained one is at hand."""

    output: Path = Path("runs/foundation")
    images: ImagesConfig = ImagesConfig()
    task: Literal["classifier", "masked_autoencoder"] = "classifier"  # the latter needs no labels
    model: FoundationModelConfig = FoundationModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.05)
    training: TrainingConfig = TrainingConfig(steps=2_000, global_batch_size=128, ema_decay=None)


# --- tokenizer ----------------------------------------------------------------------------------------------------


class TokenizerModelConfig(Section):
    """The autoencoder; the defaults are the paper's f16d32."""

    latent_channels: Positive = 32
    block_out_channels: tuple[Positive, ...] = (128, 128, 256, 256, 512)  # n levels downsample by 2**(n-1)
    layers_per_block: Positive = 2
    norm_num_groups: Positive = 32
    level_attention: bool = True  # attention at the lowest level
    mid_block_attention: bool = True

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels {channels} is not a multiple of norm_num_groups {self.norm_num_groups}"
                )
        return self

    @property
    def downsampling_factor(self) -> int:
        """Image pixels per latent position, along one side."""
        return int(2 ** (len(self.block_out_channels) - 1))


class AlignmentConfig(Section):
    """How the latent is tied to a vision foundation model (paper, section 3.2)."""

    foundation: str | None = "facebook/dinov2-large"  # folder or hub id of a transformers model; None = no alignment
    weight: NonNegativeReal = 0.1  # w_hyper of the paper, on top of the adaptive weight; 0 = no alignment
    cosine_margin: NonNegativeReal = 0.5  # m1
    distance_margin: NonNegativeReal = 0.25  # m2
    cosine_weight: NonNegativeReal = 1.0  # of the marginal cosine loss within the sum
    distance_weight: NonNegativeReal = 1.0  # of the marginal distance matrix loss within the sum
    adaptive: bool = True  # scale by the ratio of gradient norms at the encoder's last convolution
    foundation_input: Literal["own", "published"] = "own"  # the model's own normalisation, or [-1, 1] as published

    @property
    def enabled(self) -> bool:
        """Whether the alignment loss takes part in training."""
        return self.foundation is not None and self.weight > 0


class ReconstructionConfig(Section):
    """What a good reconstruction is: L1, KL, and optionally LPIPS and a discriminator."""

    l1_weight: PositiveReal = 1.0
    kl_weight: NonNegativeReal = 1e-6
    perceptual_weight: NonNegativeReal = 1.0  # LPIPS; 0 = off
    vgg16_weights: Path | None = None  # torchvision's vgg16-397923af.pth
    lpips_weights: Path | None = None  # the linear layers of LPIPS v0.1 (vgg.pth)
    adversarial_weight: NonNegativeReal = 0.5  # PatchGAN; 0 = off
    adversarial_loss: Literal["hinge", "vanilla"] = "hinge"
    adversarial_start_step: NonNegative = 2_500  # optimizer steps of the autoencoder before the term counts

    @model_validator(mode="after")
    def _perceptual_files(self) -> Self:
        if self.perceptual_weight > 0 and not (self.vgg16_weights and self.lpips_weights):
            raise ValueError(
                "perceptual_weight > 0 needs vgg16_weights and lpips_weights (two files); "
                "give their paths or set perceptual_weight to 0"
            )
        return self


class TrainTokenizerConfig(Job):
    """Train a tokenizer whose latent space is aligned with a vision foundation model."""

    output: Path = Path("runs/tokenizer")
    images: ImagesConfig = ImagesConfig()
    model: TokenizerModelConfig = TokenizerModelConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    reconstruction: ReconstructionConfig = ReconstructionConfig(perceptual_weight=0)
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-4, betas=(0.5, 0.9), max_grad_norm=None)
    training: TrainingConfig = TrainingConfig(steps=50_000, ema_decay=None)

    @model_validator(mode="after")
    def _size_fits(self) -> Self:
        factor = self.model.downsampling_factor
        if self.images.size % factor:
            raise ValueError(
                f"images.size {self.images.size} is not a multiple of {factor}, the downsampling factor of "
                f"{len(self.model.block_out_channels)} levels"
            )
        return self


# --- latents ------------------------------------------------------------------------------------------------------


class ExtractLatentsConfig(Job):
    """Encode images once, so that the transformer trains on latents."""

    output: Path = Path("runs/latents")
    tokenizer: Path = Path("runs/tokenizer")
    images: ImagesConfig = ImagesConfig()
    flips: bool = True  # also encode each mirrored image
    posterior: Literal["sample", "mode"] = "sample"  # the published latents are samples
    statistics: Literal["tokenizer", "data"] = "tokenizer"  # whose mean and std normalise the latents
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    batch_size: Positive = 64
    shard_size: Positive = 10_000  # images per file


class InspectLatentsConfig(Section):
    """Check a folder of latents and show what is in it."""

    latents: Path = Path("runs/latents")


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


class EvaluateTokenizerConfig(Job):
    """Measure how well a tokenizer reconstructs images, and write a report."""

    output: Path = Path("runs/tokenizer-report")
    tokenizer: Path = Path("runs/tokenizer")
    images: ImagesConfig = ImagesConfig()
    split: Literal["train", "held_out", "all"] = "held_out"  # which images are reconstructed
    foundation: str | None = None  # also measure in the features of this model: a folder or hub id
    batch_size: Positive = 64


class EvaluateConfig(EvaluateTokenizerConfig):
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


JOBS: dict[str, type[Section]] = {
    "quickstart": QuickstartConfig,
    "foundation train": TrainFoundationConfig,
    "tokenizer train": TrainTokenizerConfig,
    "tokenizer evaluate": EvaluateTokenizerConfig,
    "latents extract": ExtractLatentsConfig,
    "latents inspect": InspectLatentsConfig,
    "transformer train": TrainTransformerConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
    "convert": ConvertConfig,
}
