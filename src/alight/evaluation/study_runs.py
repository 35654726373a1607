"""The runs of a finished study, as a meter needs them: a tokenizer each, and how well its transformer generates."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alight.artifacts import is_complete, read_manifest
from alight.config import ImagesConfig
from alight.config.recipes import validate
from alight.runtime.errors import InputError
from alight.runtime.reading import read_json_object

FEWEST_SETTINGS = 3  # that have a rank correlation
RUNS, REPORT = "runs", "report.json"
FOLDER = re.compile(r"(.+)-seed(\d+)")
TARGETS = {  # figures of generation in the last report of a run -> (name, sign that makes more better)
    "generated_label_accuracy": ("label accuracy", 1),
    "frechet_distance_observer": ("observer's distance", -1),
}
PLACES = ("output", "seed", "device", "latents", "tokenizer")  # keys in which transformers of one budget differ


@dataclass(frozen=True)
class StudyRun:
    """A run with a tokenizer of its own.

    Attributes:
        setting: its name, as in the folder's.
        seed: of all its jobs.
        tokenizer: folder.
        hash: of its weights.
        images: that samples were compared with.
        generation: figure of `TARGETS` -> value, as far as it was measured.
        transformer: configuration of its training, without what differs between runs of one budget.
    """

    setting: str
    seed: int
    tokenizer: Path
    hash: str
    images: ImagesConfig
    generation: dict[str, float]
    transformer: dict[str, Any]


def read_runs(study: Path) -> list[StudyRun]:
    """Every finished run of a study's folder that has trained a tokenizer, seed by seed.

    Runs that share the tokenizer of another setting are left out, since they differ in something else, and so are
    those whose tokenizer came out equal to that of another run.

    Raises:
        InputError: the folder holds no study, or no finished run.
    """
    folders = sorted((study / RUNS).glob("*-seed*")) if (study / RUNS).is_dir() else []
    steps = [int(place.name) for folder in folders for place in (folder / "report").glob("*") if place.name.isdigit()]
    if not steps:
        raise InputError(
            f"{study} holds no runs of a study. Give the folder of 'alight study frontier' or 'alight study ablation' "
            "whose runs are still in it."
        )
    every = [run for folder in folders for run in _run(folder, max(steps))]
    runs = list({run.hash: run for run in reversed(every)}.values())  # one of those that agree to the last bit
    if len({run.setting for run in runs}) < FEWEST_SETTINGS:
        raise InputError(
            f"{study} has finished runs of {len({run.setting for run in runs})} settings with a tokenizer of their "
            "own, and a rank correlation needs three. Let the study end, or give one with more tokenizers."
        )
    return sorted(runs, key=lambda run: (run.seed, run.setting))


def _run(folder: Path, step: int) -> Iterator[StudyRun]:
    """The run in a folder, if it is finished and has a tokenizer."""
    found, report = FOLDER.fullmatch(folder.name), folder / "report" / f"{step:07d}"
    parts = [folder / "tokenizer", folder / "transformer", report]
    if found is None or not all(map(is_complete, parts)):
        return
    record = read_manifest(report)
    values = read_json_object(report / REPORT, "Delete its folder; the study makes it again.")
    generation = {key: float(values[key]) for key in TARGETS if isinstance(values.get(key), int | float)}
    images = validate(ImagesConfig, record.config["images"], str(report))
    transformer = {key: value for key, value in read_manifest(parts[1]).config.items() if key not in PLACES}
    digest = read_manifest(parts[0]).hash
    yield StudyRun(found[1], int(found[2]), folder / "tokenizer", digest, images, generation, transformer)
