"""Vision foundation models as targets of the alignment: any `transformers` ViT behind one call.

What differs between DINOv2, MAE, SigLIP, CLIP and a user's own ViT (patch size, prefix tokens, normalisation,
position embedding at other sizes) is read from the model's own files here and nowhere else.
"""

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from alight.runtime.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PUBLISHED_SIZE = 224


class FoundationModel(nn.Module):
    """A frozen vision transformer that turns images into a grid of patch features.

    Args:
        backbone: a `transformers` vision model whose output has `last_hidden_state`.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        name: what logs and reports call it.
        input_mode: `own` resizes the image so that the patch grid meets the latent grid, and normalises as the
            model was trained; `published` feeds [-1, 1] pixels without normalisation, resized bilinearly to 224 for
            patch size 14, as the released tokenizer was trained.

    Attributes:
        patch_size, feature_dim, num_prefix_tokens: of the model.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        name: str = "foundation",
        input_mode: str = "own",
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.name, self.input_mode = name, input_mode
        config: Any = backbone.config
        self._shuffles_patches = config.model_type == "vit_mae"
        if self._shuffles_patches:
            config.mask_ratio = 0.0  # all patches are wanted, not the visible quarter of its training
        patch = config.patch_size
        self.patch_size = int(patch if isinstance(patch, int) else patch[0])
        self.feature_dim = int(config.hidden_size)
        self.native_size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        self._accepts = set(inspect.signature(backbone.forward).parameters)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def from_pretrained(cls, name: str, input_mode: str = "own") -> "FoundationModel":
        """Load from a `transformers` folder or hub id.

        Raises:
            InputError: if it cannot be found or downloaded, if weights are missing, or if it is no vision transformer.
        """
        try:
            with quiet_transformers():
                backbone, info = AutoModel.from_pretrained(name, output_loading_info=True)
        except Exception as error:
            raise InputError(
                f"The foundation model '{name}' cannot be loaded ({' '.join(str(error).split())[:200]}). Give a "
                "folder in the transformers format (config.json and model.safetensors), or a hub id where there is a "
                "network; else download it elsewhere and give the folder, or train a small one with 'alight "
                "foundation train'."
            ) from error
        backbone = getattr(backbone, "vision_model", backbone)
        missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
        if missing or not hasattr(backbone.config, "patch_size"):
            raise InputError(
                f"'{name}' is not a complete vision transformer: "
                f"{'it lacks ' + ', '.join(missing[:3]) if missing else 'it has no patch size'}. "
                "Give a transformers ViT such as facebook/dinov2-large."
            )
        mean, std = _pixel_statistics(name)
        return cls(backbone, mean, std, name=str(name), input_mode=input_mode)

    @torch.no_grad()
    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch features on the given grid.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            grid: (h, w), the latent grid to be met.

        Returns:
            (B, feature_dim, h, w).
        """
        features = self._patch_features(self._prepare(images, grid))
        if features.shape[2:] != grid:  # a model fed at a fixed size: meet the grid afterwards
            features = F.interpolate(features, size=grid, mode="bilinear", antialias=True)
        return features

    def _prepare(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.input_mode == "published":
            size = (_PUBLISHED_SIZE, _PUBLISHED_SIZE) if self.patch_size == 14 else images.shape[2:]
            return F.interpolate(images, size=size, mode="bilinear")
        size = (grid[0] * self.patch_size, grid[1] * self.patch_size)
        if images.shape[2:] != size:
            images = F.interpolate(images, size=size, mode="bicubic", antialias=True)
        return (images * 0.5 + 0.5 - self.mean) / self.std

    def _patch_features(self, pixels: Tensor) -> Tensor:
        h, w = pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size
        options: dict[str, Any] = {}
        if "interpolate_pos_encoding" in self._accepts and pixels.shape[2:] != (self.native_size, self.native_size):
            options["interpolate_pos_encoding"] = True
        if self._shuffles_patches:  # unless it is told their order
            options["noise"] = torch.arange(h * w, device=pixels.device).expand(len(pixels), -1)
        tokens = self.backbone(pixels, **options).last_hidden_state  # (B, prefix + N, D)
        self.num_prefix_tokens = tokens.shape[1] - h * w  # class token, registers, or none
        tokens = tokens[:, self.num_prefix_tokens :]  # (B, N, D)
        return tokens.transpose(1, 2).unflatten(2, (h, w))  # (B, D, h, w)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No warnings and bars of the library while a model is opened or saved: what they would say is checked here."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and std that a model was trained with, from its preprocessor file; ImageNet's where it has none."""
    path = Path(name) / "preprocessor_config.json"
    if not path.is_file() and not Path(name).is_dir():
        found = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        path = Path(found) if found else path
    values = json.loads(path.read_text()) if path.is_file() else {}
    return tuple(values.get("image_mean", IMAGENET_MEAN)), tuple(values.get("image_std", IMAGENET_STD))
