"""The configurations of the last part of the arrow: samples, their measurement, and the search for good settings."""

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
    Positive,
    Section,
    Source,
)
from alight.config_tokenizer import MeasureTokenizerConfig
from alight.options import SDE_SOLVERS, require_solver

Checkpoint = Annotated[str, Field(pattern=r"^(latest|\d{1,8})$", coerce_numbers_to_str=True)]
GuidanceScale = Annotated[float, Field(ge=0, le=100)]  # 100 is far beyond all that makes images
TimestepShift = Annotated[float, Field(ge=1e-3, le=1e3)]
Steps = Annotated[int, Field(ge=1, le=100_000)]

# --- samples ------------------------------------------------------------------------------------------------------


class SolverConfig(Section):
    """How noise becomes latents."""

    solver: str = "euler"  # or heun, ab2, rk4, dopri5, sde_euler, ...; a wrong name is answered with the list
    num_inference_steps: Steps = 50  # steps really taken
    guidance_scale: GuidanceScale = 1.0  # 1 = no guidance
    guidance_interval: tuple[Fraction, Fraction] | None = None  # in model time; None = everywhere
    guidance_channels: Positive | None = None  # None = all; 3 = how the published figures were made
    timestep_shift: TimestepShift | None = None  # s of t' = s t / (1 + (s-1) t); None = off
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
        """Tell if noise is added on the way."""
        return self.solver in SDE_SOLVERS


class DrawConfig(Section):
    """Which images to generate, of which classes, and how."""

    labels: Literal["balanced", "random"] = "balanced"  # equally many of each class, or drawn uniformly from the seed
    classes: tuple[ClassName, ...] = ()  # names or indices; empty = all
    samples_per_class: Annotated[int, Field(ge=1, le=100_000)] = 10  # of balanced labels
    num_samples: Annotated[int, Field(ge=1, le=10_000_000)] | None = None  # of random labels, all classes together
    class_counts: dict[ClassName, Positive] = {}  # so many of each class that is named here, and of no other
    sampling: SolverConfig = SolverConfig()
    precision: Literal["fp32", "bf16"] = "fp32"

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
    tokenizer: Path | None = None  # decodes; None = the one that the records of the transformer lead to
    guide: Path | None = None  # a weaker transformer: autoguidance by it instead of the null class
    batch_size: Positive = 64
    npz: bool = False  # also write samples.npz (arr_0, shuffled)
    trajectory_images: NonNegative = 4  # so many images are shown on their way, in trajectory.png; 0 = none

    @model_validator(mode="after")
    def _guide_is_used(self) -> Self:
        if self.guide is not None and self.sampling.guidance_scale == 1:
            raise ValueError("a guide does nothing at guidance_scale 1; set sampling.guidance_scale, 2.0 for example")
        return self


# --- report -------------------------------------------------------------------------------------------------------


class FeatureNetworksConfig(Section):
    """The networks in whose features generated and real images are compared; what is not given is not measured.

    Grey pixels are compared in any case: they need no network, and tell small pictures apart.
    """

    inception_weights: Path | None = None  # for FID, sFID, ...: pt_inception-2015-12-05-6726825d.pth, or "download"
    dinov2: Source | None = None  # for FD-DINOv2: dinov2-large, as a short name, hub id or folder
    foundation: Source | None = None  # any vision transformer: folder, hub id or short name


class EvaluateConfig(FeatureNetworksConfig, MeasureTokenizerConfig):
    """Measure generated images, and the tokenizer that decoded them, and write the report."""

    output: Path = Path("runs/report")
    samples: Path = Path("runs/samples")  # of 'alight sample', any folder of images, or a .npz with arr_0
    pipeline: Path | None = None  # generate from this one while measuring, instead of reading samples
    draw: DrawConfig = DrawConfig()  # what to generate from the pipeline
    tokenizer: Path | None = None  # also measure what it reconstructs; None = do not
    transformer: Path | None = None  # also show how it was trained; None = do not
    latents: Path | None = None  # also describe these latents; None = do not
    density_runs: NonNegative = 0  # t-SNE maps of them that the density figures are averaged over; 0 = none
    reference: Path | None = None  # a .npz of statistics, or of 'alight evaluate reference'; None = training images
    neighbours: NonNegative = 8  # so many generated images are shown beside their nearest training images
    npz: bool = False  # also write samples.npz (arr_0, shuffled), which the ADM evaluator reads


class EvaluateReferenceConfig(FeatureNetworksConfig, Job):
    """Measure real images once, so that generated ones can be held against them many times."""

    output: Path = Path("runs/reference")
    images: ImagesConfig = ImagesConfig()
    split: Literal["train", "held_out", "all"] = "train"
    latents: Path | None = None  # measure what these latents decode to, instead of the images
    tokenizer: Path | None = None  # decodes them; None = the one that they were made with
    keep_features: NonNegative = 10_000  # of so many images, for precision, recall and the like; 0 = none
    batch_size: Positive = 64

    @model_validator(mode="after")
    def _tokenizer_decodes(self) -> Self:
        if self.tokenizer is not None and self.latents is None:
            raise ValueError("a tokenizer decodes latents; name their folder in latents, or leave tokenizer out")
        return self


class TuneConfig(FeatureNetworksConfig, Job):
    """Try sampling settings on the same noise and labels, and find the best for every cost."""

    output: Path = Path("runs/tune")
    pipeline: Path = Path("runs/quickstart/pipeline")
    images: ImagesConfig = ImagesConfig()  # whose training images are the reference, where none is given
    reference: Path | None = None  # a .npz of statistics, or of 'alight evaluate reference'
    measure: Literal["auto", "inception", "dinov2", "foundation", "grey_pixels"] = "auto"  # auto = the first at hand
    draw: DrawConfig = DrawConfig(samples_per_class=50)  # labels, and the settings that the search begins with
    guidance_scales: tuple[GuidanceScale, ...] = (1.0, 1.5, 2.0, 3.0, 4.0)
    guidance_intervals: tuple[tuple[Fraction, Fraction], ...] = ((0.0, 1.0), (0.1, 1.0), (0.2, 1.0))
    timestep_shifts: tuple[TimestepShift, ...] = (1.0, 0.5, 0.3)
    solvers: tuple[str, ...] = ("euler", "heun")
    steps: tuple[Steps, ...] = (10, 25, 50)
    search: Literal["stepwise", "grid"] = "stepwise"  # one setting after the other, keeping the best; or all together
    store: bool = True  # write the best settings into the pipeline, where from_pretrained finds them
    batch_size: Positive = 64

    @model_validator(mode="after")
    def _something_to_try(self) -> Self:
        for solver in self.solvers:
            require_solver(solver)
        grids = (self.guidance_scales, self.guidance_intervals, self.timestep_shifts, self.solvers, self.steps)
        if not all(grids):
            raise ValueError("every list of settings needs at least one entry; give the one value to keep")
        return self
