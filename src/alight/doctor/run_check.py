"""Check a training run: its log, its latents, its configuration, and its loss against a known curve."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from alight.artifacts import differences, is_complete, read_manifest
from alight.config import TokenizerModelConfig, TransformerTrainingConfig
from alight.config.recipes import find_recipe, load_config, recipes_folder
from alight.data.latents import LatentDataset
from alight.doctor.artifact_check import artifact_findings, checkpoint_findings
from alight.doctor.findings import Finding, attempt
from alight.doctor.group_check import group_findings
from alight.doctor.training_log import Line, series, symptoms
from alight.models.tokenizer import MEAN_LIMIT, SIZE_LIMIT
from alight.runtime.errors import InputError
from alight.runtime.run_log import LOG_FILE, read_log
from alight.training.checkpoint import list_checkpoints, read_checkpoint
from alight.training.ema import long_average
from alight.training.longer import TRAINING_FOLDER

# (step, MSE of the velocity) from published logs and users' reports, for the released tokenizer's latents
KNOWN_CURVES = {
    "imagenet/transformer_xl_64ep": ((1_000, 0.385), (80_000, 0.305)),
    "imagenet/transformer_xl_800ep": ((1_000, 0.385), (80_000, 0.305)),
    "imagenet/transformer_b_160ep": ((100_000, 0.31), (200_000, 0.31)),
}
BAND = 0.02  # around a known curve
RECENT = 10  # the last tenth of the log is averaged
LATENTS = 256  # sample size
_NO_LOG = (
    "There is no training log in {folder}: neither training/{log} nor {log} has a line. Give the --output of a "
    "training run."
)


def run_findings(folder: Path, recipe: str | None) -> Iterator[Finding]:
    """Check one run, or all runs in a folder.

    Args:
        folder: of the run, finished or not; its `training` folder; or one that holds runs, such as a quickstart's.
        recipe: to compare the run with.

    Raises:
        InputError: there is no such folder, or no log and no artifact in it.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. Give the --output of a training run.")
    files = list(artifact_findings(folder))
    place = _log_folder(folder)
    below = [each for each in sorted(folder.iterdir()) if each.is_dir() and _log_folder(each) is not None]
    if place is None and (recipe is not None or not (below or files)):
        raise InputError(_NO_LOG.format(folder=folder, log=LOG_FILE))
    if place is not None:
        yield from log_findings(folder, place, recipe)
    else:
        for each in below:
            yield Finding("ok", "run", f"{each}:")
            yield from attempt("run", partial(log_findings, each, _log_folder(each) or each, None))
    yield from files


def log_findings(folder: Path, place: Path, recipe: str | None) -> Iterator[Finding]:
    """Check the log, the checkpoints and the configuration of a run.

    Raises:
        InputError: the log has no line.
    """
    lines = read_log(place)
    if not lines:
        raise InputError(_NO_LOG.format(folder=folder, log=LOG_FILE))
    yield Finding("ok", "log", f"{len(lines):,} lines up to step {int(lines[-1]['step']):,}.")
    yield from symptoms(lines)
    yield from attempt("checkpoints", partial(checkpoint_findings, place))
    config = None
    try:
        config = run_config(folder, place)
    except InputError as error:
        yield Finding("problem", "configuration", str(error))
    if config is not None:
        yield from average_findings(config)
        with suppress(ValueError):  # of another kind of model
            yield from group_findings(TokenizerModelConfig.model_validate(config.get("model")))
        latents = config.get("latents")
        if isinstance(latents, str) and latents and Path(latents).is_dir():
            yield from attempt("latents", lambda: [normalisation(Path(latents))])
    if recipe is not None:
        yield from configuration(config, recipe)
        yield from known_curve(lines, recipe)


def run_config(folder: Path, place: Path) -> dict[str, Any] | None:
    """The configuration of a run: of the artifact, else of its newest checkpoint (memory-mapped).

    Raises:
        InputError: the manifest or the checkpoint cannot be read.
    """
    if is_complete(folder):
        return read_manifest(folder).config
    checkpoints = list_checkpoints(place)
    return read_checkpoint(checkpoints[-1][1], mapped=True, parts=()).get("config") if checkpoints else None


