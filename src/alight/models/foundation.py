"""Vision foundation models as targets of the alignment: patch features of any vision transformer on any grid.

The differences between DINOv2, DINOv3, MAE, SigLIP, CLIP and a user's own ViT (patch size, prefix tokens,
normalisation, positions at other sizes) are read from the model, only in this file.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alight.models.foundation_catalogue import IMAGENET_MEAN, IMAGENET_STD, allowed_sizes
from alight.models.foundation_loading import open_backbone
from alight.runtime.console import log
from alight.runtime.errors import InputError, one_line
from alight.runtime.units import numbers_to

Size = tuple[int, int]  # height, width

_PUBLISHED_SIZE = 224
MOST_PREFIX_TOKENS = 64  # class tokens and registers
SAM = ("sam_vision_model", "sam_hq_vision_model")  # features after a neck, (B, D, h, w), at a single size
HIERARCHICAL = ("swin", "swinv2")  # every stage but the first joins 2 x 2 patches; windows are made for one size


@dataclass(frozen=True)
class FeaturePlan:
    """The computation of features on one grid.

    Attributes:
        grid: of the requested features, in latents.
        image_size: of the given images, in pixels.
        input_size: of the resized images that the model gets, in pixels.
        patch_grid: of the model's features, in patches.
        positions: `learned` for exactly this patch grid, `resampled` to it, or `computed` by the model for any.
        normalisation: of the pixels, in words.
    """

    grid: Size
    image_size: Size
    input_size: Size
    patch_grid: Size
    positions: str
    normalisation: str

    @property
    def resamples_features(self) -> bool:
        """Tell if the model's features are not on the requested grid."""
        return self.patch_grid != self.grid

    def __str__(self) -> str:
        images, fed, patches, grid = (
            f"{height}x{width}" for height, width in (self.image_size, self.input_size, self.patch_grid, self.grid)
        )
        features = f"features resampled from {patches} to {grid}" if self.resamples_features else f"features on {grid}"
        return f"images of {images} fed at {fed}, {self.normalisation}, positions {self.positions}, {features}"


