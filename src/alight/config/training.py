"""The configuration that all training shares: the optimizer, and the length and bookkeeping of a run."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from alight.config.base import (
    AtLeastOne,
    Decay,
    Fraction,
    NonNegative,
    NonNegativeReal,
    Positive,
    PositiveReal,
    Section,
)
from alight.options import (
    Compilation,
    FixedPrecision,
    MuonMatrices,
    MuonStepSize,
    OnNonFinite,
    OptimizerName,
    ParameterKind,
    Precision,
    Schedule,
    Sharding,
)
from alight.runtime.errors import InputError

SMALLEST_WIDTH, LARGEST_WIDTH = 0.005, 0.28  # of a power-function average; that of the plain mean is 0.289
SNAPSHOTS = 32  # of each average over a run, unless told otherwise
AveragingWidth = Annotated[
    float, Field(ge=SMALLEST_WIDTH, le=LARGEST_WIDTH)
]  # standard deviation, as a share of a run


class MuonConfig(Section):
    """Settings of Muon for the matrices that it takes; everything else is AdamW's, with the settings beside these."""

    matrices: MuonMatrices = "blocks"  # those in numbered blocks (all, where there are none), or all; kernels count
    momentum: Decay = 0.95  # average of the gradient, with Nesterov's step ahead
    weight_decay: NonNegativeReal | None = None  # decoupled; None = optimizer.weight_decay
    step_size: MuonStepSize = "match_rms"  # as large as AdamW's, as in the original, or the product of both factors
    lr_factor: PositiveReal = 1.0  # of lr; the original step size needs more, up to 0.2 times the root of the width
    precision: FixedPrecision | None = None  # of the orthogonalisation; None = bf16 on accelerators, fp32 on CPUs


class OptimizerConfig(Section):
    """The optimizer and its learning rate over time."""

    name: OptimizerName = "adamw"  # Adam with decoupled weight decay; muon: Muon for matrices, AdamW for the rest
    lr: PositiveReal = 2e-4  # peak learning rate; not scaled with the batch
    betas: tuple[Decay, Decay] = (0.9, 0.95)  # decay of the two moments
    weight_decay: NonNegativeReal = 0.0  # decoupled (AdamW)
    max_grad_norm: PositiveReal | None = 1.0  # clip the global gradient norm; None = off
    warmup_steps: NonNegative = 0  # linear warm-up from zero
    schedule: Schedule = "constant"  # after the warm-up
    final_lr_fraction: Fraction = 0.0  # end of cosine and linear, as a share of lr
    lr_factors: dict[ParameterKind, PositiveReal] | None = None  # of lr, by kind of parameter; None = 1 for all
    muon: MuonConfig = MuonConfig()  # used where the name is muon


class TrainingConfig(Section):
    """Length, batch, averaging, precision and bookkeeping of a training run."""

    steps: Positive = 80_000  # optimizer steps
    global_batch_size: Positive = 256  # images per optimizer step
    micro_batch_size: Positive | None = None  # images per forward pass; None = the whole batch at once
    ema_decay: Decay | None = 0.9999  # average of the weights; None = off
    ema_warmup: Annotated[float, Field(ge=1)] | None = None  # after t steps the decay is at most (1+t)/(this+t)
    precision: Precision = "auto"  # bf16 = autocast with fp32 weights; auto = bf16 on CUDA, fp32 elsewhere
    sharding: Sharding = "replicate"  # several processes: DDP, or FSDP2 where memory is short
    compile: Compilation = "auto"  # torch.compile of each block; auto = on CUDA, from 5,000 steps on
    activation_checkpointing: bool = False  # less memory, a third more computing
    log_every: Positive = 50  # steps between lines in log.jsonl
    tensorboard: bool = False  # scalars and pictures for TensorBoard, too, in training/tensorboard
    wandb_project: str | None = None  # and for Weights & Biases, in this project of theirs
    checkpoint_every: Positive = 5_000  # steps between checkpoints
    keep_checkpoints: Positive = 2  # number of the newest checkpoints to keep
    keep_every: Positive | None = None  # also keep checkpoints at multiples of this many steps; None = none
    save_at: tuple[Positive, ...] = ()  # further steps after which a checkpoint is saved and kept
    on_non_finite: OnNonFinite = "stop"  # a gradient of NaN or infinity; it is never applied
    max_non_finite: Positive = 10  # stop after this many such gradients, also under skip or rollback

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.micro_batch_size and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        return self

    def micro_batches(self, world_size: int = 1) -> int:
        """Micro-batches per optimizer step in each of `world_size` processes.

        Raises:
            InputError: if the batch cannot be divided evenly.
        """
        micro = self.micro_batch_size or max(self.global_batch_size // world_size, 1)
        if self.global_batch_size % (world_size * micro):
            raise InputError(
                f"training.global_batch_size {self.global_batch_size} cannot be divided evenly between {world_size} "
                f"processes with training.micro_batch_size {micro}. Choose a multiple of {world_size * micro}."
            )
        return self.global_batch_size // (world_size * micro)


class TransformerTrainingConfig(TrainingConfig):
    """The same, and averages whose length is chosen after training."""

    power_averages: AtLeastOne[AveragingWidth] | None = None  # widths to keep, such as 0.05 0.1, for 'alight average'
    snapshot_every: Positive | None = None  # steps between snapshots of these; None = a 32nd of the run

    @model_validator(mode="after")
    def _averages(self) -> Self:
        widths = self.power_averages
        if widths is not None and len({f"{width:.4g}" for width in widths}) < len(widths):
            raise ValueError("power_averages must differ from each other in their first four digits")
        if self.snapshot_every is not None and widths is None:
            raise ValueError("snapshot_every is about power_averages; give their widths, such as [0.05, 0.1], too")
        return self

    @property
    def snapshot_interval(self) -> int:
        """Steps between snapshots; the last step has one in any case."""
        return self.snapshot_every or -(-self.steps // SNAPSHOTS)

    @property
    def num_snapshots(self) -> int:
        """Number of snapshots that a run writes, of all averages."""
        return len(self.power_averages or ()) * -(-self.steps // self.snapshot_interval)
