"""The first thousand steps of a small tokenizer: one change at a time against the recipe for ten minutes.

    python -m benchmarks.first_steps --images photographs --seeds 0 1 2

Every run is a real `alight tokenizer train` without alignment, measured on held-out images: PSNR, the colours kept
(mean chroma of the reconstructions over that of the images), and the brightness that tiles of black, grey and white
decode to. Budgets are counted in images, so that batches of different sizes have seen the same; the seconds stand
beside them.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alight.config import TrainTokenizerConfig
from alight.config.recipes import load_config, override, validate
from alight.data.image_dataset import ImageDataset
from alight.data.loading import open_dataset
from alight.metrics import psnr
from alight.models.vavae import VAVAE
from alight.runtime.pixels import to_uint8, unit_range
from alight.stages import train_tokenizer

BUDGETS = (1_200, 4_000)  # images: 300 and 1,000 steps of 4
HELD_OUT = 64  # images
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "the recipe": {},
    "random initial encoder": {"model.initial_encoder": "random"},
    "learning rate 2e-3": {"optimizer.lr": 2e-3},
    "learning rate 2e-4": {"optimizer.lr": 2e-4},
    "constant learning rate": {"optimizer.schedule": "constant"},
    "warm-up of 100 steps": {"optimizer.warmup_steps": 100},
    "betas 0.5, 0.9": {"optimizer.betas": [0.5, 0.9]},
    "batches of 16": {"training.global_batch_size": 16},
    "one channel per group at the top": {"model.norm_num_groups": 16},
    "2 groups": {"model.norm_num_groups": 2},
    "twice as wide": {"model.block_out_channels": [32, 64, 128, 128]},
    "two blocks per level": {"model.layers_per_block": 2},
    "32 latent channels": {"model.latent_channels": 32},
    "8 latent channels": {"model.latent_channels": 8},
    "KL weight 1e-4": {"reconstruction.kl_weight": 1e-4},
    "as before": {
        "model.initial_encoder": "random",
        "model.norm_num_groups": 16,
        "optimizer.lr": 2e-3,
        "optimizer.schedule": "constant",
        "training.global_batch_size": 16,
    },
}


class Scores(NamedTuple):
    """Scores of one run."""

    psnr: float
    colours: float
    black: float
    grey: float
    white: float
    seconds: float


def main() -> None:
    """Run the variants and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="photographs", help="photographs, or a folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), help="images seen")
    parser.add_argument("--recipe", default="own_images/quick")
    arguments = parser.parse_args()
    print("| change | images seen | PSNR in dB | colours kept | black, grey, white tile | seconds |")
    print("|---|---|---|---|---|---|")
    for name in arguments.variants:
        for budget in arguments.budgets:
            where = arguments.recipe, arguments.images
            runs = [train(*where, VARIANTS[name], budget, seed) for seed in arguments.seeds]
            print(f"| {name} | {budget:,} | {in_words(runs)} |", flush=True)


def in_words(runs: list[Scores]) -> str:
    """Means over seeds, with the range of PSNR."""
    mean = Scores(*(statistics.fmean(values) for values in zip(*runs, strict=True)))
    low, high = min(run.psnr for run in runs), max(run.psnr for run in runs)
    tiles = ", ".join(f"{value:+.2f}" for value in (mean.black, mean.grey, mean.white))
    return f"{mean.psnr:.1f} ({low:.1f} to {high:.1f}) | {mean.colours:.2f} | {tiles} | {mean.seconds:.0f}"


def train(recipe: str, images: str, changes: Mapping[str, Any], budget: int, seed: int) -> Scores:
    """Train a tokenizer of the recipe with some changes on that many images, and measure it."""
    arrow = load_config(recipe)
    values = arrow.tokenizer.model_dump(mode="json")
    values["images"] = arrow.images.model_dump(mode="json") | {"source": images}
    settings = {"alignment.foundation": None, "preview_images": 0, "seed": seed, **changes}
    for dotted, value in settings.items():
        override(values, dotted, value)
    with tempfile.TemporaryDirectory() as folder:
        values["output"] = str(Path(folder) / "tokenizer")
        steps = budget // values["training"]["global_batch_size"]
        values["training"] |= {"steps": steps, "checkpoint_every": steps, "log_every": steps}
        config = validate(TrainTokenizerConfig, values, recipe)
        artifact = train_tokenizer.run(config)
        vae = VAVAE.from_pretrained(artifact.path).eval()
        return measure(vae, open_dataset(config.images, "held_out", augment=False), artifact.seconds)


@torch.no_grad()
def measure(vae: VAVAE, dataset: ImageDataset, seconds: float) -> Scores:
    """Reconstruct some held-out images, and tiles of one colour."""
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:HELD_OUT].tolist()
    images = unit_range(torch.stack([dataset[index].image for index in chosen]))
    decoded = decode(vae, images).clamp(-1, 1)
    tiles = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, *images.shape[1:])
    brightness = decode(vae, tiles).mean(dim=(1, 2, 3)).tolist()
    colours = float(chroma(decoded) / chroma(images))
    return Scores(float(psnr(to_uint8(decoded), to_uint8(images)).mean()), colours, *brightness, seconds)


def decode(vae: VAVAE, images: Tensor) -> Tensor:
    """Reconstructions from the mode of the posterior."""
    return vae.decode_raw_latents(vae.posterior(images).mode())


def chroma(images: Tensor) -> Tensor:
    """Mean difference between the strongest and the weakest channel."""
    return (images.amax(dim=1) - images.amin(dim=1)).mean()


if __name__ == "__main__":
    main()
