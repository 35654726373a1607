"""Generated images from a folder and from a `.npz`: the same pixels in the same order, and nothing unfit."""

import numpy as np
import pytest
from PIL import Image

from alight.data.image_npz import write_images_npz
from alight.evaluation.generated import FolderImages, NpzImages, open_generated
from alight.runtime.errors import InputError

COUNT = 7


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 8, 12, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, pixels):
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number:03d}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.fixture
def npz(tmp_path, pixels):
    write_images_npz(tmp_path / "samples.npz", iter(pixels), COUNT)
    return tmp_path / "samples.npz"


def read(images, start=0, stop=COUNT, batch_size=3):
    return np.concatenate(list(images.read(start, stop, batch_size)))


def test_both_kinds_give_the_same_images(folder, npz, pixels):
    for images in (open_generated(folder), open_generated(npz)):
        assert (images.count, images.size, images.labels) == (COUNT, (8, 12), None)
        assert np.array_equal(read(images), pixels)
        assert np.array_equal(read(images, 2, 6), pixels[2:6])
        assert np.array_equal(images.pick([5, 0, 5]), pixels[[5, 0, 5]])
        assert images.conditions["images"] == COUNT


def test_numpy_reads_what_was_written(npz, pixels):
    with np.load(npz) as file:
        assert np.array_equal(file["arr_0"], pixels)


def test_labels_of_an_npz(tmp_path, pixels):
    np.savez_compressed(tmp_path / "labelled.npz", pixels, np.arange(COUNT))
    images = NpzImages(tmp_path / "labelled.npz")
    assert images.labels.tolist() == list(range(COUNT))
    assert np.array_equal(read(images, 3, 5), pixels[3:5])  # compressed files can be entered in the middle, too


def test_lossy_files_are_told_of(folder, pixels):
    Image.fromarray(pixels[0]).save(folder / "000.jpg")
    assert "compressed with loss" in FolderImages(folder).remarks[0]


def damage(folder, kind):
    match kind:
        case "size":
            Image.new("RGB", (9, 9)).save(folder / "004.png")
        case "grey":
            Image.new("L", (12, 8)).save(folder / "004.png")
        case "float":
            Image.new("F", (12, 8)).save(folder / "004.tiff")
            (folder / "004.png").unlink()
            (folder / "004.tiff").rename(folder / "004.png")
        case "truncated":
            data = (folder / "004.png").read_bytes()
            (folder / "004.png").write_bytes(data[: len(data) // 2])
        case "no image":
            (folder / "004.png").write_text("hello")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("size", "004.png has 9x9 pixels, but 000.png 12x8"),
        ("grey", "004.png is an image of mode L"),
        ("float", "004.png is an image of mode F"),
        ("truncated", "004.png cannot be read"),
        ("no image", "004.png cannot be read"),
    ],
)
def test_images_that_do_not_fit_are_named(folder, kind, message):
    damage(folder, kind)
    with pytest.raises(InputError, match=message):
        read(FolderImages(folder))


def test_too_few_images_are_no_distribution(tmp_path):
    with pytest.raises(InputError, match="0 images"):
        FolderImages(tmp_path)
    np.savez(tmp_path / "one.npz", np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="single image"):
        open_generated(tmp_path / "one.npz")
    with pytest.raises(InputError, match="no samples folder|no generated images"):
        open_generated(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "array", [np.zeros((3, 4, 4, 3)), np.zeros((3, 4, 4, 1), np.uint8), np.zeros((3, 4, 4), np.uint8)]
)
def test_other_arrays_are_refused(tmp_path, array):
    np.savez(tmp_path / "other.npz", array)
    with pytest.raises(InputError, match="arr_0 is"):
        open_generated(tmp_path / "other.npz")


def test_a_truncated_npz_is_refused(npz):
    data = npz.read_bytes()
    npz.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cannot be used as images"):
        read(NpzImages(npz))
