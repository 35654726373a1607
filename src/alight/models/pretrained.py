"""Open a diffusers model folder strictly: every weight present, of the right shape and finite, or a clear error.

The library's loader fills missing weights with random numbers; a generator that silently runs on random weights costs
its user days.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from alight.artifacts import CONFIG_FILE, WEIGHTS_FILE, verify_folder
from alight.models.loading_options import check_options, resolve_dtype
from alight.models.weight_files import find_weights, read_safetensors, read_weights
from alight.runtime.errors import InputError, one_line
from alight.runtime.reading import read_json_object

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "StrictlyLoaded",
    "is_hub_id",
    "load_strictly",
    "open_model_folder",
    "read_safetensors",
]

ModelT = TypeVar("ModelT", bound=ModelMixin)
LAYERS = ("num_layers", "layers_per_block")  # fields of a configuration that set the number of layers
LAYERS_LIMIT = 1_000


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
            **options: `dtype` (or `torch_dtype`), `variant` and `output_loading_info` as in diffusers, and what
                concerns downloads. Weights become float32 unless a type is given; "auto" is that of the file.

        Raises:
            InputError: if files are missing or damaged, weights and configuration do not fit, or a keyword is unknown
                or cannot be heeded.
        """
        origin, what = pretrained_model_name_or_path, f"{cls.__name__}.from_pretrained"
        if not isinstance(origin, str | os.PathLike) or not str(origin):
            raise InputError(f"{what} takes a folder or a hub id, not {origin!r}.")
        check_options(options, what)
        dtype = resolve_dtype(options, what)
        if not is_hub_id(origin):
            model = open_model_folder(cls, Path(origin, subfolder or ""), options.get("variant"), dtype)
            found: dict[str, Any] = {
                "missing_keys": [],
                "unexpected_keys": [],
                "mismatched_keys": [],
                "error_msgs": [],
            }
        else:
            model, found = cls._fetch(origin, subfolder, dtype, options)
        return (model, found) if options.get("output_loading_info") else model

    @classmethod
    def _fetch(cls, origin: Any, subfolder: str | None, dtype: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
        """Load a model of the hub with the library's loader; mismatches that it reports are errors."""
        own = ("dtype", "torch_dtype", "output_loading_info", "use_safetensors")
        passed = {name: value for name, value in options.items() if name not in own}
        if dtype == "auto":
            raise InputError(f"'{origin}' is on the hub, where dtype='auto' does not work. Give a type or a folder.")
        if dtype is not None:
            passed["dtype"] = dtype
        try:
            model, found = super().from_pretrained(
                origin, subfolder=subfolder, output_loading_info=True, use_safetensors=True, **passed
            )
        except OSError as error:
            raise InputError(
                f"'{origin}' is not a folder, and as a hub id it cannot be downloaded ({one_line(error)}). Check the "
                "name and the network, or download it elsewhere and give the folder."
            ) from error
        wrong = {kind: names for kind, names in found.items() if names}
        if wrong:
            raise InputError(f"The weights in {origin} do not fit their configuration: {wrong}. Get them again.")
        return model, found

    @classmethod
    def check_before_building(cls, config: Mapping[str, Any], weights: Mapping[str, Tensor], source: Any) -> None:
        """Refuse a configuration that would build something far larger than the weights; for subclasses."""

    def check_loaded(self, source: Any) -> None:
        """Refuse invalid fields of the configuration that nothing else checks before they are used."""


def is_hub_id(origin: Any) -> bool:
    """Tell if this can only be a name on the hub: owner/name, and neither it nor its parent is a folder."""
    folder = Path(origin)
    if "\0" in str(origin):
        raise InputError(f"{str(origin)!r:.200} is neither a folder nor a hub id: it has a NUL. Check the path.")
    return not folder.exists() and not folder.parent.exists() and str(origin).count("/") == 1


def open_model_folder(
    cls: type[ModelT], folder: Path, variant: str | None = None, dtype: torch.dtype | str | None = None
) -> ModelT:
    """Build a diffusers model from its folder, in eval mode.

    Weights under the attention names of diffusers before 0.17 (query, key, value, proj_attn), as in the files of the
    original Stable Diffusion, are taken as what they are called today.

    Args:
        cls: a diffusers model.
        folder: holds `config.json` and `diffusion_pytorch_model.safetensors`, or the shards of such a file.
        variant: of the weights files, see `find_weights`.
        dtype: of the model; None = float32, "auto" = that of the weights.

    Raises:
        InputError: if a file is missing or damaged, or if the weights do not fit the configuration.
    """
    verify_folder(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder} is not a {cls.__name__} folder: it has no {CONFIG_FILE}. {_advice(folder)}")
    files = find_weights(folder, variant)
    if not files:
        name = f"{WEIGHTS_FILE}{f' of the variant {variant!r}' if variant else ''}"
        raise InputError(f"{folder} is not a {cls.__name__} folder: it has no {name}. {_advice(folder)}")
    config = _read_config(cls, folder)
    weights, source = read_weights(files), files[0] if len(files) == 1 else folder
    model = _build(cls, config, weights, folder / CONFIG_FILE, source)
    model.load_state_dict(weights, strict=True)
    if isinstance(model, StrictlyLoaded):
        model.check_loaded(folder / CONFIG_FILE)
    if dtype == "auto":
        dtype = next((value.dtype for value in weights.values() if value.is_floating_point()), None)
    return model.to(dtype).eval() if dtype is not None else model.eval()


def _read_config(cls: type[ModelT], folder: Path) -> dict[str, Any]:
    config = read_json_object(folder / CONFIG_FILE, "Restore the file that was saved with the weights.")
    kind = config.get("_class_name", cls.__name__)
    if kind not in [ancestor.__name__ for ancestor in cls.__mro__]:
        raise InputError(f"{folder} holds a {kind}, not a {cls.__name__}. Check the path.")
    for name in LAYERS:
        if isinstance(config.get(name), int) and config[name] > LAYERS_LIMIT:
            raise InputError(
                f"{folder / CONFIG_FILE} has {name} {config[name]}, more than the limit of {LAYERS_LIMIT}. "
                "Restore the file that was saved with the weights."
            )
    return config


def _build(cls: type[ModelT], config: dict[str, Any], weights: dict[str, Tensor], place: Path, source: Any) -> ModelT:
    """Build the model of a configuration after checking its size against the weights, which are renamed in place."""
    try:
        if issubclass(cls, StrictlyLoaded):
            cls.check_before_building(config, weights, place)
        with torch.device("meta"):  # takes no memory
            outline = cls.from_config(config)
        outline._fix_state_dict_keys_on_load(weights)  # what the library's own loader calls
        check_fit(outline, weights, source)
        return cls.from_config(config)
    except InputError:
        raise
    except Exception as error:  # wrong types and values fail in the networks, in their own ways
        raise InputError(
            f"{place} does not describe a {cls.__name__} ({one_line(error)}). Restore the file that was saved with "
            "the weights."
        ) from error


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], source: Any) -> None:
    """Load weights that must match the model exactly.

    Raises:
        InputError: lists what is missing, unexpected, of another shape, or not finite.
    """
    check_fit(model, weights, source)
    model.load_state_dict(dict(weights), strict=True)


def check_fit(model: nn.Module, weights: Mapping[str, Tensor], source: Any) -> None:
    """Refuse weights that do not match a model, which may be on the meta device.

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
