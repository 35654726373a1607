"""The latents that a meter compares: of tokenizers, which encode images, or stored ones without a decoder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alight.artifacts import read_artifact
from alight.config import ImagesConfig, MeterLatentsConfig
from alight.data.image_dataset import ImageDataset
from alight.data.latents import LatentDataset
from alight.data.loading import open_dataset
from alight.evaluation.batches import evenly_spread, index_batches, load_batches
from alight.interop.tokenizer_sources import OpenTokenizer, open_tokenizer
from alight.interop.torch_file import read_torch_file
from alight.models.tokenizer import Tokenizer
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash, short_names
from alight.runtime.pixels import unit_range
from alight.runtime.seeding import derive_seed, noise_of_seeds, random_stream


@dataclass(frozen=True)
class MeteredImages:
    """The images that tokenizers encode, all the same ones.

    Attributes:
        dataset: holds them.
        indices: of those that are taken.
        config: of the crops.
    """

    dataset: ImageDataset
    indices: list[int]
    config: ImagesConfig

    def batches(self, batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
        """The places of images among those taken, and their pixels (B, 3, S, S) in [-1, 1]."""
        places = index_batches(range(len(self.indices)), batch_size)
        wanted = [[self.indices[place] for place in batch] for batch in places]
        for batch, pixels in zip(places, load_batches(self.dataset, wanted, self.config.workers), strict=True):
            yield batch, unit_range(pixels)

    @property
    def labels(self) -> Tensor | None:
        """(N,) classes; None where there is only one."""
        found = torch.as_tensor(self.dataset.source.labels)[self.indices]
        return found if len(found.unique()) > 1 else None


@dataclass(frozen=True)
class Subject:
    """Latents under comparison.

    Attributes:
        name: short, and another one than those of the others.
        path: of the tokenizer or of the latents.
        hash: identity of its weights, or of the latents.
        latents: (N, C, h, w), each channel with mean 0 and variance 1 over these latents; vectors are (N, D, 1, 1).
        labels: (N,) classes, where there are several.
        mean, std: (C, 1, 1) of the latents before.
        vae: the tokenizer, where there is one.
        kind: "tokenizer", "latents" or "vectors".
    """

    name: str
    path: Path
    hash: str
    latents: Tensor
    labels: Tensor | None
    mean: Tensor
    std: Tensor
    vae: Tokenizer | None = None
    kind: str = "tokenizer"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return self.latents.shape[1], self.latents.shape[2], self.latents.shape[3]

    @torch.no_grad()
    def decode(self, latents: Tensor, device: torch.device) -> Tensor:
        """Images (B, 3, H, W), nominally in [-1, 1], of normalised latents."""
        assert self.vae is not None
        raw = latents * self.std + self.mean
        return self.vae.decode_raw_latents(raw.to(device)).float()


def normalised(
    name: str,
    path: Path,
    digest: str,
    raw: Tensor,
    labels: Tensor | None,
    vae: Tokenizer | None = None,
    kind: str = "",
) -> Subject:
    """Latents (N, C, h, w) with the mean and the variance of every channel taken out.

    Raises:
        InputError: there are fewer images than channels, a value is not finite, or a channel never changes.
    """
    if len(raw) < max(raw.shape[1], 2):
        raise InputError(
            f"{path} has latents of {raw.shape[1]} channels, and {len(raw)} images cannot say how these go together. "
            "Give at least as many images as channels, and better ten times as many."
        )
    if not raw.isfinite().all():
        raise InputError(f"The latents of {path} contain NaN or infinity, so nothing can be measured on them.")
    values = raw.double()
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3), correction=0)
    constant = (std <= 1e-12 * (1 + mean.abs())).nonzero().flatten().tolist()
    if constant:
        raise InputError(
            f"Channel {constant[0]} of the latents of {path} never changes over {len(raw)} images, so it cannot be "
            "normalised. Measure other images, or sample the posterior (--posterior sample)."
        )
    mean, std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
    latents = ((values - mean) / std).float()
    return Subject(name, path, digest, latents, labels, mean.float(), std.float(), vae, kind or "tokenizer")


def open_tokenizers(config: MeterLatentsConfig) -> list[OpenTokenizer]:
    """Open the tokenizers of a meter, on the CPU.

    Raises:
        InputError: one cannot be used, or they were trained on images of different sizes.
    """
    opened = [open_tokenizer(path) for path in config.tokenizers]
    sizes = {path: trained_size(each) for path, each in zip(config.tokenizers, opened, strict=True)}
    known = {path: size for path, size in sizes.items() if size is not None}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{path}: {size}" for path, size in known.items())
        raise InputError(
            f"These tokenizers were trained on images of different sizes in pixels ({listed}), and latents of one "
            "size say nothing about those of another. Compare tokenizers of one size."
        )
    return opened


def trained_size(tokenizer: OpenTokenizer) -> int | None:
    """The side of the images that a tokenizer was trained on, where its record says so."""
    images = tokenizer.artifact.config.get("images")
    size = images.get("size") if isinstance(images, dict) else None
    return size if isinstance(size, int) else None


def open_metered_images(config: MeterLatentsConfig, tokenizers: Sequence[OpenTokenizer]) -> MeteredImages:
    """The images of a split, as large as those that the tokenizers were trained on.

    Raises:
        InputError: there are none, no size is known, or another one is given than that of the training.
    """
    known = [size for each in tokenizers if (size := trained_size(each)) is not None]
    if config.study is None and config.images.size and known and config.images.size != known[0]:
        raise InputError(
            f"The tokenizers were trained on images of {known[0]} pixels, and images.size is {config.images.size}, "
            f"where their latents say little. Leave it out, or give --images.size {known[0]}."
        )
    size = config.images.size or next(iter(known), None)
    if size is None:
        raise InputError(
            "No record says how large the images are that these tokenizers were trained on. Give --images.size."
        )
    images = ImagesConfig(**config.images.model_dump() | {"size": size})
    dataset = open_dataset(images, config.split, augment=False)
    return MeteredImages(dataset, evenly_spread(len(dataset), config.count), images)


@torch.no_grad()
def encode_images(
    name: str, opened: OpenTokenizer, images: MeteredImages, config: MeterLatentsConfig, device: torch.device
) -> Subject:
    """The latents of a tokenizer; the posterior's noise of every image depends on the seed and its number alone."""
    vae, rows = opened.vae.to(device), []
    for places, pixels in images.batches(config.batch_size):
        posterior = vae.posterior(pixels.to(device))
        latents, std = posterior.mean.float(), posterior.std.float()
        if config.posterior == "sample":
            seeds = [derive_seed(config.seed, "meter", images.indices[place]) for place in places]
            latents = latents + std * noise_of_seeds(seeds, tuple(latents.shape[1:])).to(latents)
        rows.append(latents.cpu())
    vae.to("cpu")
    artifact = opened.artifact
    return normalised(name, artifact.path, artifact.hash, torch.cat(rows), images.labels, vae)


