"""The configuration of the second stage: LightningDiT, its flow and its training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from alight.config.base import (
    Depth,
    Fraction,
    Job,
    NonNegative,
    NonNegativeReal,
    Positive,
    PositiveReal,
    Section,
    Size,
    Source,
)
from alight.config.sampling import GuidanceScale
from alight.config.training import OptimizerConfig, TransformerTrainingConfig
from alight.options import (
    FeedForwardKind,
    LossWeight,
    Norm,
    Objective,
    PathName,
    Prediction,
    TimeDistribution,
    TokenProjectorKind,
)


class WideHeadConfig(Section):
    """Wide blocks at the end of the transformer, for latents of more channels than it is wide (RAE); used if counted.

    Two blocks of width 2048 as published.
    """

    num_layers: Depth | None = None  # blocks of the head, 2 as published; None = no head
    hidden_size: Size = 2048  # at least the numbers per token of the latents
    num_heads: Size = 16  # attention heads of these blocks

    @model_validator(mode="after")
    def _counted(self) -> Self:
        fields = type(self).model_fields
        sizes = [name for name in ("hidden_size", "num_heads") if getattr(self, name) != fields[name].default]
        if self.num_layers is None and sizes:
            raise ValueError(
                f"{' and '.join(f'head.{name}' for name in sizes)} without head.num_layers makes no head; give "
                "head.num_layers, 2 as published, or leave the sizes out"
            )
        return self

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.num_layers is not None and self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"head.hidden_size {self.hidden_size} is not a multiple of 4 * head.num_heads = {4 * self.num_heads}"
            )
        return self


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
    norm: Norm = "rms_norm"
    feed_forward: FeedForwardKind = "swiglu"
    rope: bool = True  # rotary positions, beside the sin-cos ones
    adaln_shift: bool = True  # modulate by shift and scale, or by scale alone
    auxiliary_block: int | None = None  # a second output after this many blocks, for Internal Guidance; None = off
    interval_embedding: bool = False  # tell it the length of a step, too, which average velocities need
    head: WideHeadConfig = WideHeadConfig()  # wide blocks at the end, for latents of many channels

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
        if self.auxiliary_block is not None and self.num_layers and not 1 <= self.auxiliary_block < self.num_layers:
            raise ValueError(
                f"auxiliary_block {self.auxiliary_block} is not between two blocks of a model of {self.num_layers}; "
                + (f"give 1 to {self.num_layers - 1}" if self.num_layers > 1 else "leave it out")
            )
        if self.interval_embedding and self.head.num_layers is not None:
            raise ValueError("interval_embedding does not go with a wide head; leave it or head.num_layers out")
        return self

    def arguments(self) -> dict[str, Any]:
        """Arguments of the model's constructor as far as the section gives them, beside those of the preset."""
        given = self.model_dump(exclude={"preset", "head"}, exclude_none=True)
        return given | ({} if self.head.num_layers is None else {"head": self.head.model_dump()})


class AverageVelocityConfig(Section):
    """Training of average velocities (MeanFlow); used where the objective is average_velocity."""

    equal_times: Fraction = 0.75  # share of steps without a length, which learn the velocity itself
    guidance_scale: GuidanceScale = 1.0  # of classifier-free guidance, trained in; sampling then has none; 1 = off
    adaptive_power: Fraction = 1.0  # p of the weight 1 / (squared error + 0.01)^p; 0 = off


