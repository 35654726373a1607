"""A study of small networks and few steps, on bright and dark images; a run of it takes a second."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from alight.config import FrontierStudyConfig
from alight.config.recipes import validate
from helpers import warm

VIT = {"hidden_size": 24, "num_layers": 1, "num_heads": 2, "patch_size": 8}
SHORT: dict[str, Any] = {  # runs that take a second
    "images": {"size": 32, "held_out_fraction": 0.3},
    "foundation": {"model": VIT, "training": {"steps": 2, "global_batch_size": 8, "ema_decay": None}},
    "observer": {
        "task": "masked_autoencoder",
        "model": VIT,
        "training": {"steps": 2, "global_batch_size": 8, "ema_decay": None},
    },
    "tokenizer": {
        "model": {
            "block_out_channels": [8, 8, 8, 8],
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "level_attention": False,
            "mid_block_attention": False,
        },
        "reconstruction": {"perceptual_weight": 0, "adversarial_weight": 0},
        "training": {"steps": 3, "global_batch_size": 4, "ema_decay": None},
        "preview_images": 0,
    },
    "latents": {"flips": False},
    "transformer": {
        "model": {"preset": None, "hidden_size": 24, "num_layers": 1, "num_heads": 2, "patch_size": 1},
        "training": {"steps": 4, "global_batch_size": 4, "ema_decay": 0.5},
        "sample_images": 0,
    },
    "samples": {"samples_per_class": 4, "sampling": {"num_inference_steps": 2}, "trajectory_images": 0},
    "report": {"density_runs": 0, "neighbours": 0},
    "measurements": 2,
}
FRONTIER = SHORT | {"job": "study frontier", "latent_channels": [4, 8], "seeds": 1, "seeds_at_widest": 2}
ABLATION = SHORT | {
    "job": "study ablation",
    "seeds": 2,
    "transformer": SHORT["transformer"]
    | {"training": SHORT["transformer"]["training"] | {"power_averages": [0.1, 0.2], "snapshot_every": 1}},
    "alone": {
        "no alignment": {"tokenizer.alignment.foundation": None},
        "another solver": {"samples.sampling.solver": "ucgm"},
        "another average": {"samples.average": 0.2},
        "trained on": {"transformer.init_from": "unchanged"},
    },
    "cumulated": {
        "uniform times": {"transformer.flow.time_sampling": "uniform"},
        "and no direction loss": {"transformer.flow.cosine_weight": 0},
    },
}


def draw_pictures(folder: Path) -> Path:
    """Bright and dark images, thirty of each."""
    rng = np.random.default_rng(0)
    for label, level in (("bright", 200), ("dark", 40)):
        (folder / label).mkdir()
        for number in range(30):
            pixels = (level + rng.normal(0, 10, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:02d}.png")
    return folder


def write_recipe(path: Path, values: dict[str, Any], pictures: Path) -> Path:
    """A recipe with these images."""
    images = values["images"] | {"source": str(pictures)}
    path.write_text(yaml.safe_dump(values | {"images": images}, sort_keys=False))
    return path


def frontier_config(**changes: Any) -> FrontierStudyConfig:
    """The configuration of the frontier."""
    values = {key: value for key, value in FRONTIER.items() if key != "job"}
    return validate(FrontierStudyConfig, values | changes, "test")


def without_times(folder: Path) -> dict[str, Any]:
    """The report of a study but for its times, and for where it is."""
    text = (folder / "report" / "report.json").read_text().replace(str(folder), "FOLDER")
    return {key: value for key, value in json.loads(text).items() if key not in ("stages", "seconds_total")}


def files_of(folder: Path) -> int:
    """The number of files below a folder, some of which may go meanwhile."""
    return sum(len(files) for _, _, files in os.walk(folder))


def children_of(process: int) -> list[str]:
    """The numbers of a process's children, of whichever thread."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [child for each in lists for child in each.read_text().split()]


@contextmanager
def running(*arguments: object) -> Iterator[warm.AlightProcess]:
    """A command in a process of its own, which does not outlive the block."""
    process = warm.AlightProcess([str(argument) for argument in arguments])
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)


def lives(process: str) -> bool:
    """True if a process of this number runs; one that has ended may wait for its parent as a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
