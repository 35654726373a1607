"""LPIPS with VGG16: a perceptual distance between images (Zhang et al. 2018, Eq. 1)."""

from pathlib import Path

import torch
from torch import Tensor, nn

from alight.artifacts import file_hash
from alight.runtime.errors import InputError

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG16_SHA256_PREFIX = "397923af"
LPIPS_URL = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth"

# channels of VGG16's convolutions, by stage; a stage ends before its pooling
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Distance of two images in the normalised features of five VGG16 stages.

    The network is frozen: gradients flow to the images only. Build it and load weights with `from_files`.

    Shapes: two times (B, 3, H, W) in [-1, 1] -> (B, 1, 1, 1).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels = 3
        for index, widths in enumerate(_STAGES):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.stages.append(nn.Sequential(*layers))
        self.linear = nn.ModuleList(nn.Conv2d(widths[-1], 1, 1, bias=False) for widths in _STAGES)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_files(cls, vgg16_weights: Path, lpips_weights: Path) -> "LPIPS":
        """Load torchvision's VGG16 weights and the linear layers of LPIPS v0.1.

        Raises:
            InputError: if a file is missing, damaged or another one; says where to get it.
        """
        vgg = _load(vgg16_weights, "VGG16 weights", VGG16_URL, VGG16_SHA256_PREFIX)
        linear = _load(lpips_weights, "LPIPS linear weights", LPIPS_URL)
        model = cls()
        try:
            convolutions = [layer for layer in model.stages.modules() if isinstance(layer, nn.Conv2d)]
            indices = sorted({int(key.split(".")[1]) for key in vgg if key.startswith("features.")})
            for layer, index in zip(convolutions, indices, strict=True):
                layer.load_state_dict({name: vgg[f"features.{index}.{name}"] for name in ("weight", "bias")})
            for index, linear_layer in enumerate(model.linear):
                linear_layer.load_state_dict({"weight": linear[f"lin{index}.model.1.weight"]})
        except (KeyError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{vgg16_weights} and {lpips_weights} do not hold the layers of VGG16 and LPIPS v0.1 "
                f"({' '.join(str(error).split())[:200]}). Get them from {VGG16_URL} and {LPIPS_URL}."
            ) from error
        return model

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance per image pair, shape (B, 1, 1, 1)."""
        x, y = (a - self.shift) / self.scale, (b - self.shift) / self.scale
        distance = torch.zeros(len(a), 1, 1, 1, dtype=x.dtype, device=x.device)
        for stage, linear in zip(self.stages, self.linear, strict=True):
            x, y = stage(x), stage(y)
            difference = (_unit(x) - _unit(y)).square()  # (B, C, H, W)
            distance = distance + linear(difference).mean((2, 3), keepdim=True)
        return distance


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _load(path: Path, what: str, url: str, sha256_prefix: str = "") -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"The {what} are not at {path}. Get the file from {url} and give its path.")
    if not file_hash(path).startswith(sha256_prefix):
        raise InputError(f"{path} is not the expected file: its checksum does not match. Get it again from {url}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path} cannot be read as {what}. Get it again from {url}.") from error
