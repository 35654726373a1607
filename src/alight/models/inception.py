"""The Inception-v3 network of 2015-12-05 (Szegedy et al. 2016), on whose activations FID and its relatives are taken.

The weights are those of the TensorFlow graph `classify_image_graph_def.pb`, in the file that pytorch-fid and others
publish; modules are named as in that file. The graph differs from torchvision's Inception-v3: average pools do not
count the padding, the last block pools by the maximum, and there are 1,008 classes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alight.models.pretrained import load_strictly
from alight.runtime.download import PublicFile
from alight.runtime.errors import InputError

WEIGHTS = PublicFile(
    "Inception-v3 weights of 2015-12-05",
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d",
)

INPUT_SIZE = 299
POOL_DIM = 2048
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7  # of 17 x 17 positions: 2,023 numbers, about as many as the pool has

Resize = Literal["tensorflow", "pytorch"]


class InceptionOutput(NamedTuple):
    """The activations that scores are made of, float32.

    Attributes:
        pool: (B, 2048), the mean over the last grid: FID, precision and recall, KID.
        spatial: (B, 2023), the first 7 channels of `Mixed_6d.branch1x1`, position by position: sFID
            (Nash et al. 2021).
        logits: (B, 1008), without the bias of the last layer: the Inception score, as it has always been computed.
    """

    pool: Tensor
    spatial: Tensor
    logits: Tensor


class InceptionV3(nn.Module):
    """Inception-v3 as the evaluators of generative models run it: frozen, in eval mode and float32.

        network = InceptionV3.from_file()
        network(images).pool

    Two ways of bringing images to 299 x 299 are in use, and they give different scores:

    * `tensorflow`, inside the graph of 2015: bilinear, without antialiasing, output pixel i at i * in / out; then
      (x - 128) / 128. The ADM evaluator's FID, sFID, Inception score, precision and recall.
    * `pytorch`, of pytorch-fid: bilinear, without antialiasing, at (i + 1/2) * in / out - 1/2; then 2 x / 255 - 1.
      The published rFID.

    Shapes: (B, 3, H, W) in [-1, 1] -> pool (B, 2048), spatial (B, 2023), logits (B, 1008).
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2, padding=0)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, padding=0)
        self.Mixed_5b = Block(192, _grid_35(pool_channels=32), _average())
        self.Mixed_5c = Block(256, _grid_35(pool_channels=64), _average())
        self.Mixed_5d = Block(288, _grid_35(pool_channels=64), _average())
        self.Mixed_6a = Block(288, _GRID_35_TO_17, nn.MaxPool2d(3, stride=2))
        self.Mixed_6b = Block(768, _grid_17(channels=128), _average())
        self.Mixed_6c = Block(768, _grid_17(channels=160), _average())
        self.Mixed_6d = Block(768, _grid_17(channels=160), _average())
        self.Mixed_6e = Block(768, _grid_17(channels=192), _average())
        self.Mixed_7a = Block(768, _GRID_17_TO_8, nn.MaxPool2d(3, stride=2))
        self.Mixed_7b = Block(1280, _GRID_8, _average())
        self.Mixed_7c = Block(2048, _GRID_8, nn.MaxPool2d(3, stride=1, padding=1))
        self.fc = nn.Linear(POOL_DIM, NUM_CLASSES)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_file(cls, path: str | Path | None = None) -> "InceptionV3":
        """Load the network with the published weights; scores with other weights would not be comparable.

        Args:
            path: of `pt_inception-2015-12-05-6726825d.pth`; None or `download` = fetched once into the cache folder.

        Raises:
            InputError: if the file is missing, damaged or another one; says where to get it.
        """
        path = WEIGHTS.locate(path)
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise InputError(f"{path} cannot be read as PyTorch weights. Get {WEIGHTS.url} again.") from error
        model = cls()
        counters = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
        load_strictly(model, counters | weights, source=path)  # files of older PyTorch lack the counters
        return model

    def forward(self, images: Tensor, resize: Resize = "tensorflow") -> InceptionOutput:
        """Activations of 8-bit images.

        Args:
            images: (B, 3, H, W), x / 127.5 - 1 of 8-bit x; rounding recovers x exactly.
            resize: the way to 299 x 299 that the score prescribes.

        Raises:
            InputError: the images are no floating-point RGB, or `resize` is unknown.
        """
        x = self.Conv2d_1a_3x3(prepare(images, resize))  # (B, 32, 149, 149)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(x))  # (B, 64, 147, 147)
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (B, 192, 71, 71)
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (B, 288, 35, 35)
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))  # (B, 768, 17, 17)
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # a block's output begins with its branch1x1
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))  # (B, 2048, 8, 8)
        pool = x.mean(dim=(2, 3))
        return InceptionOutput(pool, spatial, F.linear(pool, self.fc.weight))


def prepare(images: Tensor, resize: Resize) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] to the input of the network, (B, 3, 299, 299)."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise InputError(
            "Inception-v3 takes images (B, 3, H, W) in [-1, 1], floating-point, but got the shape "
            f"{tuple(images.shape)} of {images.dtype}; grey images need their channel three times."
        )
    pixels = ((images.float() + 1) * 127.5).round()
    match resize:
        case "tensorflow":
            return (resize_like_tensorflow(pixels, INPUT_SIZE) - 128) / 128
        case "pytorch":
            size = (INPUT_SIZE, INPUT_SIZE)
            return 2 * F.interpolate(pixels / 255, size, mode="bilinear", align_corners=False) - 1
    raise InputError(f"Inception-v3 supports the resizing 'tensorflow' and 'pytorch', but not {resize!r}.")


