"""The survey of a folder, its duplicates, and the notes on images that are enlarged or composed."""

import json
import logging
import shutil
import time

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from alight.config import ImagesConfig
from alight.data import image_notes
from alight.data.duplicates import difference_hash, find_duplicates
from alight.data.image_folder import ImageFolder
from alight.data.loading import open_dataset, open_images
from alight.data.survey import survey
from alight.runtime.errors import InputError
from helpers.pictures import noise, write_noise, write_photographs, write_plain, write_truncated


@pytest.fixture
def mixed(tmp_path):
    """Two classes of pictures among videos, documents and damaged files."""
    folder = tmp_path / "mixed"
    write_noise(folder / "cats" / "a.png", 1, (64, 64))
    write_noise(folder / "cats" / "b.jpg", 2, (30, 200))
    write_noise(folder / "cats" / "c.png", 3, (300, 100))
    write_noise(folder / "dogs" / "d.png", 4, (130, 140))
    Image.new("RGBA", (70, 80), (200, 0, 0, 100)).save(folder / "dogs" / "e.png")
    Image.new("RGBA", (70, 80), (0, 200, 0, 255)).save(folder / "dogs" / "opaque.png")
    Image.fromarray(noise(5, (90, 90))[..., 0]).save(folder / "dogs" / "grey.png")
    for number in range(2):
        write_truncated(folder / "dogs" / f"cut{number}.png")
    (folder / "dogs" / "text.png").write_text("text")
    for name in ("cats/film.MP4", "cats/film2.mp4", "letter.docx", "dogs/README"):
        (folder / name).write_bytes(b"0")
    (folder / ".hidden.txt").write_text("hidden")
    return folder


@pytest.fixture
def notes(monkeypatch, caplog):
    """The notes of one run."""
    monkeypatch.setattr(image_notes, "_noted", set())
    caplog.set_level(logging.INFO, logger="alight")

    def found():
        return [record.getMessage() for record in caplog.records if record.getMessage().startswith("note:")]

    return found


# --- survey -------------------------------------------------------------------------------------------------------


def test_a_survey_counts_what_is_there_and_what_is_not(mixed):
    found = survey(ImageFolder(mixed))
    assert found.count == 7
    assert found.classes == {"cats": 3, "dogs": 4}
    assert sorted(found.short_sides.tolist()) == [30, 64, 70, 70, 90, 100, 130]
    assert [found.smaller_than(size) for size in (30, 64, 128, 256)] == [0, 1, 6, 7]
    assert (found.taller, found.wider) == (1, 1)
    assert found.modes == {"RGB": 4, "RGBA": 2, "L": 1}
    assert found.transparent == 1
    assert sum(found.skipped.values()) == 3
    assert found.skipped["not an image that Pillow supports"] == 1
    assert found.ignored == {".mp4": 2, ".docx": 1, "without extension": 1}
    assert json.loads(json.dumps(found.as_data()))["short_side"] == {"min": 30, "median": 70.0, "max": 130}


def test_a_survey_of_embedded_images():
    found = survey(open_images("photographs", 64))
    assert found.count == sum(found.classes.values())
    assert (found.transparent, found.skipped, found.ignored, found.modes) == (0, {}, {}, {"RGB": found.count})


def test_facts_of_a_subset_are_those_of_its_images(mixed):
    config = ImagesConfig(source=str(mixed), size=16, held_out_fraction=0.5)
    parts = [open_dataset(config, split).source for split in ("train", "held_out")]
    assert sum(part.transparent.sum() for part in parts) == 1
    assert sorted(np.concatenate([part.modes for part in parts])) == ["L", "RGB", "RGB", "RGB", "RGB", "RGBA", "RGBA"]
    assert parts[0].ignored_files() == {".mp4": 2, ".docx": 1, "without extension": 1}


