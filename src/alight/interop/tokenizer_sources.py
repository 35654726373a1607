"""Open any tokenizer: an artifact, a plain diffusers folder, a hub id, or a published checkpoint file."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save

from alight.artifacts import Artifact, is_complete, read_artifact
from alight.interop.latents import STATISTICS_FILE, load_latents_statistics
from alight.interop.tokenizer import load_tokenizer
from alight.models.pretrained import CONFIG_FILE, WEIGHTS_FILE, is_hub_id
from alight.models.tokenizer import Tokenizer
from alight.models.tokenizer_folders import open_tokenizer_folder
from alight.models.weight_files import weights_hash
from alight.runtime.errors import InputError, one_line
from alight.runtime.reading import read_json_object

SUBFOLDER = "vae"  # of the folder of a pipeline
ALIGNMENT = "alignment"  # of a configuration; and the fact where a projection was taken over with its tokenizer


class OpenTokenizer(NamedTuple):
    """A tokenizer in eval mode, and its identity for later stages: hash, configuration and facts."""

    vae: Tokenizer
    artifact: Artifact


def open_tokenizer(source: str | Path) -> OpenTokenizer:
    """Open a tokenizer from any source.

    Args:
        source: one of
            - a tokenizer artifact of this package;
            - a folder of diffusers' `AutoencoderKL` or `AutoencoderRAE`, or of a whole pipeline with one in its
              subfolder `vae`;
            - a hub id, such as `stabilityai/sd-vae-ft-mse`;
            - a published VA-VAE checkpoint (`.pt`, `.ckpt` or `.safetensors`). The statistics of its latents are
              taken from a file `latents_stats.pt` beside it, if there is one.

    Returns:
        The model, and its artifact. For a foreign one, the hash is that of its weights (for a published checkpoint,
        of the weights file that converting it would write), and the config that of the network.

    Raises:
        InputError: there is no tokenizer, or an incomplete one.
    """
    path = Path(source)
    if path.is_file():
        return _from_published_file(path)
    if is_hub_id(source):
        return _from_folder(_download(str(source)), str(source))
    if path.is_dir() and not is_complete(path) and model_folder(path) is not None:
        return _from_folder(path, str(source))
    artifact = read_artifact(path, "tokenizer")
    return OpenTokenizer(open_tokenizer_folder(path), artifact)


def alignment_settings(artifact: Artifact) -> dict[str, Any]:
    """The settings that the projection beside a tokenizer was trained with, by this run or by one before it."""
    return artifact.facts.get(ALIGNMENT) or artifact.config.get(ALIGNMENT, {})


def model_folder(folder: Path) -> Path | None:
    """The folder or its subfolder that holds the configuration of a model; None if neither does."""
    return next((place for place in (folder, folder / SUBFOLDER) if (place / CONFIG_FILE).is_file()), None)


def _from_folder(folder: Path, name: str) -> OpenTokenizer:
    place = model_folder(folder)
    if place is None:
        raise InputError(
            f"'{name}' holds no tokenizer: there is no {CONFIG_FILE} in it or in {SUBFOLDER}/. Give a folder "
            "or hub id of diffusers' AutoencoderKL or AutoencoderRAE."
        )
    vae = open_tokenizer_folder(place)
    config = read_json_object(place / CONFIG_FILE, "Restore the file that was saved with the weights.")
    return OpenTokenizer(vae, _identity(vae, place, name, config, weights_hash(place)))


def _from_published_file(path: Path) -> OpenTokenizer:
    vae = load_tokenizer(path)
    beside = path.with_name(STATISTICS_FILE)
    if beside.is_file():
        vae.set_latents_statistics(*load_latents_statistics(beside))
    weights = {name: value.contiguous() for name, value in vae.state_dict().items()}
    digest = hashlib.sha256(save(weights, metadata={"format": "pt"})).hexdigest()
    return OpenTokenizer(vae, _identity(vae, path, str(path), json.loads(vae.to_json_string()), digest))


def _identity(vae: Tokenizer, path: Path, name: str, config: dict[str, Any], digest: str) -> Artifact:
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    facts = {"image_size": vae.config.sample_size, "parameters": parameters, "source": name}
    return Artifact(path=path, kind="tokenizer", config=config, hash=digest, facts=facts)


def _download(hub_id: str) -> Path:
    """Download the configuration and the weights of a repository on the hub, or find them in the cache."""
    from huggingface_hub import snapshot_download

    files = (CONFIG_FILE, WEIGHTS_FILE)
    try:
        folder = snapshot_download(hub_id, allow_patterns=[*files, *(f"{SUBFOLDER}/{file}" for file in files)])
    except Exception as error:  # of the network, the hub or the cache, in many types
        raise InputError(
            f"The tokenizer '{hub_id}' is not a folder, and it cannot be downloaded from the hub "
            f"({one_line(error)}). Check the name and the network, or download it elsewhere and "
            "give the folder."
        ) from error
    return Path(folder)
