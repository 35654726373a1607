"""Averages of different lengths as an axis of a search: the weights of a transformer, combined from snapshots."""

from __future__ import annotations

from torch import Tensor

from alight.config import SolverConfig, TuneConfig
from alight.config.training import AveragingWidth
from alight.models.pretrained import load_strictly
from alight.models.weight_files import weights_hash
from alight.pipelines import LightningDiTPipeline
from alight.runtime.errors import InputError
from alight.stages.average import open_run
from alight.training.average_snapshots import reconstruct, snapshots_until


class AveragedSettings(SolverConfig):
    """Settings of sampling, and the average of the weights to sample with; None = the pipeline's own weights."""

    average: AveragingWidth | None = None

    def __str__(self) -> str:
        own = "own weights" if self.average is None else f"average {self.average:g}"
        return f"{super().__str__()}, {own}"


def average_of(settings: SolverConfig) -> float | None:
    """The width of the average that settings ask for; None = the pipeline's own weights."""
    return settings.average if isinstance(settings, AveragedSettings) else None


def without_average(settings: SolverConfig) -> SolverConfig:
    """The settings that a pipeline can be called with."""
    return SolverConfig.model_validate(settings.model_dump(exclude={"average"}))


class PipelineAverages:
    """The transformer of a pipeline with its own weights, or with an average of the run that it comes from.

    Args:
        config: of the search; without `averages` nothing is opened or copied.
        pipeline: of the search, whose transformer is changed in place.

    Raises:
        InputError: the run is not there, is not that of the pipeline, holds no usable snapshots, or they cannot give
            one of the widths.
    """

    def __init__(self, config: TuneConfig, pipeline: LightningDiTPipeline) -> None:
        self._transformer = pipeline.transformer
        self._current: float | None = None
        self._own: dict[str, Tensor] = {}
        self.identity: dict[str, str] = {}  # of the run, where averages are tried
        if not any(config.averages):
            return
        folder = config.averages_of or config.pipeline.parent / "transformer"
        run = open_run(folder)
        if weights_hash(config.pipeline / "transformer") != run.artifact.hash:
            raise InputError(
                f"The transformer of the pipeline in {config.pipeline} is not the finished one in {folder}, so its "
                "averages are of another run. Name the folder of the pipeline's run with --averages-of."
            )
        self._snapshots = run.snapshots
        _, self._step = snapshots_until(self._snapshots, None)
        self.identity = {"averages": f"{run.artifact.hash} at step {self._step}"}
        self._own = {name: value.cpu().clone() for name, value in self._transformer.state_dict().items()}
        for width in config.averages:  # before any work, so that a width out of reach costs none
            self.use(width)
        self.use(None)

    def use(self, width: float | None) -> None:
        """Give the transformer the weights of an average, or its own."""
        if width != self._current:
            weights = self._own if width is None else reconstruct(self._snapshots, width).weights
            load_strictly(self._transformer, weights, "the snapshots of the pipeline's run")
            self._current = width

    def hashes(self, width: float | None) -> dict[str, str]:
        """The identity of the transformer where it is not that of the pipeline's file."""
        return {} if width is None else {"transformer": f"average of width {width:g} of {self.identity['averages']}"}