class FoundationModel(nn.Module):
    """A frozen vision transformer that turns images into a grid of patch features.

    Learned positions are resampled to the patch grid by antialiased bicubic interpolation, once per grid, as in timm;
    `transformers` would do it in every call, and without antialiasing.

    Args:
        backbone: a vision model of `transformers`, or one with the same call, whose output has `last_hidden_state`.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        name: in logs and reports.
        input_mode: `own` resizes the image so that the patch grid meets the latent grid, and normalises as the
            model was trained; `published` feeds [-1, 1] pixels without normalisation, resized bilinearly to 224 for
            patch size 14, as the released tokenizer was trained.

    Attributes:
        family, patch_size, feature_dim, native_size: of the model.
        allowed_sizes: sides of its square inputs in the mode `own`; None = any multiple of the patch. For any other
            size the nearest is used and the features are resampled.
        layers: whose outputs are summed to the features, see `with_layers`; None = the output of the model.
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
        self.family = str(config.model_type)
        if self.family == "vit_mae":
            config.mask_ratio = 0.0  # use all patches, not the visible quarter as in its training
        self.patch_size = _side(config.patch_size)
        self.feature_dim = int(config.output_channels if self.family in SAM else config.hidden_size)
        self.native_size = _side(config.image_size)
        self.allowed_sizes = allowed_sizes(self.family, self.native_size)
        if self.family in HIERARCHICAL:
            self.patch_size *= 2 ** (len(config.depths) - 1)
        if self.family in SAM + HIERARCHICAL:
            self.allowed_sizes = (self.native_size,)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self._accepts = set(inspect.signature(backbone.forward).parameters)
        self._resampled: dict[tuple[Size, torch.device, torch.dtype], Tensor] = {}
        self._announced: set[FeaturePlan] = set()
        self.layers: tuple[int, ...] | None = None
        if self._learned_positions() is not None:
            if hasattr(backbone.embeddings, "interpolate_pos_encoding"):
                backbone.embeddings.interpolate_pos_encoding = self._positions
            else:
                self.allowed_sizes = (self.native_size,)

    @classmethod
    def from_pretrained(cls, name: str, input_mode: str = "own") -> "FoundationModel":
        """Load by a short name such as `dinov2-large`, a hub id, a `transformers` folder, or `timm:` and timm's name.

        Raises:
            InputError: if it cannot be found or downloaded, if weights are missing, if it is not a vision transformer,
                or if it is not the model of its name.
        """
        opened = open_backbone(str(name))
        model = cls(opened.model, opened.mean, opened.std, name=str(name), input_mode=input_mode)
        if opened.row is None:
            model.require_grid()
        else:
            keys = ("family", "patch_size", "feature_dim", "num_prefix_tokens", "native_size")
            found = {key: getattr(model, key) for key in keys}
            opened.row.check(str(name), found | {"mean": opened.mean, "std": opened.std})
        return model

    def with_layers(self, layers: Sequence[int] | None) -> Self:
        """Let the features be the sum of the outputs of some layers (RAEv2, Singh et al., arXiv 2605.18324).

        They are summed as they are: the norm at the end of the model, which its own output has passed, is not applied,
        so the last layer alone is not the same as None.

        Args:
            layers: numbers of the layers, from 1 to the number that there are; None = the output of the model.

        Raises:
            InputError: there is no such layer, or the layers give no grid of patches.
        """
        if layers is not None:
            if self.family in SAM + HIERARCHICAL:
                raise InputError(
                    f"alignment.layers needs a foundation model whose layers have one grid, and '{self.name}' is a "
                    f"{self.family}. Leave the layers out, or give a vision transformer such as DINOv2."
                )
            there = len(self.blocks)
            if missing := [number for number in layers if not 1 <= number <= there]:
                raise InputError(
                    f"alignment.layers asks for layer {missing[0]} of '{self.name}', which has {there}. Give "
                    f"{numbers_to(there)}."
                )
        self.layers = tuple(layers) if layers is not None else None
        return self

    def require_grid(self) -> None:
        """Check with a minimal empty image that the features form a grid of patches.

        Raises:
            InputError: they do not, or the model does not take images.
        """
        if self.family in SAM:  # checked on use: 1,024 x 1,024 pixels take a CPU many seconds
            return
        side = self.patch_size if self.allowed_sizes is None else self.native_size
        try:
            found = self.num_prefix_tokens
            with torch.no_grad():
                width = self._tokens(torch.zeros(1, 3, side, side).to(self.mean)).shape[-1]
        except Exception as error:  # other kinds of networks raise many types
            raise self._no_grid(f"an image of {side}x{side} pixels fails: {one_line(error, 150)}") from error
        if not 0 <= found <= MOST_PREFIX_TOKENS or width != self.feature_dim:
            patches = (side // self.patch_size) ** 2
            raise self._no_grid(f"{found + patches} features of {width} channels for {patches} patches")

    def _no_grid(self, found: str) -> InputError:
        return InputError(
            f"'{self.name}' cannot be used as a foundation model: a {self.family} gives no grid of patch features "
            f"({found}). Give a vision transformer such as DINOv2, MAE, SigLIP, CLIP, SAM or Swin."
        )

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before those of the patches (class token, registers), counted on a minimal image."""
        side = self.patch_size if self.allowed_sizes is None else self.native_size
        with torch.no_grad():
            tokens = self._tokens(torch.zeros(1, 3, side, side, device=self.mean.device, dtype=self.mean.dtype))
        return int(tokens.shape[1]) - (side // self.patch_size) ** 2

    @property
    def blocks(self) -> list[nn.Module]:
        """The layers of the network, which are equal but for their weights."""
        return repeated_blocks(self.backbone)

    def identity(self) -> str:
        """A hash of everything that its features depend on: name, weights and handling of the input.

        Reads all weights, so it takes a second for a large model.
        """
        settings: tuple[Any, ...] = (self.name, self.input_mode, self.mean.tolist(), self.std.tolist())
        settings += (self.allowed_sizes,) if self.layers is None else (self.allowed_sizes, self.layers)
        digest = sha256(repr(settings).encode())
        for name, value in self.backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def describe(self, grid: Size, image_size: Size) -> FeaturePlan:
        """Describe what `forward` does to images of this size for features on this grid; for logs and reports.

        Args:
            grid: (h, w), the latent grid.
            image_size: (H, W) in pixels.
        """
        if self.input_mode == "published":
            size = (_PUBLISHED_SIZE, _PUBLISHED_SIZE) if self.patch_size == 14 else image_size
        else:
            size = (grid[0] * self.patch_size, grid[1] * self.patch_size)
            if self.allowed_sizes is not None:
                side = min(self.allowed_sizes, key=lambda allowed: abs(allowed - max(size)))
                size = (side, side)
        patches = (size[0] // self.patch_size, size[1] // self.patch_size)
        native = self.native_size // self.patch_size
        positions = "computed"
        if self._learned_positions() is not None:
            positions = "learned" if patches == (native, native) else "resampled"
        normalisation = "as [-1, 1]" if self.input_mode == "published" else "normalised by its own mean and std"
        return FeaturePlan(grid, image_size, size, patches, positions, normalisation)

    @torch.no_grad()
    def forward(self, images: Tensor, grid: Size) -> Tensor:
        """Patch features on the given grid.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            grid: (h, w), the latent grid.

        Returns:
            (B, feature_dim, h, w), float32 in any precision of the network.
        """
        plan = self.describe((grid[0], grid[1]), (images.shape[2], images.shape[3]))
        if self.input_mode == "published":
            pixels = F.interpolate(images, size=plan.input_size, mode="bilinear")
        else:
            if plan.image_size != plan.input_size:
                images = F.interpolate(images, size=plan.input_size, mode="bicubic", antialias=True)
            pixels = (images * 0.5 + 0.5 - self.mean) / self.std
        height, width = plan.patch_grid
        tokens = self._tokens(pixels)[:, -height * width :]  # (B, N, D), without the prefix
        if tokens.shape[1:] != (height * width, self.feature_dim):
            raise self._no_grid(
                f"{tokens.shape[1]} features of {tokens.shape[2]} channels for {height * width} patches"
            )
        features = _at_least_float32(tokens).transpose(1, 2).unflatten(2, plan.patch_grid)  # (B, D, h, w)
        if plan.resamples_features:
            if plan not in self._announced and not images.is_meta:
                self._announced.add(plan)
                log.warning("The patch grid of %s differs from the latent grid: %s.", self.name, plan)
            features = F.interpolate(features, size=plan.grid, mode="bilinear", antialias=True)
        return features

    def _tokens(self, pixels: Tensor) -> Tensor:
        """All tokens (B, prefix + N, D) of normalised pixels, those of the patches row by row."""
        options: dict[str, Any] = {}
        if "interpolate_pos_encoding" in self._accepts:
            options["interpolate_pos_encoding"] = True
        if self.family == "vit_mae":  # it would shuffle the patches; sorted noise keeps their order
            count = (pixels.shape[2] // self.patch_size) * (pixels.shape[3] // self.patch_size)
            options["noise"] = torch.arange(count, device=pixels.device).expand(len(pixels), -1)
        if self.layers is not None:
            with _outputs([self.blocks[number - 1] for number in self.layers]) as outputs:
                self.backbone(pixels, **options)
            return torch.stack([_at_least_float32(output) for output in outputs]).sum(0)
        tokens: Tensor = self.backbone(pixels, **options).last_hidden_state
        if tokens.ndim == 4:  # (B, D, h, w), or (B, h, w, D) from timm
            return tokens.flatten(2).transpose(1, 2) if tokens.shape[1] == self.feature_dim else tokens.flatten(1, 2)
        return tokens

    def _learned_positions(self) -> Tensor | None:
        """The table of learned absolute positions (prefix + N, D), row by row; None if there is none."""
        embeddings = getattr(self.backbone, "embeddings", None) if self.family not in HIERARCHICAL else None
        parameter = getattr(embeddings, "position_embeddings", None)  # (1, prefix + N, D)
        module = getattr(embeddings, "position_embedding", None)  # nn.Embedding
        return parameter[0] if parameter is not None else getattr(module, "weight", None)

    def _positions(self, _: Tensor, height: int, width: int) -> Tensor:
        """Position embeddings for pixels of this size, (1, prefix + N, D), with those of the prefix unchanged."""
        table = self._learned_positions()
        assert table is not None
        grid, native = (height // self.patch_size, width // self.patch_size), self.native_size // self.patch_size
        if grid == (native, native):
            return table[None]
        key = (grid, table.device, table.dtype)
        if key not in self._resampled:
            prefix, patches = table.split([len(table) - native**2, native**2])
            square = _at_least_float32(patches).T.reshape(1, -1, native, native)  # (1, D, n, n)
            resampled = F.interpolate(square, size=grid, mode="bicubic", antialias=True)
            self._resampled[key] = torch.cat([prefix, resampled[0].flatten(1).T.to(table.dtype)])[None]
        return self._resampled[key]


@contextmanager
def _outputs(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The outputs of some layers of a network that is called in this context, in the order of their computation."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The layers in the longest list of them; of a vision transformer, its blocks."""
    lists = [list(module) for module in network.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _side(size: int | tuple[int, ...] | list[int]) -> int:
    return size if isinstance(size, int) else int(size[0])


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