def resize_like_tensorflow(images: Tensor, size: int) -> Tensor:
    """Bilinear resizing with TensorFlow 1's default: output pixel i is at i * in / out, not at pixel centres.

    So the last input row and column weigh less than the first, and shrinking skips pixels.

    Args:
        images: (B, C, H, W), float32.
        size: height and width of the result.

    Returns:
        (B, C, size, size).
    """
    for dim in (3, 2):
        last = images.shape[dim] - 1
        position = torch.arange(size, device=images.device) * ((last + 1) / size)
        below = position.floor().long()
        weight = (position - below).view(-1, *[1] * (3 - dim))
        low, high = images.index_select(dim, below), images.index_select(dim, (below + 1).clamp(max=last))
        images = low + (high - low) * weight
    return images


# --- the parts --------------------------------------------------------------------------------------------------


class Convolution(nn.Module):
    """Convolution without bias, batch normalisation, ReLU; without `padding` it keeps the size of the grid."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        borders = (height // 2, width // 2) if padding is None else (padding, padding)
        self.conv = nn.Conv2d(in_channels, channels, (height, width), stride, borders, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, channels, H', W')."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Layer(NamedTuple):
    """One convolution of a block: its source ("input", "pool" or a layer's name), width, kernel and stride."""

    source: str
    channels: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1


class Block(nn.Module):
    """Parallel convolutions and a pooling; the outputs that no layer reads are joined along the channels.

    Args:
        in_channels: of the input.
        layers: the convolutions by name, in the order of the result; with stride 2 they have no padding.
        pool: the pooling of the input, which is read by the last layer, or is the last part of the result.
    """

    def __init__(self, in_channels: int, layers: Mapping[str, Layer], pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        channels = {"input": in_channels, "pool": in_channels}
        for name, (source, width, kernel, stride) in layers.items():
            self.add_module(name, Convolution(channels[source], width, kernel, stride, None if stride == 1 else 0))
            channels[name] = width
        self._sources = {name: layer.source for name, layer in layers.items()}
        self._joined = [name for name in (*layers, "pool") if name not in self._sources.values()]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, sum of the joined widths, H', W')."""
        values = {"input": x, "pool": self.pool(x)}
        for name, source in self._sources.items():
            values[name] = self.get_submodule(name)(values[source])
        return torch.cat([values[name] for name in self._joined], dim=1)


def _average() -> nn.Module:
    """The mean of each 3 x 3 window, at the borders of those positions that exist."""
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def _grid_35(pool_channels: int) -> dict[str, Layer]:
    """Blocks at 35 x 35: a 5 x 5 convolution, and beside it another as two of 3 x 3 (figure 5)."""
    return {
        "branch1x1": Layer("input", 64),
        "branch5x5_1": Layer("input", 48),
        "branch5x5_2": Layer("branch5x5_1", 64, 5),
        "branch3x3dbl_1": Layer("input", 64),
        "branch3x3dbl_2": Layer("branch3x3dbl_1", 96, 3),
        "branch3x3dbl_3": Layer("branch3x3dbl_2", 96, 3),
        "branch_pool": Layer("pool", pool_channels),
    }


_GRID_35_TO_17 = {
    "branch3x3": Layer("input", 384, 3, stride=2),
    "branch3x3dbl_1": Layer("input", 64),
    "branch3x3dbl_2": Layer("branch3x3dbl_1", 96, 3),
    "branch3x3dbl_3": Layer("branch3x3dbl_2", 96, 3, stride=2),
}


def _grid_17(channels: int) -> dict[str, Layer]:
    """Blocks at 17 x 17: 7 x 7 convolutions as a row and a column (figure 6)."""
    return {
        "branch1x1": Layer("input", 192),
        "branch7x7_1": Layer("input", channels),
        "branch7x7_2": Layer("branch7x7_1", channels, (1, 7)),
        "branch7x7_3": Layer("branch7x7_2", 192, (7, 1)),
        "branch7x7dbl_1": Layer("input", channels),
        "branch7x7dbl_2": Layer("branch7x7dbl_1", channels, (7, 1)),
        "branch7x7dbl_3": Layer("branch7x7dbl_2", channels, (1, 7)),
        "branch7x7dbl_4": Layer("branch7x7dbl_3", channels, (7, 1)),
        "branch7x7dbl_5": Layer("branch7x7dbl_4", 192, (1, 7)),
        "branch_pool": Layer("pool", 192),
    }


_GRID_17_TO_8 = {
    "branch3x3_1": Layer("input", 192),
    "branch3x3_2": Layer("branch3x3_1", 320, 3, stride=2),
    "branch7x7x3_1": Layer("input", 192),
    "branch7x7x3_2": Layer("branch7x7x3_1", 192, (1, 7)),
    "branch7x7x3_3": Layer("branch7x7x3_2", 192, (7, 1)),
    "branch7x7x3_4": Layer("branch7x7x3_3", 192, 3, stride=2),
}

# at 8 x 8, wide: the last convolution of a branch is a row beside a column (figure 7)
_GRID_8 = {
    "branch1x1": Layer("input", 320),
    "branch3x3_1": Layer("input", 384),
    "branch3x3_2a": Layer("branch3x3_1", 384, (1, 3)),
    "branch3x3_2b": Layer("branch3x3_1", 384, (3, 1)),
    "branch3x3dbl_1": Layer("input", 448),
    "branch3x3dbl_2": Layer("branch3x3dbl_1", 384, 3),
    "branch3x3dbl_3a": Layer("branch3x3dbl_2", 384, (1, 3)),
    "branch3x3dbl_3b": Layer("branch3x3dbl_2", 384, (3, 1)),
    "branch_pool": Layer("pool", 192),
}