class FlowConfig(Section):
    """The flow (paper, section 4): path and prediction, how time is drawn, and what the loss is.

    The defaults are rectified flow as the paper trains it; the others are its ablations and relatives.
    """

    path: PathName = "linear"
    prediction: Prediction = "velocity"
    loss_weight: LossWeight = "none"  # of noise and score predictions
    time_sampling: TimeDistribution = "logit_normal"
    uniform_from_step: NonNegative | None = None  # draw time uniformly from this step on, as the 800-epoch recipe does
    timestep_shift: PositiveReal | Literal["auto"] | None = None  # below 1 = more often near noise; auto = by size
    first_time: Annotated[float, Field(ge=0, lt=1)] = 0.0  # earliest training time before the shift; RAE: 0.001
    logit_normal_mean: float = 0.0
    logit_normal_std: PositiveReal = 1.0
    cosine_weight: NonNegativeReal = 1.0  # of the velocity direction loss
    auxiliary_weight: NonNegativeReal = 0.5  # of the error of the auxiliary output, where model.auxiliary_block is set
    objective: Objective = "velocity"  # or average_velocity, in place of the losses above: for sampling in few steps
    average_velocity: AverageVelocityConfig = AverageVelocityConfig()

    @model_validator(mode="after")
    def _averages_are_of_velocities(self) -> Self:
        if self.objective == "average_velocity" and (self.path, self.prediction) != ("linear", "velocity"):
            raise ValueError(
                "objective average_velocity needs the linear path and the prediction velocity, not "
                f"{self.path} and {self.prediction}"
            )
        return self


class RepresentationConfig(Section):
    """Alignment of hidden tokens with the features of a foundation model that are stored beside the latents.

    The defaults beside the weight are those of REPA; iREPA has the weight 1.0, the projector conv and the spatial norm
    0.6.
    """

    weight: NonNegativeReal = 0.0  # of the mean of -cos, 0.5 in REPA; 0 = off, and no features are read
    block: Positive = 8  # the tokens after this many blocks are aligned
    projector: TokenProjectorKind = "mlp"  # from tokens to features: three layers, or one convolution over the grid
    hidden_size: Size = 2048  # of the mlp
    kernel_size: Literal[1, 3] = 3  # of the conv
    spatial_norm: Annotated[float, Field(ge=0, le=1)] | None = None  # share of an image's mean to subtract; None = off
    stop_step: Positive | None = None  # plain training from this step on; None = never
    foundation: Source | None = None  # whose features these must be; None = whichever are stored

    @property
    def enabled(self) -> bool:
        """Tell if tokens are aligned at all."""
        return self.weight > 0

    def counts_at(self, step: int) -> bool:
        """Tell if tokens are aligned at a step, counted from 0."""
        return self.enabled and (self.stop_step is None or step < self.stop_step)


class TrainTransformerConfig(Job):
    """Train LightningDiT on latents with rectified flow."""

    output: Path = Path("runs/transformer")
    latents: Path = Path("runs/latents")
    init_from: str | None = None  # a transformer to start from: artifact, diffusers folder or published checkpoint
    model: TransformerModelConfig = TransformerModelConfig()  # with init_from, that transformer's
    flow: FlowConfig = FlowConfig()
    representation: RepresentationConfig = RepresentationConfig()  # alignment of hidden tokens, REPA and iREPA
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TransformerTrainingConfig = TransformerTrainingConfig()
    samples_every: Positive | None = None  # steps between grids of samples; None = after 1/16, 1/8, 1/4, 1/2 and all
    sample_images: NonNegative = 16  # images in a grid, of the same noise and classes every time; 0 = no grids
    samples_tokenizer: Path | None = None  # decodes them; None = the folder that the latents were made with

    @model_validator(mode="after")
    def _aligned_block(self) -> Self:
        layers, block = self.model.num_layers, self.representation.block
        if self.representation.enabled and layers is not None and block > layers:
            raise ValueError(f"representation.block {block} does not exist in a model of {layers}; give 1 to {layers}")
        return self

    @model_validator(mode="after")
    def _average_velocities(self) -> Self:
        if self.flow.objective != "average_velocity":
            return self
        if self.representation.enabled:
            raise ValueError(
                "representation aligns the tokens of plain training alone; set representation.weight to 0"
            )
        if self.init_from is None:
            raise ValueError(
                "flow.objective average_velocity fine-tunes a trained transformer; name its folder: --init-from FOLDER"
            )
        if self.training.compile is True or self.training.sharding == "shard":
            raise ValueError(
                "flow.objective average_velocity differentiates the transformer in forward mode, which neither "
                "training.compile nor training.sharding shard can; leave both out"
            )
        return self
