"""The centre crop against the recorded crops of the published latents."""

import numpy as np
import PIL
import torch
from PIL import Image

from alight.data.crops import center_crop, horizontal_flip
from alight.data.decode import decode_image
from alight.data.image_dataset import ImageDataset
from alight.data.image_folder import ImageFolder


def recorded_crops(parity_dir, read_case):
    tensors, description = read_case("latents/crops_expected")
    # Pillow resizes in two passes and rounds after each. Since version 13 the vertical one comes first for tall
    # images, which moves the rounding of each of a crop's two resizes by a level.
    tolerance = 0 if description["pillow"] == PIL.__version__ else 2
    return parity_dir / "latents" / "crops", tensors, description, tolerance


def test_center_crop_is_the_recorded_one(parity_dir, read_case):
    folder, tensors, description, tolerance = recorded_crops(parity_dir, read_case)
    assert description["images"]
    for name, size in description["images"].items():
        image = decode_image(folder / name)
        assert image.shape == (size["height"], size["width"], 3)
        crop = center_crop(image, description["image_size"])
        expected = tensors[f"{name}.crop_uint8"].numpy()
        assert crop.shape == expected.shape, name
        assert np.abs(crop.astype(int) - expected).max() <= tolerance, name


def test_normalised_tensors_are_the_recorded_ones_with_and_without_flip(parity_dir, read_case):
    folder, tensors, description, tolerance = recorded_crops(parity_dir, read_case)
    compared = 0
    for name in description["images"]:
        for key, transform in ((f"{name}.tensor_p0", np.asarray), (f"{name}.tensor_p1", horizontal_flip)):
            if key not in tensors:
                continue
            crop = transform(center_crop(decode_image(folder / name), description["image_size"]))
            normalised = torch.from_numpy(crop).permute(2, 0, 1) / 127.5 - 1
            # one level is 1/127.5; 1e-6 covers float32 rounding of values in [-1, 1]
            assert (normalised - tensors[key]).abs().max() <= tolerance / 127.5 + 1e-6, key
            compared += 1
    assert compared


def test_dataset_gives_the_recorded_crops(parity_dir, read_case):
    folder, tensors, description, tolerance = recorded_crops(parity_dir, read_case)
    source = ImageFolder(folder)
    dataset = ImageDataset(source, size=description["image_size"], upscale=True)  # one recorded image is smaller
    assert len(dataset) == len(description["images"])
    for index in range(len(dataset)):
        assert (source.sizes[index] == np.asarray(Image.open(folder / source.name(index))).shape[:2]).all()
        expected = tensors[f"{source.name(index)}.crop_uint8"].permute(2, 0, 1)
        assert (dataset[index].image.int() - expected.int()).abs().max() <= tolerance