def test_the_index_remembers_modes_and_transparency(mixed, monkeypatch):
    first = ImageFolder(mixed)
    for file in ("cut0.png", "cut1.png", "text.png"):
        (mixed / "dogs" / file).unlink()
    monkeypatch.setattr("alight.data.image_index.decode_with_facts", None)  # calling it would fail
    again = ImageFolder(mixed)
    assert again.modes.tolist() == first.modes.tolist()
    assert again.transparent.tolist() == first.transparent.tolist()


# --- duplicates ---------------------------------------------------------------------------------------------------


def test_duplicates_in_other_formats_and_sizes_are_found(tmp_path):
    folder = write_photographs(tmp_path / "photographs", 5, (64, 64))
    names = sorted(path.name for path in (folder / "temple").iterdir())
    original = Image.open(folder / "temple" / names[0])
    shutil.copy(folder / "temple" / names[1], folder / "flower" / "copy.png")
    original.save(folder / "temple" / "z1.jpg", quality=60)
    original.resize((200, 200)).save(folder / "temple" / "z2.png")
    ImageEnhance.Brightness(original).enhance(1.03).save(folder / "temple" / "z3.png")
    source = ImageFolder(folder)
    found = find_duplicates(source)
    assert [{source.name(index) for index in group} for group in found.exact] == [
        {f"temple/{names[1]}", "flower/copy.png"}
    ]
    expected = {f"temple/{name}" for name in (names[0], "z1.jpg", "z2.png", "z3.png")}
    assert [{source.name(index) for index in group} for group in found.near] == [expected]
    assert found.superfluous == 4
    assert found.examined == len(source) - 1


def test_flat_images_of_other_colours_are_no_duplicates(tmp_path):
    for name in ("red", "lime", "black", "white"):
        write_plain(tmp_path / "plain" / f"{name}.png", colour=name)
    write_plain(tmp_path / "plain" / "larger.png", (60, 60), "black")
    source = ImageFolder(tmp_path / "plain")
    assert [{source.name(index) for index in group} for group in find_duplicates(source).near] == [
        {"black.png", "larger.png"}
    ]


def test_noise_has_no_duplicates_and_the_number_examined_is_limited(tmp_path):
    for seed in range(30):
        write_noise(tmp_path / "noise" / f"{seed:02}.png", seed, (32, 32))
    source = ImageFolder(tmp_path / "noise")
    assert find_duplicates(source) == ((), (), 30)
    assert find_duplicates(source, limit=10) == ((), (), 10)
    assert [len(group) for group in find_duplicates(source, max_distance=64).near] == []  # thumbnails differ


def test_all_digits_are_compared_in_seconds():
    started = time.process_time()
    found = find_duplicates(open_images("digits"))
    assert time.process_time() - started < 20
    assert found.examined + sum(len(group) - 1 for group in found.exact) == 1797


