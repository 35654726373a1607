"""Open a vision transformer from a folder, the Hugging Face hub, or timm.

From any origin, the model maps pixels to `last_hidden_state`, and has a `config` with `model_type`, `patch_size`,
`hidden_size` and `image_size`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple, NotRequired

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.utils import logging as hub_logging
from pydantic import ConfigDict, Field, with_config
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging
from typing_extensions import TypedDict

from alight.artifacts import is_complete, read_artifact, verify_folder
from alight.models.foundation_catalogue import IMAGENET_MEAN, IMAGENET_STD, FoundationRow, find_row, known_names
from alight.runtime.console import log
from alight.runtime.errors import InputError
from alight.runtime.reading import read_json

TIMM = "timm:"
SIDE_LIMIT = 16_384  # pixels


@with_config(ConfigDict(strict=True, allow_inf_nan=False, extra="allow"))
class _Preprocessing(TypedDict):
    """`preprocessor_config.json`, as far as it is used here."""

    image_mean: NotRequired[Annotated[list[float], Field(min_length=3, max_length=3)]]
    image_std: NotRequired[Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]]


class OpenedBackbone(NamedTuple):
    """A vision transformer, and the pixels it was trained on.

    Attributes:
        model: the module.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        row: of the catalogue, where the model has one.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    row: FoundationRow | None = None


def open_backbone(name: str) -> OpenedBackbone:
    """Open a model in float32 by its short name, hub id, `transformers` folder, or `timm:` and its name in timm.

    Raises:
        InputError: if it cannot be found or downloaded, if weights are missing, or if it is not a vision transformer.
    """
    if name.startswith(TIMM):
        return _open_timm(name.removeprefix(TIMM))
    if Path(name).is_dir():
        if is_complete(Path(name)):  # an artifact, which says what it is
            read_artifact(Path(name), "foundation", verify=False)
        return _open_transformers(name, name, None)
    row = find_row(name)
    if row is not None:
        return _open_transformers(name, row.hub_id, row)
    if name.count("/") != 1 or Path(name).parent.is_dir():  # a path, since a hub id is owner/name
        raise InputError(
            f"The foundation model '{name}' cannot be loaded: there is no such folder, and no model with that short "
            f"name. Give a folder in the transformers format, a hub id (owner/name), or a short name: "
            f"{known_names(name)}"
        )
    return _open_transformers(name, name, None)


def _open_transformers(name: str, origin: str, row: FoundationRow | None) -> OpenedBackbone:
    verify_folder(Path(origin))
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(origin)
            config = getattr(config, "vision_config", config)  # of a model for images and text, the image side
            model, info = AutoModel.from_pretrained(
                origin, config=config, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:
        raise InputError(_cannot_be_loaded(name, origin, row, error)) from error
    wanted = ("patch_size", "image_size", "output_channels" if hasattr(config, "output_channels") else "hidden_size")
    lacks = [key for key in wanted if not hasattr(config, key)]
    lacks += sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if lacks:
        raise InputError(
            f"'{name}' is not a complete vision transformer: it lacks {', '.join(lacks[:3])}. Give a transformers "
            "ViT such as dinov2-large."
        )
    sides = [side for key in ("patch_size", "image_size") for side in _sides(getattr(config, key))]
    if not all(isinstance(side, int) and 0 < side <= SIDE_LIMIT for side in sides):
        raise InputError(
            f"'{name}' has patch_size {config.patch_size} and image_size {config.image_size}, where whole numbers of "
            "pixels are needed. Get its config.json again."
        )
    mean, std = _pixel_statistics(origin, row)
    return OpenedBackbone(model, mean, std, row)


def _sides(size: Any) -> list[Any]:
    return list(size) if isinstance(size, list | tuple) else [size]


def _cannot_be_loaded(name: str, origin: str, row: FoundationRow | None, error: Exception) -> str:
    reason = _one_sentence(error)
    needed = "config.json, preprocessor_config.json and model.safetensors"
    if Path(origin).is_dir():
        return (
            f"The foundation model in {origin} cannot be loaded ({reason}). The folder should hold {needed} in the "
            "transformers format, as save_pretrained writes them; get or write them again."
        )
    known = f" (hub id {origin})" if origin != name else ""
    licence = ", once its licence is accepted there and 'hf auth login' was called" if row and row.gated else ""
    return (
        f"The foundation model '{name}'{known} cannot be loaded: it is no folder here, and not in the Hugging Face "
        f"cache {HF_HUB_CACHE} (set HF_HOME to use another), and downloading it failed ({reason}). Where there is a "
        f"network it comes by itself from https://huggingface.co/{origin}{licence}. Else get {needed} from there, put "
        "them into a folder and give that folder; or train a small model with 'alight foundation train'."
    )


def _pixel_statistics(origin: str, row: FoundationRow | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std that a model was trained with: from its preprocessor file, else its row, else ImageNet's."""
    found: str | None = str(Path(origin) / "preprocessor_config.json")
    if not Path(origin).is_dir():
        found = cached_file(
            origin,
            "preprocessor_config.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    if found and Path(found).is_file():
        values = read_json(Path(found), _Preprocessing, "Get it again, with the weights it belongs to.")
        if "image_mean" in values and "image_std" in values:
            return tuple(values["image_mean"]), tuple(values["image_std"])
    if row is not None:
        return row.mean, row.std
    log.warning("%s has no preprocessor_config.json: its pixels get the mean and std of ImageNet.", origin)
    return IMAGENET_MEAN, IMAGENET_STD


class TimmBackbone(nn.Module):
    """A timm vision transformer with the call and the configuration of a `transformers` one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(
            model_type="timm",
            patch_size=model.patch_embed.patch_size,
            hidden_size=model.num_features,
            image_size=model.patch_embed.img_size,
        )

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        """Normalised tokens (B, prefix + N, D), as `last_hidden_state`."""
        return SimpleNamespace(last_hidden_state=self.model.forward_features(pixels))


def _open_timm(name: str) -> OpenedBackbone:
    try:
        import timm
    except Exception as error:  # also if its torchvision does not match the installed torch
        raise InputError(
            f"'{TIMM}{name}' needs timm, which cannot be imported ({_one_sentence(error)}). Install it "
            "with pip install 'alight[timm]', and a torchvision that fits the installed torch."
        ) from error
    try:
        # positions are resampled by timm itself: bicubic with antialiasing, at any multiple of the patch
        model = timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True)
        settings = model.pretrained_cfg
        return OpenedBackbone(TimmBackbone(model), tuple(settings["mean"]), tuple(settings["std"]))
    except Exception as error:
        raise InputError(
            f"timm cannot open '{name}' as a vision transformer of any image size "
            f"({_one_sentence(error)}). Give the name of a pretrained ViT, such as "
            "timm:vit_large_patch14_dinov2.lvd142m, if there is a network; or the folder of its download, as "
            "timm:local-dir:FOLDER."
        ) from error


def _one_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0][:200]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turn off the library's warnings and bars while a model is opened or saved; the same is checked here."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_verbosity = hub_logging.get_verbosity()  # of the downloads
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