def stored_latents(name: str, path: Path, config: MeterLatentsConfig) -> Subject:
    """The latents of a folder, or of a published file of vectors (N, D) or latents (N, C, h, w).

    Raises:
        InputError: there is neither, or the file holds something else.
    """
    if not path.exists():
        raise InputError(
            f"There are no latents {path}. Check the path, or make them with 'alight latents extract'; a file of "
            "published latent vectors (.pt) can be given, too."
        )
    if path.is_dir():
        artifact = read_artifact(path, "latents")
        dataset = LatentDataset(path)
        chosen = evenly_spread(len(dataset), config.count)
        found = dataset.gather(chosen, generator=random_stream(config.seed, "meter", "moments"))
        labels = found.labels if len(found.labels.unique()) > 1 else None
        return normalised(name, path, artifact.hash, found.latents, labels, kind="latents")
    values = read_torch_file(path)
    if not isinstance(values, Tensor) or values.ndim not in (2, 4) or not values.is_floating_point():
        raise InputError(
            f"{path} holds no latents: one tensor of floating-point numbers, (N, D) or (N, C, h, w). Folders of "
            "'alight latents extract' can be given, too; published shards come in by 'alight convert'."
        )
    values = values.detach().float()[evenly_spread(len(values), config.count)]
    kind = "vectors" if values.ndim == 2 else "latents"
    whole = values[:, :, None, None] if values.ndim == 2 else values
    return normalised(name, path, file_hash(path), whole, None, kind=kind)


def open_subjects(config: MeterLatentsConfig, device: torch.device) -> tuple[list[Subject], MeteredImages | None]:
    """Everything that is compared, with the images where there are tokenizers.

    Raises:
        InputError: nothing is given, something is given twice, or the latents lie on different grids.
    """
    paths = [*config.tokenizers, *config.latents]
    if not paths:
        raise InputError(
            "There is nothing to compare. Give tokenizers, such as 'alight latents meter runs/a runs/b', or "
            "--latents, or a finished --study."
        )
    if twice := [str(path) for path in paths if paths.count(path) > 1]:
        raise InputError(f"{min(twice)} would be compared with itself; give it once.")
    opened, names = open_tokenizers(config), [each.removesuffix("/tokenizer") for each in short_names(paths)]
    images = open_metered_images(config, opened) if opened else None
    subjects = []
    for name, each in zip(names, opened, strict=False):
        assert images is not None
        subjects.append(encode_images(name, each, images, config, device))
    subjects += [
        stored_latents(name, path, config) for name, path in zip(names[len(opened) :], config.latents, strict=True)
    ]
    require_one_grid(subjects)
    return subjects, images


def require_one_grid(subjects: Sequence[Subject]) -> None:
    """Refuse latents on different grids, whose figures of positions do not compare, and the same latents twice."""
    grids = {subject.name: " x ".join(map(str, subject.shape[1:])) for subject in subjects}
    if len(set(grids.values())) > 1:
        listed = ", ".join(f"{name}: {grid}" for name, grid in grids.items())
        raise InputError(
            f"The latents lie on different grids ({listed}), and figures of a position do not compare between them. "
            "Compare latents of one grid; channels may differ."
        )
    hashes = [subject.hash for subject in subjects]
    if same := [subject.name for subject in subjects if hashes.count(subject.hash) > 1]:
        raise InputError(f"{' and '.join(same[:2])} are the same; give one of them.")