def test_the_hash_is_the_sign_of_horizontal_differences():
    ramp = np.repeat(np.linspace(0, 255, 72).astype(np.uint8)[None, :, None], 72, axis=0).repeat(3, axis=2)
    assert difference_hash(ramp).tolist() == [1] * 64
    assert difference_hash(ramp[:, ::-1].copy()).tolist() == [-1] * 64
    assert difference_hash(ramp // 16).tolist() == [0] * 64
    half = np.concatenate([ramp[:36], ramp[36:, ::-1]])
    assert difference_hash(half).tolist() == [1] * 32 + [-1] * 32


# --- notes --------------------------------------------------------------------------------------------------------


def test_one_note_per_run_on_small_and_on_transparent_images(mixed, notes):
    config = ImagesConfig(source=str(mixed), size=100, held_out_fraction=0.5, background="grey")
    for split in ("train", "held_out", "train"):
        open_dataset(config, split)
    assert notes() == [
        "note: 5 of 7 images are smaller than 100 pixels (the smallest 200x30) and are enlarged; "
        "--images.upscale False refuses small images.",
        "note: 1 of 7 images has transparent pixels and is composed on grey; "
        "--images.background chooses another colour.",
    ]


def test_padded_images_are_enlarged_by_their_long_side(mixed, notes):
    open_dataset(ImagesConfig(source=str(mixed), size=100, crop="pad"), "all")
    assert notes()[0].startswith("note: 4 of 7 images are smaller than 100 pixels (the smallest 64x64)")


def test_nothing_is_noted_of_images_that_stay_as_they_are(notes):
    open_dataset(ImagesConfig(source="digits", size=32), "train")
    open_dataset(ImagesConfig(source="photographs", size=64), "train")
    assert notes() == []


# --- background ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("background", "colour"), [("white", (255, 255, 255)), ("#0000FF", (0, 0, 255))])
def test_the_background_shows_through_in_every_crop(tmp_path, background, colour):
    (tmp_path / "glass").mkdir()
    Image.new("RGBA", (40, 20), (200, 10, 10, 0)).save(tmp_path / "glass" / "a.png")
    for crop in ("center", "random", "pad"):
        config = ImagesConfig(source=str(tmp_path / "glass"), size=16, crop=crop, background=background)
        for augment in (True, False):
            image = open_dataset(config, "all", augment=augment)[0].image
            assert (image.permute(1, 2, 0).numpy() == colour).all()


@pytest.mark.parametrize("word", ["purpel", "#12", "#ffffff80", "rgba(1, 2, 3, 4)"])
def test_an_unknown_background_is_refused(word):
    with pytest.raises(ValueError, match="is not a colour"):
        ImagesConfig(background=word)


def test_a_misspelt_background_has_a_suggestion():
    with pytest.raises(ValueError, match="Did you mean 'purple'"):
        ImagesConfig(background="purpel")


# --- odd folders --------------------------------------------------------------------------------------------------


def test_a_single_image_and_all_images_alike(tmp_path):
    write_plain(tmp_path / "one" / "black.png", colour="black")
    found = survey(ImageFolder(tmp_path / "one"))
    assert (found.count, found.duplicates) == (1, ((), (), 1))
    for number in range(5):
        write_plain(tmp_path / "alike" / f"{number}.png", colour="black")
    found = survey(ImageFolder(tmp_path / "alike"))
    assert found.duplicates == (((0, 1, 2, 3, 4),), (), 1)


def test_one_small_class_beside_a_large_one(tmp_path):
    for number in range(3):
        write_noise(tmp_path / "uneven" / "rare" / f"{number}.png", number)
    for number in range(40):
        write_noise(tmp_path / "uneven" / "common" / f"{number}.png", 100 + number)
    assert survey(ImageFolder(tmp_path / "uneven")).classes == {"common": 40, "rare": 3}


def test_a_folder_of_videos_and_documents_alone(tmp_path):
    for name in ("film.mp4", "film2.mp4", "letter.pdf"):
        (tmp_path / name).write_bytes(b"0")
    with pytest.raises(InputError, match=r"holds no images but other files: 2 \.mp4, 1 \.pdf;"):
        ImageFolder(tmp_path)


def test_a_subfolder_of_documents_is_refused_with_its_files(mixed):
    (mixed / "documents" / "old").mkdir(parents=True)
    (mixed / "documents" / "old" / "letter.pdf").write_bytes(b"0")
    (mixed / "documents" / "photo.heic").write_bytes(b"0")
    with pytest.raises(InputError, match=r"such as documents, which holds 1 \.pdf, 1 \.heic\).*move them elsewhere"):
        ImageFolder(mixed)


def test_folders_of_folders_are_classes_by_their_uppermost_folder(tmp_path, caplog):
    for number, name in enumerate(("pets/cat/old/a.png", "pets/dog/b.png", "wild/fox/den/c.png")):
        write_noise(tmp_path / "deep" / name, number)
    assert survey(ImageFolder(tmp_path / "deep")).classes == {"pets": 2, "wild": 1}
    assert not caplog.records
    assert survey(ImageFolder(tmp_path / "deep" / "pets")).classes == {"cat": 1, "dog": 1}
    shutil.rmtree(tmp_path / "deep" / "wild")
    assert survey(ImageFolder(tmp_path / "deep")).classes == {"pets": 2}
    assert "If these are the classes, give that folder instead" in caplog.text
