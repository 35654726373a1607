"""The configuration of sampling: the way from noise to latents, and the images to generate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from alight.config.base import ClassName, Fraction, Job, NonNegative, Positive, PositiveReal, Section
from alight.config.training import AveragingWidth
from alight.options import (
    AUTO,
    MEAN_SOLVER,
    PUBLISHED_KAPPA,
    SDE_SOLVERS,
    Compilation,
    DiffusionForm,
    FixedPrecision,
    GuidanceName,
    LabelProtocol,
    LastStep,
    Precision,
    require_solver,
)

Checkpoint = Annotated[str, Field(pattern=r"^(latest|\d{1,8})$", coerce_numbers_to_str=True)]
GuidanceScale = Annotated[float, Field(ge=0, le=100)]  # 100 is far beyond all that makes images
TimestepShift = Annotated[float, Field(ge=1e-3, le=1e3)]
TimeWarp = tuple[PositiveReal, PositiveReal, PositiveReal]
Steps = Annotated[int, Field(ge=1, le=100_000)]


class SolverConfig(Section):
    """Sampling: the way from noise to latents."""

    solver: str = "euler"  # or heun, ab2, rk4, dopri5, sde_euler, ...; a wrong name is answered with the list
    num_inference_steps: Steps = 50  # steps really taken
    guidance: GuidanceName | None = None  # None = autoguidance where there is a guide, else classifier-free
    guidance_scale: GuidanceScale = 1.0  # 1 = no guidance
    guidance_interval: tuple[Fraction, Fraction] | None = None  # in model time; None = everywhere
    guidance_channels: Positive | None = None  # None = all; 3 = how the published figures were made
    internal_scale: GuidanceScale = 1.0  # of Internal Guidance, by the auxiliary output; 1 = off
    internal_interval: tuple[Fraction, Fraction] | None = None  # in model time; None = everywhere
    timestep_shift: TimestepShift | Literal["auto"] | None = None  # s of t' = s t / (1 + (s-1) t); auto = by dimension
    last_time: Annotated[float, Field(gt=0, le=1)] = 1.0  # where ODE solvers end, before the shift; RAE: 0.999
    time_warp: TimeWarp | None = None  # UCGM's time grid, published: 1.17, 0.8, 1.1; in place of a shift
    kappa: Fraction = PUBLISHED_KAPPA  # extrapolation of ucgm alone: 1/3 = second order, 0.5 = published
    diffusion_form: DiffusionForm = "sigma"
    last_step: LastStep = "mean"  # the end without noise
    last_step_size: Annotated[float, Field(gt=0, lt=1)] = 0.04  # this and the two above: of the sde_ solvers alone

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        require_solver(self.solver)
        if self.time_warp is not None and (self.stochastic or self.timestep_shift is not None):
            raise ValueError("time_warp goes with no timestep_shift and no sde_ solver; leave one of them out")
        if self.last_time != 1 and (self.stochastic or self.solver == MEAN_SOLVER or self.time_warp is not None):
            raise ValueError("last_time is for ODE solvers without a time_warp; leave one of them out")
        if self.kappa != PUBLISHED_KAPPA and self.solver != "ucgm":
            raise ValueError(f"kappa belongs to the solver ucgm, not to {self.solver}; leave one of them out")
        if self.solver == MEAN_SOLVER and (self.guidance_scale != 1 or self.internal_scale != 1):
            raise ValueError(
                "the solver mean takes no guidance_scale or internal_scale: guidance of average velocities is part of "
                "their training (flow.average_velocity.guidance_scale); leave it out, or choose another solver"
            )
        if self.stochastic and self.num_inference_steps < 2:
            raise ValueError(f"{self.solver} needs num_inference_steps of at least 2: a noisy step and the last one")
        if self.guidance_interval and self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {self.guidance_interval} is empty: give (low, high) with low < high")
        if self.internal_interval and self.internal_interval[0] >= self.internal_interval[1]:
            raise ValueError(f"internal_interval {self.internal_interval} is empty: give (low, high) with low < high")
        return self

    @property
    def stochastic(self) -> bool:
        """Tell if noise is added on the way."""
        return self.solver in SDE_SOLVERS

    def effective(self) -> dict[str, Any]:
        """The settings that take part in sampling, for records: an ODE solver has no noise to describe."""
        without = set() if self.stochastic else {"diffusion_form", "last_step", "last_step_size"}
        without |= {"internal_scale", "internal_interval"} if self.internal_scale == 1 else set()
        unused = {"guidance": self.guidance, "time_warp": self.time_warp, "kappa": self.solver == "ucgm"}
        unused["last_time"] = self.last_time != 1
        return self.model_dump(exclude=without | {name for name, used in unused.items() if not used})

    def __str__(self) -> str:
        """The settings in a line, such as "euler, 50 steps, guidance 1.5 on t in [0.1, 1], shift 0.3"."""
        extrapolation = f" with kappa {self.kappa:.3g}" if self.solver == "ucgm" else ""
        words = [f"{self.solver}{extrapolation}", f"{self.num_inference_steps} steps"]
        if self.guidance_scale != 1:
            strategy = f" ({self.guidance.replace('_', '-')})" if self.guidance else ""
            words.append(f"guidance {self.guidance_scale:g}{strategy}{_on_times(self.guidance_interval)}")
        if self.internal_scale != 1:
            words.append(f"internal guidance {self.internal_scale:g}{_on_times(self.internal_interval)}")
        if self.guidance_scale == self.internal_scale == 1:
            words.append("no guidance")
        if self.timestep_shift not in (None, 1):
            words.append(f"shift {self.timestep_shift if self.timestep_shift == AUTO else f'{self.timestep_shift:g}'}")
        if self.last_time != 1:
            words.append(f"until t = {self.last_time:g} before the shift")
        if self.time_warp is not None:
            words.append(f"time warp {', '.join(f'{number:g}' for number in self.time_warp)}")
        return ", ".join(words)


def _on_times(interval: tuple[float, float] | None) -> str:
    """Such as " on t in [0.1, 1]"; nothing where that is always."""
    low, high = interval or (0, 1)
    return f" on t in [{low:g}, {high:g}]" if (low, high) != (0, 1) else ""


class DrawConfig(Section):
    """The images to generate: their number, classes and sampling."""

    labels: LabelProtocol = "balanced"  # equally many of each class, or drawn uniformly from the seed
    classes: tuple[ClassName, ...] = ()  # names or indices; empty = all
    samples_per_class: Annotated[int, Field(ge=1, le=100_000)] = 10  # of balanced labels
    num_samples: Annotated[int, Field(ge=1, le=10_000_000)] | None = None  # of random labels, all classes together
    class_counts: dict[ClassName, Positive] = {}  # images per class, by its name or index; other classes get none
    sampling: SolverConfig = SolverConfig()
    precision: Precision = "auto"  # bf16 = autocast; auto = bf16 on CUDA, fp32 elsewhere
    tokenizer_weights: FixedPrecision = "fp32"  # bf16 = decode with narrow weights, faster on CUDA, at a small loss
    compile: Compilation = "auto"  # the blocks of the networks; auto = on CUDA, from 2,000 images on

    @model_validator(mode="after")
    def _guide_fits(self) -> Self:
        guide, strategy = getattr(self, "guide", None), self.sampling.guidance
        if strategy == "autoguidance" and guide is None:
            raise ValueError("guidance 'autoguidance' needs a guide, which 'alight sample' takes: --guide FOLDER")
        if strategy == "classifier_free" and guide is not None:
            raise ValueError("guidance 'classifier_free' takes no guide; leave one of them out")
        return self

    @model_validator(mode="after")
    def _labels_agree(self) -> Self:
        if self.class_counts and (self.labels == "random" or self.classes):
            raise ValueError("class_counts already says which classes; leave out classes and labels")
        if self.labels == "random" and self.num_samples is None:
            raise ValueError("labels 'random' needs num_samples, the number of images")
        if self.labels == "balanced" and self.num_samples is not None:
            raise ValueError("num_samples belongs to labels 'random'; give samples_per_class, or set labels to random")
        return self


class SampleConfig(DrawConfig, Job):
    """Generate images with a trained transformer and its tokenizer."""

    output: Path = Path("runs/samples")
    transformer: Path = Path("runs/transformer")
    checkpoint: Checkpoint | None = None  # sample from this one of its run: latest or a step; None = finished weights
    average: AveragingWidth | None = None  # sample with the average of this width, of a run with power_averages
    tokenizer: Path | None = None  # decodes; None = the one that the records of the transformer lead to
    guide: Path | None = None  # a weaker transformer: autoguidance by it instead of the null class
    guide_checkpoint: Checkpoint | None = None  # guide by this one of its run, which may be the transformer's own
    batch_size: Positive = 64
    npz: bool = False  # also write samples.npz (arr_0, shuffled)
    grid_classes: Positive = 50  # rows of grid.png, one per class
    trajectory_images: NonNegative = 4  # images whose intermediate states are drawn in trajectory.png; 0 = none

    @model_validator(mode="after")
    def _guide_is_used(self) -> Self:
        if self.guide_checkpoint is not None and self.guide is None:
            raise ValueError("guide_checkpoint belongs to a guide; name the folder of its run: --guide FOLDER")
        if self.guide is not None and self.sampling.guidance_scale == 1:
            raise ValueError("a guide does nothing at guidance_scale 1; set sampling.guidance_scale, 2.0 for example")
        return self
