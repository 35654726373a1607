"""Open a diffusers model folder strictly: every weight present, of the right shape and finite, or a clear refusal.

The library's own loader fills missing weights with random numbers and goes on; a generator that silently runs on
random weights costs its user days.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from alight.artifacts import CONFIG_FILE, WEIGHTS_FILE, verify_folder
from alight.runtime.errors import InputError

ModelT = TypeVar("ModelT", bound=ModelMixin)


class StrictlyLoaded(ModelMixin):
    """A diffusers model whose local folders open strictly; hub ids are fetched by diffusers as usual."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *, subfolder: str | None = None, **options: Any
    ) -> Any:
        """Open a folder that `save_pretrained` wrote, or a hub id.

        Args:
            pretrained_model_name_or_path: a local folder or a hub id.
            subfolder: of the folder or repository.
            **options: of diffusers' loader; for a local folder only `torch_dtype` matters.

        Raises:
            InputError: if files are missing or damaged, or weights and configuration do not fit.
        """
        origin = pretrained_model_name_or_path
        if not is_hub_id(origin):
            model = open_model_folder(cls, Path(origin) / subfolder if subfolder else Path(origin))
            return model.to(options["torch_dtype"]) if options.get("torch_dtype") else model
        try:
            model, found = super().from_pretrained(origin, subfolder=subfolder, output_loading_info=True, **options)
        except OSError as error:
            raise InputError(
                f"'{origin}' is no folder here, and as a hub id it cannot be fetched ({_one_line(error)}). Check the "
                "name and the network, or download it elsewhere and give the folder."
            ) from error
        wrong = {kind: names for kind, names in found.items() if names}
        if wrong:
            raise InputError(f"The weights in {origin} do not fit their configuration: {wrong}. Get them again.")
        return model


def is_hub_id(origin: Any) -> bool:
    """Whether this can only be a name on the hub: owner/name, and neither it nor its parent is a folder here."""
    folder = Path(origin)
    return not folder.exists() and not folder.parent.exists() and str(origin).count("/") == 1


def open_model_folder(cls: type[ModelT], folder: Path) -> ModelT:
    """Build a diffusers model from its folder, in eval mode.

    Weights under the attention names of diffusers before 0.17 (query, key, value, proj_attn), as in the files of the
    original Stable Diffusion, are taken as what they are called today.

    Args:
        cls: a diffusers model.
        folder: holds `config.json` and `diffusion_pytorch_model.safetensors`.

    Raises:
        InputError: if a file is missing or damaged, or if the weights do not fit the configuration.
    """
    verify_folder(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is not a {cls.__name__} folder: it has no {name}. {_advice(folder)}")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        kind = config.get("_class_name", cls.__name__)
        model = cls.from_config(config) if kind in {ancestor.__name__ for ancestor in cls.__mro__} else None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"{folder / CONFIG_FILE} does not describe a {cls.__name__} ({_one_line(error)}). Restore the file that "
            "was saved with the weights."
        ) from error
    if model is None:
        raise InputError(f"{folder} holds a {kind}, not a {cls.__name__}. Check which folder you meant to give.")
    weights = read_safetensors(folder / WEIGHTS_FILE)
    model._fix_state_dict_keys_on_load(weights)  # what the library's own loader calls, in place
    load_strictly(model, weights, source=folder / WEIGHTS_FILE)
    return model.eval()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        InputError: if the file is truncated or of another format.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a complete safetensors file ({_one_line(error)}). It was probably cut off while it was "
            "copied or downloaded; get it again."
        ) from error


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], source: Any) -> None:
    """Load weights that must match the model exactly.

    Raises:
        InputError: lists what is missing, unexpected, of another shape, or not finite.
    """
    own = model.state_dict()
    complaints = {
        "missing": [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ],
        "not finite": [name for name, value in weights.items() if not torch.isfinite(value).all()],
    }
    found = [f"{len(names)} {what} ({_some(names)})" for what, names in complaints.items() if names]
    if found:
        raise InputError(
            f"The weights in {source} do not fit {type(model).__name__}: {'; '.join(found)}. Give weights and "
            "configuration that were saved together."
        )
    model.load_state_dict(dict(weights), strict=True)


def _advice(folder: Path) -> str:
    pickled = next((path.name for path in sorted(folder.glob("diffusion_pytorch_model*.bin"))), None)
    if pickled is None:
        return "Give the folder that training or save_pretrained wrote."
    return (
        f"Its {pickled} is a pickle, which can execute code when it is read. Get the weights as safetensors, or, if "
        "you trust them, open the folder with diffusers and call save_pretrained."
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
