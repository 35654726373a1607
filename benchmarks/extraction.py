"""Latents of images and of their mirror images: read from disk for each, against read once.

What is saved is the reading. With D for reading an image and E for encoding one, two passes take 2 D + 2 E and one
takes D + 2 E: twice as fast where a GPU makes E nothing, and 4/3 where E is as long as D, as it about is on a CPU with
this small encoder.
"""

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alight.artifacts import write_manifest
from alight.config import ExtractLatentsConfig, ImagesConfig
from alight.data.crops import center_crop
from alight.models.pretrained import WEIGHTS_FILE
from alight.models.vavae import VAVAE
from alight.outputs import writing_folder
from alight.runtime.files import file_hash
from alight.runtime.seeding import seeded_initialisation
from alight.stages.extract_latents import run
from benchmarks.measure import Contender

PHOTOGRAPH = (375, 500)  # height and width, about the median of ImageNet
SIZE, BATCH = 64, 32


SMALL = {
    "latent_channels": 8, "block_out_channels": (16, 16, 16), "layers_per_block": 1, "norm_num_groups": 8,
    "level_attention": False, "mid_block_attention": False,
}  # fmt: skip


@contextmanager
def stored_images(count: int, architecture: Mapping[str, Any] = SMALL) -> Iterator[Path]:
    """A temporary folder with photographs as JPEG files, and a tokenizer beside them, a small one by default."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images" / "photographs").mkdir(parents=True)
        rng, photographs = np.random.default_rng(0), load_sample_images().images
        for number in range(count):
            photograph = photographs[number % len(photographs)]
            top, left = (
                int(rng.integers(total - side)) for total, side in zip(photograph.shape, PHOTOGRAPH, strict=False)
            )
            part = photograph[top : top + PHOTOGRAPH[0], left : left + PHOTOGRAPH[1]]
            Image.fromarray(part).save(folder / "images" / "photographs" / f"{number:05d}.jpg", quality=90)
        with seeded_initialisation(0), writing_folder(folder / "tokenizer") as staging:
            vae = VAVAE.build(**architecture)
            vae.save_pretrained(staging)
            write_manifest(staging, "tokenizer", {}, file_hash(staging / WEIGHTS_FILE))
        yield folder


def extraction(folder: Path, count: int) -> list[Contender]:
    """Encode all images of a folder and their mirror images."""
    vae = VAVAE.from_pretrained(folder / "tokenizer").eval()
    numbers = itertools.count()

    def plainly() -> None:
        latents = [encode_all(vae, folder / "images", flip) for flip in (False, True)]
        save_file(dict(zip(("latents", "latents_flip"), latents, strict=True)), folder / "plain.safetensors")

    def by_the_stage() -> None:
        images = ImagesConfig(source=str(folder / "images"), size=SIZE)
        output = folder / f"latents-{next(numbers)}"
        run(
            ExtractLatentsConfig(
                output=output,
                tokenizer=folder / "tokenizer",
                images=images,
                batch_size=BATCH,
                statistics="data",
                device="cpu",
            )
        )

    return [Contender("plain", plainly, count), Contender("alight", by_the_stage, count)]


class PlainImages(Dataset[Tensor]):
    """Files of a folder as tensors, decoded and cropped whenever they are asked for."""

    def __init__(self, folder: Path, flip: bool) -> None:
        self.paths, self.flip = sorted(folder.rglob("*.jpg")), flip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            pixels = center_crop(np.asarray(image.convert("RGB")), SIZE)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
        return tensor.flip(-1) if self.flip else tensor


@torch.no_grad()
def encode_all(vae: VAVAE, folder: Path, flip: bool) -> Tensor:
    """One pass over the files, in the same batches."""
    loader = DataLoader(PlainImages(folder, flip), batch_size=BATCH)
    return torch.cat([vae.posterior(images).sample() for images in loader])
