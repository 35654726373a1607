"""Check that a recipe loads, and that everything it names is available: weights, artifacts, models."""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from alight.artifacts import read_artifact
from alight.config import (
    AlignmentConfig,
    FeaturesConfig,
    FrozenEncoderConfig,
    Job,
    Section,
    TokenizerModelConfig,
    TrainingConfig,
)
from alight.config.recipes import load_config
from alight.doctor.findings import Finding, attempt
from alight.doctor.group_check import group_findings
from alight.models.foundation_catalogue import find_row
from alight.models.inception import WEIGHTS as INCEPTION
from alight.models.perceptual import LPIPS_LINEAR, VGG16
from alight.models.pretrained import CONFIG_FILE
from alight.runtime.device import bf16_advantage, resolve_device
from alight.runtime.download import DOWNLOAD, PublicFile
from alight.runtime.files import file_hash

PUBLIC_FILES = {"vgg16_weights": VGG16, "lpips_weights": LPIPS_LINEAR, "inception_weights": INCEPTION}
FOUNDATION_FILE = "model.safetensors"
ARTIFACTS = ("tokenizer", "latents", "transformer", "samples")


def needs(name: str) -> Iterator[Finding]:
    """Check everything about a recipe that can be known before it runs.

    Raises:
        InputError: it does not load.
    """
    config = load_config(name)
    yield Finding("ok", "recipe", f"{name} loads.")
    # a composite job creates its artifacts and its foundation model itself
    composed = any(isinstance(value, Job) for _, value in config)
    if any(isinstance(section, TrainingConfig) and section.precision == "bf16" for section in _sections(config)):
        yield from attempt("precision", partial(_bf16, getattr(config, "device", "auto")))
    for section in _sections(config):
        for key, file in PUBLIC_FILES.items():
            if (given := getattr(section, key, None)) is not None:
                yield from attempt("weights", partial(_public_file, file, given))
        if isinstance(section, TokenizerModelConfig):
            yield from group_findings(section)
        if composed:
            continue
        if isinstance(section, AlignmentConfig) and section.foundation is not None and section.enabled:
            yield from attempt("foundation", partial(_foundation, section.foundation))
        if isinstance(section, FeaturesConfig | FrozenEncoderConfig) and section.foundation is not None:
            yield from attempt("foundation", partial(_foundation, section.foundation))
        for kind in ARTIFACTS:
            if isinstance(folder := getattr(section, kind, None), Path):
                yield from attempt(kind, partial(_artifact, kind, folder))


def _sections(config: Section) -> Iterator[Section]:
    yield config
    for _, value in config:
        if isinstance(value, Section):
            yield from _sections(value)


def _bf16(device_name: str) -> Iterator[Finding]:
    device = resolve_device(device_name)
    if (advantage := bf16_advantage(device)) < 1:
        yield Finding(
            "warning",
            "precision",
            f"The recipe trains in bf16, in which {device} multiplies matrices {1 / advantage:.3g} times as slowly as "
            "in fp32.",
            "Set training.precision to fp32 on this machine.",
        )


def _public_file(file: PublicFile, given: Path | str) -> Iterator[Finding]:
    if str(given) == DOWNLOAD and not file.cached.is_file():
        sentence = f"The {file.what} are not cached yet; they are downloaded from {file.url} on first use."
        yield Finding("warning", "weights", sentence, f"Without a network, save them as {file.cached}.")
    else:
        yield Finding("ok", "weights", f"{file.locate(given)} has the right checksum.")


def _artifact(kind: str, folder: Path) -> Iterator[Finding]:
    if kind == "tokenizer" and (folder.is_file() or (folder / CONFIG_FILE).is_file()):
        yield Finding("ok", kind, f"{folder} exists.")
    else:
        yield Finding("ok", kind, f"{read_artifact(folder, kind).path} is finished.")


def _foundation(name: str) -> Iterator[Finding]:
    if Path(name).is_dir():
        lacking = [file for file in (CONFIG_FILE, FOUNDATION_FILE) if not (Path(name) / file).is_file()]
        if not lacking:
            yield Finding("ok", "foundation", f"{name} exists.")
        else:
            fix = "Save it again with save_pretrained, or train one with 'alight foundation train'."
            yield Finding("problem", "foundation", f"{name} has no {' and no '.join(lacking)}.", fix)
        return
    row = find_row(name)
    cached = try_to_load_from_cache(row.hub_id if row is not None else name, FOUNDATION_FILE)
    if not isinstance(cached, str):
        yield Finding(
            "problem" if constants.HF_HUB_OFFLINE else "warning",
            "foundation",
            f"{name} is not a folder, and its weights are not in the hub's cache {constants.HF_HUB_CACHE}.",
            "They are downloaded on first use. Without a network, download them elsewhere and give the folder.",
        )
        return
    digest = Path(os.path.realpath(cached)).name  # the cache names large files by their SHA-256
    if re.fullmatch("[0-9a-f]{64}", digest) and file_hash(Path(cached)) != digest:
        yield Finding("problem", "foundation", f"{cached} is damaged: its SHA-256 is wrong.", "Delete it.")
    else:
        yield Finding("ok", "foundation", f"The weights of {name} are in the hub's cache.")
