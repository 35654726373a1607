"""Square training images with reproducible augmentation: a torch data set over any image source."""

from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from alight.data.crops import fixed_crop, random_crop, scaled_sides
from alight.data.decode import RgbImage
from alight.data.images import ImageSource
from alight.data.sampling import epoch_of
from alight.options import Crop
from alight.runtime.background import mapped_in_threads
from alight.runtime.console import progress_bar
from alight.runtime.errors import InputError
from alight.runtime.seeding import derive_seed, random_stream

CACHE_BYTES = 256 * 2**20  # of crops in memory
_SECONDS_BEFORE_PROGRESS_BAR = 2.0


class ImageSample(NamedTuple):
    """One training image, or a batch of them.

    Attributes:
        image: (3, S, S) or (B, 3, S, S) uint8.
        label: class index; (B,) int64 in a batch.
        position: in the data set, by which anything stored per image can join it; (B,) int64 in a batch.
    """

    image: Tensor
    label: int | Tensor
    position: int | Tensor


class ImageDataset(Dataset[ImageSample]):
    """The images of a source, cropped to squares and optionally mirrored at random.

    The augmentation of an image is a function of (seed, epoch, index) alone, so that neither the number of workers nor
    an interruption changes it. The epoch comes with the index, from `ResumableSampler`; an ordinary int means epoch 0.

    Crops of a small source are decoded once, unless they are random, and kept in memory as one tensor.

    Args:
        source: the images.
        size: side of the square in pixels.
        crop: "center" (as the published latents), "random" (a random part of at least 0.8 of the short side), or
            "pad" (the whole image, with borders in the background colour of the source).
        horizontal_flip: mirror a random half of the images in every epoch.
        seed: of the augmentation.
        upscale: enlarge images that are smaller than the crop; False = refuse them.
        cache_bytes: keep the crops in memory if all of them fit into this many bytes; 0 = never.

    Raises:
        InputError: some images are smaller than the crop, or an argument is not valid.
    """

    def __init__(
        self,
        source: ImageSource,
        size: int,
        crop: Crop = "center",
        horizontal_flip: bool = False,
        seed: int = 0,
        upscale: bool = True,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if size < 1 or crop not in get_args(Crop):
            raise InputError(
                f"Images need a positive size and a crop of {', '.join(get_args(Crop))}, but got {size} and {crop!r}."
            )
        if not upscale:
            _require_large_enough(source, size, crop)
        self.source = source
        self.size = size
        self.crop = crop
        self.horizontal_flip = horizontal_flip
        self.seed = seed
        self._flips: dict[int, npt.NDArray[np.bool_]] = {}  # epoch -> (N,), of the current epoch only
        fits = crop != "random" and len(source) * 3 * size**2 <= cache_bytes
        self._fixed_crops = self._decode_all() if fits else None  # (N, 3, S, S) uint8

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> ImageSample:
        image = self._cropped(index)
        if self.horizontal_flip and self._is_flipped(index):
            image = image.flip(-1)
        return ImageSample(image, int(self.source.labels[index]), int(index))

    def __getitems__(self, indices: Sequence[int]) -> list[ImageSample]:
        """Many images at once, which `DataLoader` prefers; one copy of the cached crops instead of one per image."""
        if self._fixed_crops is None:
            return [self[index] for index in indices]
        images = self._fixed_crops[torch.tensor(indices)]  # (B, 3, S, S)
        if self.horizontal_flip:
            flipped = torch.tensor([self._is_flipped(index) for index in indices])
            images[flipped] = images[flipped].flip(-1)
        labels = self.source.labels[list(indices)].tolist()
        return [ImageSample(*sample) for sample in zip(images, labels, map(int, indices), strict=True)]

    def unaugmented(self, index: int) -> RgbImage:
        """The square without chance, decoded again: (S, S, 3) uint8."""
        return fixed_crop(self.source.load(index), self.size, self.crop, self.source.background)

    def _cropped(self, index: int) -> Tensor:
        if self._fixed_crops is not None:
            return self._fixed_crops[index].clone()
        if self.crop != "random":
            return _channels_first(self.unaugmented(index))
        generator = np.random.default_rng(derive_seed(self.seed, "crop", epoch_of(index), int(index)))
        return _channels_first(random_crop(self.source.load(index), self.size, generator))

    def _is_flipped(self, index: int) -> bool:
        """Look up one flip mask per epoch; a generator per image would cost 25 us."""
        epoch = epoch_of(index)
        if epoch not in self._flips:
            mask = torch.rand(len(self), generator=random_stream(self.seed, "flip", epoch)) < 0.5
            self._flips = {epoch: mask.numpy()}
        return bool(self._flips[epoch][index])

    def _decode_all(self) -> Tensor:
        crops = np.empty((len(self), 3, self.size, self.size), dtype=np.uint8)

        def decode(index: int) -> None:
            crops[index] = self.unaugmented(index).transpose(2, 0, 1)

        with closing(mapped_in_threads(decode, range(len(self)))) as decoded:
            for _ in progress_bar(
                decoded, total=len(self), desc="reading images", unit="image", delay=_SECONDS_BEFORE_PROGRESS_BAR
            ):
                pass
        return torch.from_numpy(crops)


def _channels_first(image: RgbImage) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def _require_large_enough(source: ImageSource, size: int, crop: Crop) -> None:
    sides = scaled_sides(source.sizes, crop)
    small = np.flatnonzero(sides < size)
    if len(small):
        height, width = source.sizes[small[0]]
        raise InputError(
            f"{len(small):,} of {len(source):,} images are smaller than {size} pixels, the first of them "
            f"{source.name(int(small[0]))} ({width}x{height}); choose a size of at most {sides.min()}, remove "
            "the small ones, or enlarge them with upscale=True."
        )
