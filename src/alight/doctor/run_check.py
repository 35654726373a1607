"""Is a training run on its way: its log, its latents, its configuration, and its loss beside a known curve."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from alight.artifacts import MANIFEST, differences, is_complete
from alight.data.latents import LatentDataset
from alight.doctor.findings import Finding
from alight.doctor.training_log import Line, series, symptoms
from alight.models.vavae import MEAN_LIMIT, SIZE_LIMIT
from alight.recipes import find_recipe, load_config, recipes_folder
from alight.runtime.errors import InputError
from alight.training.checkpoint import list_checkpoints
from alight.training.tracking import LOG_FILE, read_log

# (step, MSE of the velocity) where published logs and users' reports tell it, for the released tokenizer's latents
KNOWN_CURVES = {
    "imagenet/transformer_xl_64ep": ((1_000, 0.385), (80_000, 0.305)),
    "imagenet/transformer_xl_800ep": ((1_000, 0.385), (80_000, 0.305)),
    "imagenet/transformer_b_160ep": ((100_000, 0.31), (200_000, 0.31)),
}
BAND = 0.02  # about a known curve
RECENT = 10  # the last tenth of the log is averaged
LATENTS = 256  # that are looked at


def run_findings(folder: Path, recipe: str | None) -> Iterator[Finding]:
    """Everything about one run.

    Args:
        folder: of the run, finished or not; or its `training` folder.
        recipe: that the run is meant to follow.

    Raises:
        InputError: there is no log.
    """
    place = next((each for each in (folder / "training", folder) if (each / LOG_FILE).is_file()), None)
    lines = read_log(place) if place is not None else []
    if place is None or not lines:
        raise InputError(
            f"There is no training log in {folder}: neither training/{LOG_FILE} nor {LOG_FILE} has a line. Give the "
            "--output of a training run."
        )
    yield Finding("ok", "log", f"{len(lines):,} lines up to step {int(lines[-1]['step']):,}.")
    yield from symptoms(lines)
    config = run_config(folder, place)
    if config is not None and "latents" in config and Path(config["latents"]).is_dir():
        yield normalisation(Path(config["latents"]))
    if recipe is not None:
        yield from configuration(config, recipe)
        yield from known_curve(lines, recipe)


def run_config(folder: Path, place: Path) -> dict[str, Any] | None:
    """The configuration of a run: of the artifact, else of its newest checkpoint, which is mapped and not read."""
    if is_complete(folder):
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["config"]
    checkpoints = list_checkpoints(place)
    if not checkpoints:
        return None
    return torch.load(checkpoints[-1][1], map_location="cpu", mmap=True, weights_only=True)["config"]


def normalisation(folder: Path) -> Finding:
    """Latents as training reads them have mean 0 and size 1."""
    dataset = LatentDataset(folder)
    step = max(len(dataset) // LATENTS, 1)
    latents = dataset.gather(list(range(0, len(dataset), step))[:LATENTS]).latents.double()
    mean = latents.mean(dim=(0, 2, 3)).square().mean().sqrt().item()
    size = latents.square().mean().sqrt().item()
    sentence = f"Normalised, {len(latents)} of {folder} have mean {mean:.2g} and size {size:.3g}"
    if mean <= MEAN_LIMIT and 1 / SIZE_LIMIT <= size <= SIZE_LIMIT:
        return Finding("ok", "latents", f"{sentence}.")
    mend = "Extract them again with 'alight latents extract --statistics data'."
    return Finding("problem", "latents", f"{sentence}, instead of 0 and 1.", mend)


def configuration(config: Mapping[str, Any] | None, recipe: str) -> Iterator[Finding]:
    """Every key in which the run is not as the recipe."""
    wanted = load_config(recipe).model_dump(mode="json")
    if config is None:
        mend = "Look again when the first checkpoint is written."
        yield Finding("warning", "configuration", "The run has no checkpoint yet that says its configuration.", mend)
    elif config.keys() != wanted.keys():
        mend = "Give the recipe that the run was started with."
        yield Finding("problem", "configuration", f"The run is of another command than the recipe {recipe}.", mend)
    elif different := differences(wanted, config):
        yield from (Finding("warning", "configuration", f"{each} (recipe -> run).") for each in different)
    else:
        yield Finding("ok", "configuration", f"As in the recipe {recipe}.")


def known_curve(lines: Sequence[Line], recipe: str) -> Iterator[Finding]:
    """The end of the log beside what is known of this recipe, on a line over the logarithm of the step."""
    path = find_recipe(recipe).resolve()
    known = {(recipes_folder() / f"{name}.yaml").resolve(): curve for name, curve in KNOWN_CURVES.items()}
    curve, values = known.get(path), series(lines, "mse")
    if curve is None or not values:
        return
    last = values[-max(len(values) // RECENT, 1) :]
    step, found = last[-1][0], fmean(value for _, value in last)
    (first_step, first), (last_step, final) = curve
    if not first_step <= step <= last_step:
        sentence = f"Nothing is known of step {step:,}; between {first_step:,} and {last_step:,} it would be."
        yield Finding("ok", "known curve", sentence)
        return
    expected = first + (final - first) * math.log(step / first_step) / math.log(last_step / first_step)
    sentence = f"mse is {found:.3f} about step {step:,}, where {expected:.3f} is known"
    if abs(found - expected) <= BAND:
        yield Finding("ok", "known curve", f"{sentence}.")
    elif found > expected:
        mend = "Look at the differences of the configuration, and at the latents."
        yield Finding("problem", "known curve", f"{sentence}; it should be within {BAND}.", mend)
    else:
        mend = "Lower is not better: latents of another tokenizer, or of another normalisation, are easier to predict."
        yield Finding("warning", "known curve", f"{sentence}; it should be within {BAND}.", mend)
