"""The table of vision foundation models with short names.

A row says what the published weights must turn out to be. Files that disagree with their row are refused, since a
tokenizer aligned with another model than the one named would look like any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from alight.runtime.errors import InputError

Channels = tuple[float, float, float]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
_HALF: tuple[Channels, Channels] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP: tuple[Channels, Channels] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)

# Contrastive image-text towers saw one size in all of their training, so their positions are not stretched to others.
SINGLE_SIZE_FAMILIES = frozenset({"clip_vision_model", "siglip_vision_model"})


@dataclass(frozen=True)
class FoundationRow:
    """The properties of one published model.

    Attributes:
        hub_id: owner/name on the Hugging Face hub.
        family: `model_type` of its `transformers` configuration (of the vision tower, where there are two).
        patch_size: side of a patch in pixels.
        feature_dim: channels of a patch feature.
        num_prefix_tokens: tokens before those of the patches: class token and registers.
        native_size: side in pixels of the images whose patch grid its positions were learned for.
        mean: of the pixels in [0, 1] it was trained on, per channel.
        std: likewise.
        gated: True if its licence must be accepted on the hub before the download.
    """

    hub_id: str
    family: str
    patch_size: int
    feature_dim: int
    num_prefix_tokens: int
    native_size: int
    mean: Channels
    std: Channels
    gated: bool = False

    @property
    def allowed_sizes(self) -> tuple[int, ...] | None:
        """Sides of its square inputs; None = any multiple of the patch."""
        return allowed_sizes(self.family, self.native_size)

    def check(self, name: str, found: Mapping[str, object]) -> None:
        """Refuse a loaded model that is not the one of this row.

        Raises:
            InputError: lists every attribute that differs.
        """
        differences = [
            f"{key} {value} instead of {getattr(self, key)}"
            for key, value in found.items()
            if value != getattr(self, key)
        ]
        if differences:
            raise InputError(
                f"The model loaded as '{name}' is not {self.hub_id}: it has {', '.join(differences)}. Its files were "
                "changed or mixed up; download them again, or give the folder of your own model instead of this name."
            )


FOUNDATIONS = {
    # self-distillation (Oquab et al. 2023; with registers, Darcet et al. 2023; DINOv3, Simeoni et al. 2025)
    "dinov2-small": FoundationRow("facebook/dinov2-small", "dinov2", 14, 384, 1, 518, *_IMAGENET),
    "dinov2-base": FoundationRow("facebook/dinov2-base", "dinov2", 14, 768, 1, 518, *_IMAGENET),
    "dinov2-large": FoundationRow("facebook/dinov2-large", "dinov2", 14, 1024, 1, 518, *_IMAGENET),
    "dinov2-small-registers": FoundationRow(
        "facebook/dinov2-with-registers-small", "dinov2_with_registers", 14, 384, 5, 518, *_IMAGENET
    ),
    "dinov2-base-registers": FoundationRow(
        "facebook/dinov2-with-registers-base", "dinov2_with_registers", 14, 768, 5, 518, *_IMAGENET
    ),
    "dinov2-large-registers": FoundationRow(
        "facebook/dinov2-with-registers-large", "dinov2_with_registers", 14, 1024, 5, 518, *_IMAGENET
    ),
    "dinov3-small": FoundationRow(
        "facebook/dinov3-vits16-pretrain-lvd1689m", "dinov3_vit", 16, 384, 5, 224, *_IMAGENET, gated=True
    ),
    "dinov3-base": FoundationRow(
        "facebook/dinov3-vitb16-pretrain-lvd1689m", "dinov3_vit", 16, 768, 5, 224, *_IMAGENET, gated=True
    ),
    "dinov3-large": FoundationRow(
        "facebook/dinov3-vitl16-pretrain-lvd1689m", "dinov3_vit", 16, 1024, 5, 224, *_IMAGENET, gated=True
    ),
    # masked autoencoders (He et al. 2022)
    "mae-base": FoundationRow("facebook/vit-mae-base", "vit_mae", 16, 768, 1, 224, *_IMAGENET),
    "mae-large": FoundationRow("facebook/vit-mae-large", "vit_mae", 16, 1024, 1, 224, *_IMAGENET),
    # images and text (Tschannen et al. 2025; Radford et al. 2021)
    "siglip2-base": FoundationRow("google/siglip2-base-patch16-256", "siglip_vision_model", 16, 768, 0, 256, *_HALF),
    "siglip2-large": FoundationRow(
        "google/siglip2-large-patch16-256", "siglip_vision_model", 16, 1024, 0, 256, *_HALF
    ),
    "clip-base": FoundationRow("openai/clip-vit-base-patch16", "clip_vision_model", 16, 768, 1, 224, *_CLIP),
    "clip-large": FoundationRow("openai/clip-vit-large-patch14", "clip_vision_model", 14, 1024, 1, 224, *_CLIP),
    # classifiers (Dosovitskiy et al. 2021)
    "vit-base": FoundationRow("google/vit-base-patch16-224", "vit", 16, 768, 1, 224, *_HALF),
    "vit-large": FoundationRow("google/vit-large-patch16-224", "vit", 16, 1024, 1, 224, *_HALF),
}


def find_row(name: str) -> FoundationRow | None:
    """The row with this short name or hub id, if there is one."""
    by_hub_id = {row.hub_id: row for row in FOUNDATIONS.values()}
    return FOUNDATIONS.get(name) or by_hub_id.get(name)


def allowed_sizes(family: str, native_size: int) -> tuple[int, ...] | None:
    """Sides of the square inputs of a model; None = any multiple of its patch."""
    return (native_size,) if family in SINGLE_SIZE_FAMILIES else None


def known_names(name: str) -> str:
    """The short names for a message: those like `name` if there are any, else all."""
    close = get_close_matches(name, FOUNDATIONS, n=3)
    return f"perhaps {' or '.join(close)}." if close else f"{', '.join(FOUNDATIONS)}."
