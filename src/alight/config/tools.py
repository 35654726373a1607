"""The configuration of the tools around the arrow: tuning, converting, sharing, planning, timing, serving."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, field_serializer, model_validator

from alight.config.base import (
    AtLeastOne,
    Device,
    Fraction,
    ImagesConfig,
    Job,
    NonNegative,
    NonNegativeReal,
    Positive,
    PositiveReal,
    Section,
    Size,
    Source,
)
from alight.config.evaluation import FeatureNetworksConfig
from alight.config.sampling import DrawConfig, GuidanceScale, Steps, TimestepShift, TimeWarp
from alight.config.training import AveragingWidth
from alight.options import (
    AUTO,
    MEAN_SOLVER,
    PUBLISHED_KAPPA,
    SDE_SOLVERS,
    AcceleratorPart,
    FixedPrecision,
    Precision,
    require_solver,
)


class TuneConfig(FeatureNetworksConfig, Job):
    """Try sampling settings on the same noise and labels, and find the best for every cost.

    Only listed values are tried. Best settings whose figures cannot be compared, as those of too few images, are not
    stored. An interrupted search goes on with the same command.
    """

    output: Path = Path("runs/tune")
    pipeline: Path = Path("runs/quickstart/pipeline")
    images: ImagesConfig = ImagesConfig()  # its training images are the reference if none is given
    reference: Path | None = None  # a .npz of statistics, or of 'alight evaluate reference'
    measure: Literal["auto", "inception", "dinov2", "foundation", "grey_pixels"] = "auto"  # auto = the first available
    draw: DrawConfig = DrawConfig(samples_per_class=50)  # labels; the search begins nearest to its sampling
    guidance_scales: tuple[GuidanceScale, ...] = (1.0, 1.5, 2.0, 3.0, 4.0)
    guidance_intervals: tuple[tuple[Fraction, Fraction], ...] = ((0.0, 1.0), (0.1, 1.0), (0.2, 1.0))
    internal_scales: tuple[GuidanceScale, ...] = (1.0,)  # of a transformer with an auxiliary output: 1.0 1.2 1.4 1.7
    internal_intervals: tuple[tuple[Fraction, Fraction], ...] = ((0.0, 1.0),)
    timestep_shifts: tuple[TimestepShift | Literal["auto"], ...] = (1.0, 0.5, 0.3)  # auto is refused: give its value
    time_warps: tuple[TimeWarp | None, ...] = (None,)  # in place of the shifts; None = the shifts
    solvers: tuple[str, ...] = ("euler", "heun")
    kappas: tuple[Fraction, ...] = (PUBLISHED_KAPPA,)  # of ucgm alone
    steps: tuple[Steps, ...] = (10, 25, 50)
    averages: tuple[AveragingWidth | None, ...] = ()  # widths of averages of the weights; None = the pipeline's own
    averages_of: Path | None = None  # the run with their snapshots; None = the folder transformer beside the pipeline
    search: Literal["stepwise", "grid"] = "stepwise"  # one setting after the other, keeping the best; or all together
    within: NonNegativeReal = 0.0  # take the cheapest settings whose distance is at most this share above the lowest
    store: bool = True  # write the best settings into the pipeline, where from_pretrained finds them
    batch_size: Positive = 64

    @model_validator(mode="after")
    def _something_to_try(self) -> Self:
        for solver in self.solvers:
            require_solver(solver)
        if MEAN_SOLVER in self.solvers and {*self.guidance_scales, *self.internal_scales} != {1.0}:
            raise ValueError(
                "the solver mean takes no guidance; give guidance_scales and internal_scales of 1 with it"
            )
        one, listed = self.draw.sampling.timestep_shift == AUTO, AUTO in self.timestep_shifts
        if one or listed:
            name = "draw.sampling.timestep_shift" if one else "timestep_shifts"
            raise ValueError(
                f"{name} auto is none of the numbers that are tried; leave it out, and list its value, the root of "
                "4096 / (channels * height * width) of the latents, in timestep_shifts"
            )
        last, warps = self.draw.sampling.last_time, any(warp is not None for warp in self.time_warps)
        others = [solver for solver in self.solvers if solver in (*SDE_SOLVERS, MEAN_SOLVER)]
        if last != 1 and (others or warps):
            wrong = " and ".join([f"solvers {', '.join(others)}"] * bool(others) + ["time_warps"] * warps)
            raise ValueError(
                f"last_time is for ODE solvers without a time_warp; leave out draw.sampling.last_time {last:g}, or "
                f"{wrong}"
            )
        guidance = (self.guidance_scales, self.guidance_intervals, self.internal_scales, self.internal_intervals)
        if not all((*guidance, self.timestep_shifts, self.time_warps, self.solvers, self.kappas, self.steps)):
            raise ValueError("every list of settings needs at least one entry; give the one value to keep")
        if self.averages_of is not None and not any(self.averages):
            raise ValueError("averages_of is about averages; give their widths, such as [0.05, 0.1], too")
        return self


class AverageConfig(Section):
    """Choose the length of the average of a transformer's weights after it was trained.

    The run must have kept snapshots of its averages (`training.power_averages`). Nothing is trained.
    """

    run: Path = Path("runs/transformer")  # of 'alight transformer train', finished or not
    width: AveragingWidth | None = None  # of the average as a share of the training, such as 0.08; always needed
    step: Positive | None = None  # where the average ends; None = at the last snapshot
    output: Path = Path("runs/averaged")


class ConvertConfig(Section):
    """Bring published files in as artifacts, or write artifacts in the published layout."""

    kind: Literal["transformer", "tokenizer", "latents"] = "transformer"  # content of the source
    to: Literal["alight", "published"] = "alight"  # alight: a published file in; published: an artifact back out
    source: Path | None = None  # a checkpoint, a hub id, or a folder: shards, diffusers', an artifact; always needed
    output: Path = Path("runs/converted")  # a folder; of weights to the published layout, a file
    weights: Literal["ema", "model"] | None = None  # of a transformer file; None = ema where it is there
    num_heads: Positive | None = None  # of a transformer file that does not tell
    auxiliary_block: Positive | None = None  # likewise: the blocks before its auxiliary output (published: 8)
    num_classes: Positive | None = None  # of latents; None = as far as their labels go
    statistics: Path | None = None  # the latents_stats.pt that belongs to the source
    tokenizer: Path | None = None  # the tokenizer artifact that transformer or latents were made with


class ExportConfig(Section):
    """Put a trained pipeline, or a tokenizer alone, into a folder that others can use, with a model card."""

    pipeline: Path | None = None  # a quickstart's folder, a pipeline, an export, or a tokenizer; or the two below
    transformer: Path | None = None  # a transformer artifact; its records lead to its tokenizer
    tokenizer: Path | None = None  # a tokenizer artifact; without a transformer it is exported alone
    output: Path = Path("runs/export")
    name: str | None = None  # of the model, in its card; None = the folder's
    license: str | None = None  # of the weights, as the hub spells it: mit, apache-2.0, cc-by-nc-4.0, ...; None = open
    samples: Path | None = None  # a samples artifact to show; None = the one beside the transformer
    report: Path | None = None  # a report whose figures the card shows; None = the one beside the transformer
    images: Source | None = None  # reconstruct some of these in the card; None = where they are embedded ones
    reconstructions: NonNegative = 8  # number of reconstructions in the card; 0 = none
    push_to_hub: str | None = None  # OWNER/NAME: also upload the folder to the Hugging Face hub
    private: bool = True  # create the repository as private if it does not exist

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.pipeline is not None and (self.transformer is not None or self.tokenizer is not None):
            raise ValueError("give the pipeline's folder, or transformer and tokenizer, not both")
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise ValueError(
                f"license '{self.license}' is not an identifier of the hub; give mit or cc-by-nc-4.0, for example"
            )
        if self.push_to_hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub):
            raise ValueError(f"push_to_hub '{self.push_to_hub}' is not a repository of the hub; give OWNER/NAME")
        return self


class ReportConfig(Section):
    """Show the figures of finished reports with their conditions, several side by side."""

    folders: AtLeastOne[Path] = (Path("runs/report"),)  # reports, or folders with one in `report`


class InfoConfig(Section):
    """Describe a file or folder, and how it was made."""

    path: Path | None = None  # an artifact, a run, a PNG or npz, a checkpoint, a recipe, ...; always needed


class InfoImagesConfig(Section):
    """Describe the images of a folder, list, tars or table: classes, sizes, duplicates, skipped files."""

    source: Source = "images"  # as images.source of the other commands
    unconditional: bool = False  # take everything as one class, whatever its folders or labels
    image_column: str | None = None  # of a list, tars or a table: where the images are; None = found by name or type
    label_column: str | None = None  # likewise, where the labels are; None = found, or none


class BenchConfig(Section):
    """Time the library against a plain version of the same mathematics."""

    work: AtLeastOne[Literal["train", "sample", "read", "extract", "tokenizer"]] = (
        "train",
        "sample",
        "read",
    )  # the jobs to time
    device: Device = "cpu"
    preset: str | None = None  # size of the model; None = S/1 on a CPU and XL/1 on a GPU
    precisions: AtLeastOne[FixedPrecision] = ("fp32", "bf16")  # one table section each
    train_batch: Positive | None = None  # None = 8 on a CPU and 32 on a GPU
    sample_batch: Positive | None = None  # None = 1 on a CPU and 32 on a GPU
    sample_steps: Positive = 49  # model calls; 49 is what the published code calls 50 steps
    rounds: Positive = 5  # timed runs of each contender, interleaved
    compile: bool = False  # with compiled blocks too; the first run of each takes about a minute
    threads: Positive | None = None  # of the CPU; None = torch's choice
    tokenizer_image_size: Positive | None = None  # None = 128 on a CPU and 256 on a GPU
    latents: Positive = 4096  # number that the reading benchmark stores in a temporary folder, 32 KiB each
    images: Positive = 256  # number of JPEG files that the extraction benchmark stores in one
    write: bool = False  # append the table to benchmarks/RESULTS.md


class BenchAcceleratorConfig(Section):
    """Measure training, sampling and encoding at the published sizes on one device, in under 15 minutes on a GPU."""

    parts: AtLeastOne[AcceleratorPart] = get_args(AcceleratorPart)  # of the measurement, in their order
    device: Device = "auto"
    dry_run: bool = False  # every part at toy size, on any device
    minutes: PositiveReal = 14.0  # a part that would begin later is left out, and the record says so
    write: bool = False  # append the table to benchmarks/RESULTS.md


class PlanConfig(Section):
    """Estimate the time of a recipe on this machine from a short measured run; --json for programs.

    Of training it also estimates the memory, and of a whole arrow the time of every stage. A part that is not there
    yet has the size that its recipe gives it.
    """

    recipe: Source | None = None  # a file or a shipped name; always needed
    processes: Positive = 1  # that will share the batch, on as many machines or devices like this one
    seconds: PositiveReal = 60.0  # about how long to measure in all; a model too large for that is measured in part
    device: Device | None = None  # None = the recipe's
    latent_shape: tuple[Size, Size, Size] | None = None  # channels, height, width, of latents that are not there yet
    num_classes: Positive | None = None  # likewise; None = of the recipe that makes the latents, or ImageNet's
    num_images: Positive | None = None  # of an epoch; None = of the recipe's data, or ImageNet's if not there yet


class DoctorConfig(Section):
    """Check the installation, and a recipe, a run or a tokenizer, and name the remedy; --json for programs."""

    recipe: Source | None = None  # also check that it loads and has what it needs, and compare the run with it
    run: Path | None = None  # a training run, finished or not: look for trouble in its log
    tokenizer: Path | None = None  # encode and decode images with it; a folder, a hub id or a published checkpoint
    images: Source | None = None  # a folder, or anything that images.source may be
    num_images: Annotated[int, Field(ge=1, le=100_000)] = 16  # number of images to encode and decode
    output: Path = Path("runs")  # the folder that results will be written to
    network: bool = False  # also test the connection to the Hugging Face hub
    device: Device = "auto"

    @model_validator(mode="after")
    def _images_and_tokenizer(self) -> Self:
        if self.tokenizer is not None and self.images is None:
            raise ValueError("a tokenizer is tried on images; name them, too: --images FOLDER")
        if self.images is not None and self.tokenizer is None:
            raise ValueError("images are what a tokenizer is tried on; name it, too: --tokenizer FOLDER")
        return self


class ServeConfig(Section):
    """Try a pipeline in the browser: generate, reconstruct, look at latents, compare.

    The folder may stand first, without its option: alight serve runs/quickstart
    """

    pipeline: Path | None = None  # of a quickstart, a pipeline or an export; always needed
    compare: Path | None = None  # another one, to see both make images of the same seeds
    compare_tokenizer: Path | None = None  # another tokenizer, to see both reconstruct; a folder or a published file
    foundation: Source | None = None  # its features are shown beside latents; None = the quickstart's own, if any
    host: str = "127.0.0.1"  # this machine alone; 0.0.0.0 = every machine that can reach it
    port: Annotated[int, Field(ge=0, le=65535)] = 7860  # 0 = a free one
    user: str | None = None  # ask every visitor for this name and the password
    password: str | None = Field(None, repr=False)  # - = ask for it; better ALIGHT_PASSWORD or the file below
    password_file: Path | None = None  # its only line is the password
    root_path: str | None = None  # path below which a proxy serves the app (/app), or the whole public address
    trusted_proxy: str | None = None  # address of a reverse proxy, which is believed about visitors (X-Forwarded-For)
    max_images: Positive = 64  # in one request
    max_upload_mb: PositiveReal = 20.0  # of the files that are sent at once
    queue_size: Positive = 20  # requests that may wait; further ones are turned away
    batch_size: Positive = 16  # images at a time
    precision: Precision = "auto"  # auto = bf16 on CUDA, fp32 elsewhere
    compile: bool = False  # blocks of the transformers; the first images then take a minute longer
    device: Device = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.user is None and (self.password is not None or self.password_file is not None):
            raise ValueError("give both user and password, or neither")
        if self.password is not None and self.password_file is not None:
            raise ValueError("give password or password_file, not both")
        if self.user == "" or self.password == "" or ":" in (self.user or ""):
            raise ValueError("user and password cannot be empty, and user cannot contain a colon")
        if self.root_path and not re.fullmatch(r"(https?://[^/?#\s\"'<>]+)?(/[\w.~%-]+)*", self.root_path):
            raise ValueError(
                f"root_path '{self.root_path}' is neither a path like /app nor an address like https://x.org/app"
            )
        if self.compare is not None and self.compare == self.pipeline:
            raise ValueError("compare is the pipeline itself; leave it out to compare two settings of one pipeline")
        return self

    @field_serializer("password", when_used="json")
    def _hidden(self, password: str | None) -> str | None:
        """Keep the password out of every log and file that shows the configuration."""
        return None if password is None else "********"
