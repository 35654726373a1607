"""Published files to artifacts, and artifacts to published files.

A tokenizer may also come from diffusers: a folder, or a name on the hub. Facts that a source does not record stay
unrecorded: the number of steps, and the tokenizer where none is named.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from alight.artifacts import Artifact, is_complete, read_artifact, write_manifest
from alight.config import ConvertConfig
from alight.data.class_names import readable_class_names
from alight.data.latent_index import INDEX, map_shards, published_index, read_index
from alight.data.latent_shards import MAX_CLASSES, require_finite
from alight.data.latents import LatentDataset
from alight.interop.latents import STATISTICS_FILE
from alight.interop.reference import (
    LatentsStatistics,
    export_latents_statistics,
    export_tokenizer,
    export_transformer,
    load_latents_statistics,
    load_tokenizer,
    load_transformer,
)
from alight.interop.tokenizer_sources import model_folder, open_tokenizer
from alight.models.lightning_dit import LightningDiT
from alight.models.pretrained import WEIGHTS_FILE, is_hub_id
from alight.models.tokenizer import Tokenizer
from alight.models.tokenizer_folders import open_tokenizer_folder
from alight.models.vavae import VAVAE
from alight.outputs import claimed_output, new_file, writing_folder
from alight.runtime.checked_json import write_checked
from alight.runtime.errors import InputError
from alight.runtime.files import file_hash

# Options that each direction and kind uses, beside source and output.
OPTIONS = {
    ("alight", "transformer"): ("weights", "num_heads", "auxiliary_block", "statistics", "tokenizer"),
    ("alight", "tokenizer"): ("statistics",),
    ("alight", "latents"): ("statistics", "tokenizer", "num_classes"),
}
UNRECORDED = ""  # in place of an unknown hash; `require_input` then accepts any artifact


class Exported(NamedTuple):
    """A published file, or a folder of them, that was written."""

    kind: str
    path: Path

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        return {"kind": f"published {self.kind}", "path": str(self.path)}


def run(config: ConvertConfig) -> Artifact | Exported:
    """Convert one transformer, one tokenizer or one folder of latents.

    Returns:
        The artifact, or where the published file is.

    Raises:
        InputError: the source is missing, damaged, unsafe or of another kind, or the output cannot be written.
    """
    if config.source is None:
        raise InputError("Say what is to be converted, for example --source lightningdit-xl-imagenet256-64ep.pt.")
    check_options(config)
    if config.to == "published":
        return to_published(config.source, config)
    importers = {
        "transformer": from_transformer_file,
        "tokenizer": from_tokenizer,
        "latents": from_latents_folder,
    }
    with claimed_output(config.output, config.kind, config.model_dump(mode="json")) as finished:
        if finished is not None:
            return require_origin(finished, config.source)
        importers[config.kind](config.source, config)
    return read_artifact(config.output, config.kind)


def to_published(source: Path, config: ConvertConfig) -> Exported:
    """Write a new file, or a new folder of latents, as the published code reads it."""
    if config.kind == "latents":
        with claimed_output(config.output, "published latents", config.model_dump(mode="json")):
            to_latents_folder(source, config.output)
    else:
        exporters = {"transformer": to_transformer_file, "tokenizer": to_tokenizer_file}
        exporters[config.kind](source, new_file(config.output))
    return Exported(config.kind, config.output)


def check_options(config: ConvertConfig) -> None:
    """Refuse an option that would be passed over in silence."""
    known = OPTIONS.get((config.to, config.kind), ())
    given = [name for names in OPTIONS.values() for name in names if getattr(config, name) is not None]
    idle = [name for name in dict.fromkeys(given) if name not in known]
    if idle:
        raise InputError(
            f"{' and '.join(idle)} has no meaning for a {config.kind} to the {config.to} format; leave it out."
            + (f" What can be given is {', '.join(known)}." if known else "")
        )


# --- published -> artifact ----------------------------------------------------------------------------------------


def from_transformer_file(source: Path, config: ConvertConfig) -> None:
    """A published LightningDiT checkpoint to a transformer artifact."""
    started = time.perf_counter()
    inputs = {"tokenizer": tokenizer_hash(config)}
    options: dict[str, Any] = {"num_heads": config.num_heads, "auxiliary_block": config.auxiliary_block}
    model = load_transformer(source, weights=config.weights, **options)
    mean, std = transformer_statistics(config, model.config.in_channels)
    facts = {
        "class_names": class_names(model.config.num_classes),
        "latents_mean": mean.tolist(),
        "latents_std": std.tolist(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    save_model(model, config, inputs, facts | origin(source), started)


def from_tokenizer(source: Path, config: ConvertConfig) -> None:
    """A published VA-VAE checkpoint, or a tokenizer of diffusers, to a tokenizer artifact.

    The statistics of its latents are those that are given, else those that a folder of diffusers records.
    """
    started = time.perf_counter()
    if is_complete(source):
        raise InputError(f"{source} is an artifact of this package already, and needs no conversion.")
    is_diffusers = is_hub_id(source) or model_folder(source) is not None
    vae = open_tokenizer(source).vae if is_diffusers else load_tokenizer(source)
    if config.statistics is not None:
        mean, std = load_latents_statistics(config.statistics)
        check_channels(mean, vae.config.latent_channels, config.statistics)
        vae.set_latents_statistics(mean, std)
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    facts = {"image_size": vae.config.sample_size, "parameters": parameters}
    save_model(vae, config, {}, facts | origin(source), started)


def from_latents_folder(source: Path, config: ConvertConfig) -> None:
    """A folder of published shards to a latents artifact; in another folder it shares the shards' disk space."""
    started = time.perf_counter()
    inputs = {"tokenizer": tokenizer_hash(config)}
    index = published_index(source)
    if config.statistics is not None:
        mean, std = load_latents_statistics(config.statistics)
        check_channels(mean, index["shape"][0], config.statistics)
        index["statistics"].update({"mean": mean.tolist(), "std": std.tolist()})
    seen = len(index["class_names"])
    if config.num_classes is not None and config.num_classes < seen:
        raise InputError(f"The labels in {source} go up to {seen - 1}, so num_classes must be at least {seen}.")
    if config.num_classes is not None and config.num_classes > MAX_CLASSES:
        raise InputError(f"num_classes is {config.num_classes}, but at most {MAX_CLASSES:,} classes are known.")
    index["class_names"] = class_names(config.num_classes or seen)
    names = [shard["file"] for shard in index["shards"]]
    for name, maps in zip(names, map_shards(source, names), strict=True):
        require_finite(source / name, maps)
    with writing_folder(config.output) as staging:
        link_shards(source, staging, names)
        write_checked(staging / INDEX, index)
        digest = file_hash(*(source / name for name in names))
        facts = {"count": index["count"], "class_names": index["class_names"]}
        seconds = time.perf_counter() - started
        write_manifest(staging, "latents", config.model_dump(mode="json"), digest, inputs, facts, seconds)


