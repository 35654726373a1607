"""Small pictures: noise from a seed, encoded or in a file, and real ones of two classes."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from alight.data.embedded import Digits


def noise(seed: int = 0, size: tuple[int, int] = (12, 9)) -> np.ndarray:
    """Uniform noise, (height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def noise_file(seed: int = 0, size: tuple[int, int] = (12, 9), kind: str = "png") -> bytes:
    """The same as the content of a file."""
    file = io.BytesIO()
    Image.fromarray(noise(seed, size)).save(file, format=kind)
    return file.getvalue()


def write_noise(path: Path, seed: int = 0, size: tuple[int, int] = (12, 9)) -> bytes:
    """Write a file of noise, with its folder: a JPEG where the name says so, else a PNG; returns its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = noise_file(seed, size, "jpeg" if path.suffix.lower() in (".jpg", ".jpeg") else "png")
    path.write_bytes(content)
    return content


def write_plain(path: Path, size: tuple[int, int] = (40, 30), colour: str = "red") -> None:
    """Write an image of one colour, with its folder; (width, height) is `size`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def write_truncated(path: Path) -> None:
    """Write the first half of a file of noise."""
    content = write_noise(path, size=(48, 48))
    path.write_bytes(content[: len(content) // 2])


def write_pets(folder: Path) -> Path:
    """Write one image of the class `dog`, and two of the class `cat`, one of them in a folder below."""
    write_plain(folder / "dog" / "a.JPG", (50, 20))
    write_plain(folder / "cat" / "b.png", (30, 60), "lime")
    write_plain(folder / "cat" / "kittens" / "c.WebP", (25, 25), "blue")
    return folder


def write_photographs(folder: Path, number: int, size: tuple[int, int]) -> Path:
    """Write crops of two photographs, `number` of each class `temple` and `flower`; (height, width) is `size`."""
    height, width = size
    for name, photograph in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        for index in range(number):
            left = index * (photograph.shape[1] - width) // number
            crop = photograph[100 : 100 + height, left : left + width]
            Image.fromarray(crop).save(folder / name / f"{index}.png")
    return folder


def digit_images() -> np.ndarray:
    """Real digits, (1797, 8, 8, 1) uint8."""
    return (load_digits().images * 255 / 16).astype(np.uint8)[..., None]


def write_digits(folder: Path, count: int) -> Path:
    """Write the first of the embedded digits as files, a folder for each class: all of them would take too long."""
    digits = Digits()
    for index in range(count):
        place = folder / digits.class_names[digits.labels[index]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.load(index)).save(place / f"{index:04d}.png")
    return folder
