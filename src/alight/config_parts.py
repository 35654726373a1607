"""The parts that the configurations of several jobs share: closed sections, images, optimizer, training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveReal = Annotated[float, Field(gt=0)]
NonNegativeReal = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ClassName = Annotated[str, Field(coerce_numbers_to_str=True)]  # in YAML, an index is a number
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]


class Section(BaseModel):
    """A part of a configuration: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


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
    activation_checkpointing: bool = False  # less memory, a third more computing; transformer only
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