def save_model(
    model: LightningDiT | Tokenizer,
    config: ConvertConfig,
    inputs: dict[str, str],
    facts: dict[str, Any],
    started: float,
) -> None:
    """Write a diffusers folder with its manifest."""
    with writing_folder(config.output) as staging:
        model.save_pretrained(staging)
        digest = file_hash(staging / WEIGHTS_FILE)
        seconds = time.perf_counter() - started
        write_manifest(staging, config.kind, config.model_dump(mode="json"), digest, inputs, facts, seconds)


def tokenizer_hash(config: ConvertConfig) -> str:
    """The identity that later stages compare before they decode anything."""
    return read_artifact(config.tokenizer, "tokenizer").hash if config.tokenizer else UNRECORDED


def transformer_statistics(config: ConvertConfig, channels: int) -> LatentsStatistics:
    """The statistics of the transformer's latents: from the given file, or those in the tokenizer."""
    if config.statistics is not None:
        statistics, source = load_latents_statistics(config.statistics), config.statistics
    elif config.tokenizer is not None and (found := open_tokenizer_folder(config.tokenizer).latents_statistics):
        statistics, source = LatentsStatistics(*found), config.tokenizer
    else:
        raise InputError(
            "A transformer's latents are normalised, and its checkpoint does not say with what. Give the "
            f"{STATISTICS_FILE} that was published with it (--statistics), or a tokenizer artifact that holds "
            "statistics (--tokenizer)."
        )
    check_channels(statistics.mean, channels, source)
    return statistics


def check_channels(mean: torch.Tensor, channels: int, source: Path) -> None:
    """Refuse statistics of another latent space."""
    if len(mean) != channels:
        raise InputError(
            f"{source} holds statistics of {len(mean)} channels, but the latents have {channels}. Give the "
            "statistics that were published with this checkpoint."
        )


def class_names(num_classes: int) -> list[str]:
    """Names for published files, which hold none: those of ImageNet for 1000 classes, else the labels."""
    return list(readable_class_names(None, num_classes)) or [str(label) for label in range(num_classes)]


def origin(source: Path) -> dict[str, str]:
    """Facts about the file, folder or name on the hub that an artifact was converted from."""
    if not source.is_file():
        return {"converted_from": str(source)}
    return {"converted_from": source.name, "converted_from_sha256": file_hash(source)}


def require_origin(artifact: Artifact, source: Path) -> Artifact:
    """Refuse to take an earlier conversion for that of a file which has changed since."""
    recorded = artifact.facts.get("converted_from_sha256")
    if recorded and source.is_file() and file_hash(source) != recorded:
        raise InputError(
            f"{artifact.path} was converted from another version of {source}. Choose another --output, or delete that "
            "folder."
        )
    return artifact


# --- artifact -> published ----------------------------------------------------------------------------------------


def to_transformer_file(source: Path, output: Path) -> None:
    """A transformer artifact to one file in the layout of the published trainer."""
    read_artifact(source, "transformer")
    export_transformer(LightningDiT.from_pretrained(source), output)


def to_tokenizer_file(source: Path, output: Path) -> None:
    """A tokenizer artifact to one file in the layout of the published VA-VAE."""
    read_artifact(source, "tokenizer")
    vae = open_tokenizer_folder(source)
    if not isinstance(vae, VAVAE):
        raise InputError(
            f"The tokenizer in {source} has a frozen encoder, for which there is no published layout of one file. "
            "Share the folder itself: 'alight export'."
        )
    export_tokenizer(vae, output)


def to_latents_folder(source: Path, output: Path) -> None:
    """A latents artifact to a folder as the published code reads it: shards, sharing disk space, and statistics."""
    read_artifact(source, "latents")
    dataset = LatentDataset(source)
    if not dataset.has_flips:
        raise InputError(
            f"The latents in {source} hold no mirrored images, which the published code reads half of the time. "
            "Extract them again with --flips True."
        )
    names = [shard["file"] for shard in read_index(source)["shards"]]
    with writing_folder(output) as staging:
        link_shards(source, staging, names)
        export_latents_statistics(dataset.mean.flatten(), dataset.std.flatten(), staging / STATISTICS_FILE)


def link_shards(source: Path, folder: Path, names: list[str]) -> None:
    """Give the shards a second name in another folder, or copy them where the file system cannot do that."""
    for name in names:
        shard = (source / name).resolve()  # a second name of a symbolic link would lead nowhere
        try:
            os.link(shard, folder / name)
        except OSError:
            shutil.copyfile(shard, folder / name)
