"""The features of FD-DINOv2 (Stein et al. 2023): the class token of DINOv2 ViT-L/14 on images of 224 pixels.

Three conventions of the published evaluator change the score, and are kept here: images are resized by Pillow's
bicubic filter on 8-bit pixels, pixels are normalised by ImageNet's mean and std, and positions are resampled as by the
authors of DINOv2, which differs from `transformers` and timm.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from alight.models.foundation_catalogue import IMAGENET_MEAN, IMAGENET_STD
from alight.models.foundation_loading import open_backbone
from alight.runtime.errors import InputError

INPUT_SIZE = 224
POSITION_OFFSET = 0.1  # of the authors: the grid is resampled by the factor (patches + 0.1) / native patches
VIT_LARGE_14 = {"model_type": "dinov2", "hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14}


class DINOv2ClassToken(nn.Module):
    """The normalised class token of a DINOv2 without registers.

        network = DINOv2ClassToken.from_pretrained("dinov2-large")
        network(pixels)  # (B, H, W, 3) uint8 -> (B, 1024)

    Args:
        backbone: `Dinov2Model` of `transformers`, with learned positions.
        name: in reports.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, name: str = "dinov2") -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        self.name = name
        config: Any = backbone.config
        self.dimension = int(config.hidden_size)
        self._patch_size = int(config.patch_size)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self._table = self._positions_at(INPUT_SIZE // self._patch_size)
        backbone.embeddings.interpolate_pos_encoding = self._resampled  # type: ignore[union-attr]

    @classmethod
    def from_pretrained(cls, name: str) -> "DINOv2ClassToken":
        """Load ViT-L/14, and no other model: a distance in other features has another name.

        Args:
            name: a short name such as `dinov2-large`, a hub id, or a `transformers` folder.

        Raises:
            InputError: it cannot be loaded, or is another model.
        """
        backbone = open_backbone(name).model
        config: Any = backbone.config
        found = {key: getattr(config, key, None) for key in VIT_LARGE_14}
        if found != VIT_LARGE_14:
            differing = ", ".join(f"{key} {found[key]}" for key in VIT_LARGE_14 if found[key] != VIT_LARGE_14[key])
            raise InputError(
                f"FD-DINOv2 is defined by the features of DINOv2 ViT-L/14 without registers, but '{name}' has "
                f"{differing}. Give dinov2-large, or give this model as --foundation: the distance is then reported "
                "under its own name."
            )
        return cls(backbone, name)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Class tokens (B, D), float32, of images (B, H, W, 3) uint8 on any device."""
        pixels = resize_by_pillow(images, INPUT_SIZE).to(self.mean.device)  # (B, 3, 224, 224)
        tokens = self.backbone((pixels / 255 - self.mean) / self.std).last_hidden_state  # (B, 1 + N, D)
        return tokens[:, 0].float()

    def _positions_at(self, side: int) -> Tensor:
        """Learned positions (1, 1 + side^2, D), resampled as by the authors."""
        table: Tensor = self.backbone.embeddings.position_embeddings  # type: ignore[union-attr, assignment]
        native = round((table.shape[1] - 1) ** 0.5)
        prefix, patches = table[:, :1], table[:, 1:]
        if side != native:
            square = patches.reshape(1, native, native, -1).permute(0, 3, 1, 2).float()
            factor = (side + POSITION_OFFSET) / native
            square = F.interpolate(square, scale_factor=(factor, factor), mode="bicubic")
            patches = square.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
        return torch.cat([prefix, patches], dim=1)

    def _resampled(self, embeddings: Tensor, *_: Any) -> Tensor:
        return self._table.to(embeddings)


def resize_by_pillow(images: Tensor, size: int) -> Tensor:
    """8-bit images (B, H, W, 3) to (B, 3, size, size) float32 in [0, 255], by Pillow's antialiased bicubic filter."""
    resized = [
        np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
        for image in images.cpu().numpy()
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float()
