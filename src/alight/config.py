"""Typed, strict configuration of every stage.

One class per job, one default per value, and no value that two classes both own. What is contradictory is refused
here, before any work starts. `recipes.py` fills these classes from YAML files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveReal = Annotated[float, Field(gt=0)]
NonNegativeReal = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]


class Section(BaseModel):
    """A part of a configuration: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


# --- parts that several jobs share ------------------------------------------------------------------------------


class ImagesConfig(Section):
    """Which images, and how they are cropped."""

    source: str = "digits"  # "digits", "photographs" (both embedded), or a folder of images
    size: Positive = 256  # side of the square crop in pixels
    crop: Literal["center", "random"] = "center"  # centre crop as in ADM, or a random one
    unconditional: bool = False  # of a folder: take everything below it as one class
    horizontal_flip: bool = False  # mirror half of the images at random while training
    held_out_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # of a folder; embedded images have a fixed split
    workers: NonNegative = 0  # processes that decode ahead; 0 = decode when asked
    upscale: bool = False  # accept images that are smaller than the crop
    max_skipped_fraction: Fraction = 0.5  # give up when more than this share of the files cannot be decoded


class OptimizerConfig(Section):
    """Adam with decoupled weight decay, and its learning rate over time."""

    lr: PositiveReal = 2e-4  # peak learning rate; never scaled behind your back
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)  # decay of the two moments
    weight_decay: NonNegativeReal = 0.0  # decoupled (AdamW)
    max_grad_norm: PositiveReal | None = 1.0  # clip the global gradient norm; None = off
    warmup_steps: NonNegative = 0  # linear warm-up from zero
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # after the warm-up
    final_lr_fraction: Fraction = 0.0  # where cosine and linear end, as a share of lr


class TrainingConfig(Section):
    """Length, batch, averaging, precision and bookkeeping of a training run."""

    steps: Positive = 80_000  # optimizer steps
    global_batch_size: Positive = 256  # images per optimizer step
    micro_batch_size: Positive | None = None  # images per forward pass; None = the whole batch at once
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = 0.9999  # average of the weights; None = off
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16 = autocast with fp32 weights
    compile: bool = False  # torch.compile of each block
    log_every: Positive = 50  # steps between lines in log.jsonl
    checkpoint_every: Positive = 5_000  # steps between checkpoints
    keep_checkpoints: Positive = 2  # how many of the newest checkpoints stay

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.micro_batch_size and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        return self

    @property
    def gradient_accumulation_steps(self) -> int:
        """Forward passes per optimizer step."""
        return self.global_batch_size // (self.micro_batch_size or self.global_batch_size)


class Job(Section):
    """What every job has."""

    output: Path  # the folder of the artifact
    seed: NonNegative = 0  # all randomness follows from it
    device: Device = "auto"  # auto, cpu, cuda, cuda:N or mps


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
    """Rectified flow (paper, section 4): how time is drawn and what the loss is."""

    time_sampling: Literal["logit_normal", "uniform"] = "logit_normal"
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

    solver: str = "euler"
    num_inference_steps: Positive = 50  # steps really taken
    guidance_scale: Annotated[float, Field(ge=0)] = 1.0  # 1 = no guidance
    guidance_interval: tuple[Fraction, Fraction] | None = None  # in model time; None = everywhere
    guidance_channels: Positive | None = None  # None = all; 3 = how the published figures were made
    timestep_shift: PositiveReal | None = None  # s of t' = s t / (1 + (s-1) t); None = off

    @model_validator(mode="after")
    def _interval_ordered(self) -> Self:
        if self.guidance_interval and self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {self.guidance_interval} is empty: give (low, high) with low < high")
        return self


class SampleConfig(Job):
    """Generate images with a trained transformer and its tokenizer."""

    output: Path = Path("runs/samples")
    transformer: Path = Path("runs/transformer")
    tokenizer: Path = Path("runs/tokenizer")
    classes: tuple[str, ...] = ()  # names or indices; empty = all
    samples_per_class: Positive = 10
    sampling: SolverConfig = SolverConfig()
    batch_size: Positive = 64
    precision: Literal["fp32", "bf16"] = "fp32"
    npz: bool = False  # also write samples.npz (arr_0, shuffled)


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
}