def average_findings(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Warn of an EMA so long that it still contains the initial weights, if the configuration is valid."""
    if "average" in config:  # another one than the EMA
        return
    try:
        complaint = long_average(TransformerTrainingConfig.model_validate(config.get("training")))
    except ValueError:
        return
    if complaint is not None and "task" not in config:  # foundation models are trained without an average
        yield Finding("warning", "EMA", *complaint)


def _log_folder(folder: Path) -> Path | None:
    return next((each for each in (folder / TRAINING_FOLDER, folder) if (each / LOG_FILE).is_file()), None)


def normalisation(folder: Path) -> Finding:
    """Check that latents as training reads them have mean 0 and size 1."""
    dataset = LatentDataset(folder)
    step = max(len(dataset) // LATENTS, 1)
    latents = dataset.gather(list(range(0, len(dataset), step))[:LATENTS]).latents.double()
    mean = latents.mean(dim=(0, 2, 3)).square().mean().sqrt().item()
    size = latents.square().mean().sqrt().item()
    sentence = f"Normalised, {len(latents)} of {folder} have mean {mean:.2g} and size {size:.3g}"
    if mean <= MEAN_LIMIT and 1 / SIZE_LIMIT <= size <= SIZE_LIMIT:
        return Finding("ok", "latents", f"{sentence}.")
    fix = "Extract them again with 'alight latents extract --statistics data'."
    return Finding("problem", "latents", f"{sentence}, instead of 0 and 1.", fix)


def configuration(config: Mapping[str, Any] | None, recipe: str) -> Iterator[Finding]:
    """List every key in which the run differs from the recipe."""
    wanted = load_config(recipe).model_dump(mode="json")
    if config is None:
        fix = "Check again when the first checkpoint is written."
        yield Finding("warning", "configuration", "The run has no checkpoint yet that records its configuration.", fix)
    elif config.keys() != wanted.keys():
        fix = "Give the recipe that the run was started with."
        yield Finding("problem", "configuration", f"The run and the recipe {recipe} are of different commands.", fix)
    elif different := differences(wanted, config):
        yield from (Finding("warning", "configuration", f"{each} (recipe -> run).") for each in different)
    else:
        yield Finding("ok", "configuration", f"As in the recipe {recipe}.")


def known_curve(lines: Sequence[Line], recipe: str) -> Iterator[Finding]:
    """Compare the end of the log with the known curve of this recipe, interpolated over the logarithm of the step."""
    path = find_recipe(recipe).resolve()
    known = {(recipes_folder() / f"{name}.yaml").resolve(): curve for name, curve in KNOWN_CURVES.items()}
    curve, values = known.get(path), series(lines, "mse")
    if curve is None or not values:
        return
    last = values[-max(len(values) // RECENT, 1) :]
    step, found = last[-1][0], fmean(value for _, value in last)
    (first_step, first), (last_step, final) = curve
    if not first_step <= step <= last_step:
        sentence = f"The curve covers steps {first_step:,} to {last_step:,}, and not step {step:,}."
        yield Finding("ok", "known curve", sentence)
        return
    expected = first + (final - first) * math.log(step / first_step) / math.log(last_step / first_step)
    sentence = f"mse is {found:.3f} around step {step:,}, where {expected:.3f} is expected"
    if abs(found - expected) <= BAND:
        yield Finding("ok", "known curve", f"{sentence}.")
    elif found > expected:
        fix = "Check the differences in the configuration, and the latents."
        yield Finding("problem", "known curve", f"{sentence}; it should be within {BAND}.", fix)
    else:
        fix = "Lower is not better: latents of another tokenizer, or of another normalisation, are easier to predict."
        yield Finding("warning", "known curve", f"{sentence}; it should be within {BAND}.", fix)
