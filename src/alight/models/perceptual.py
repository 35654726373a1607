"""LPIPS with VGG16: a perceptual distance between images (Zhang et al. 2018, Eq. 1)."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from alight.models.pretrained import load_strictly
from alight.runtime.download import PublicFile
from alight.runtime.errors import InputError

VGG16 = PublicFile(
    "VGG16 weights of torchvision",
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af",
)
LPIPS_LINEAR = PublicFile(
    "linear layers of LPIPS v0.1",
    "lpips-v0.1-vgg.pth",
    "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
)

# channels of VGG16's convolutions, by stage; a stage ends before its pooling
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Distance of two images in the normalised features of five VGG16 stages.

    The network is frozen: gradients flow to the images only. Build it and load weights with `from_files`.

    Shapes: two times (B, 3, H, W) in [-1, 1], of at least 16 pixels -> (B, 1, 1, 1), at least float32.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stages = []  # of `features`, which are numbered as in torchvision
        layers: list[nn.Module] = []
        channels = 3
        for widths in _STAGES:
            start = len(layers)
            layers += [nn.MaxPool2d(2)] if start else []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.stages.append(slice(start, len(layers)))
        self.features = nn.Sequential(*layers)
        self.linear = nn.ParameterList(torch.ones(1, widths[-1], 1, 1) for widths in _STAGES)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_files(cls, vgg16_weights: str | Path | None = None, lpips_weights: str | Path | None = None) -> "LPIPS":
        """Load torchvision's VGG16 weights and the linear layers of LPIPS v0.1.

        Args:
            vgg16_weights: path of `vgg16-397923af.pth`; None or `download` = fetched once into the cache folder.
            lpips_weights: path of `vgg.pth`; likewise.

        Raises:
            InputError: if a file is missing, cannot be downloaded or is another one; says where to get it.
        """
        return cls.from_weights(_read(VGG16, vgg16_weights), _read(LPIPS_LINEAR, lpips_weights))

    @classmethod
    def from_weights(cls, vgg16: Mapping[str, Tensor], linear: Mapping[str, Tensor]) -> "LPIPS":
        """Build it from the contents of the two files.

        Args:
            vgg16: `features.N.weight` and `features.N.bias` of the convolutions; other entries are passed over.
            linear: `linN.model.1.weight` of the five stages, each (1, C, 1, 1).

        Raises:
            InputError: if a weight is missing, unexpected, of another shape or not finite.
        """
        model = cls()
        weights = {name: value for name, value in vgg16.items() if name.startswith("features.")}
        weights |= {
            re.sub(r"^lin(\d)\.model\.1\.weight$", r"linear.\1", name): value for name, value in linear.items()
        }
        load_strictly(model, weights, "the files of VGG16 and LPIPS")
        return model

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance per image pair, shape (B, 1, 1, 1)."""
        x, y = (a - self.shift) / self.scale, (b - self.shift) / self.scale
        distance = torch.zeros(1, device=x.device)
        for stage, weight in zip(self.stages, self.linear, strict=True):
            for layer in list(self.features)[stage]:
                x, y = layer(x), layer(y)
            distance = distance + stage_distance(x, y, weight)
        return distance


def stage_distance(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """The term of one stage in the distance: weighted squared differences of normalised features by position.

    It is taken in float32 whatever the network runs in.

    Args:
        x: features of one image (B, C, h, w).
        y: of the other.
        weight: of the channels (1, C, 1, 1).

    Returns:
        The mean over the positions, (B, 1, 1, 1).
    """
    difference = (_unit(x) - _unit(y)).square()  # (B, C, h, w)
    return (weight * difference).sum(1, keepdim=True).mean((2, 3), keepdim=True)


def _unit(x: Tensor) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)  # where x is zero, so is its gradient


def _read(file: PublicFile, given: str | Path | None) -> dict[str, Tensor]:
    path = file.locate(given)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path} cannot be read as {file.what}. Get it again from {file.url}.") from error
