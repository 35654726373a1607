"""Folders of images: layouts, damaged files, the cached index, splits."""

import os
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from alight.data.embedded import Digits, Photographs
from alight.data.image_folder import ImageFolder
from alight.data.images import ImageSubset, split_source
from alight.data.loading import open_images
from alight.runtime.errors import InputError
from helpers.pictures import write_pets, write_plain, write_truncated


@pytest.fixture
def pets(tmp_path):
    return write_pets(tmp_path / "pets")


def one_paragraph(error, *parts):
    """The rule for every message to a user: one paragraph that names what is wrong."""
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text
    return text


# --- layouts ------------------------------------------------------------------------------------------------------


def test_subfolders_are_classes_searched_recursively(pets):
    source = ImageFolder(pets)
    assert source.class_names == ("cat", "dog")
    assert [source.name(index) for index in range(3)] == ["cat/b.png", "cat/kittens/c.WebP", "dog/a.JPG"]
    assert source.labels.tolist() == [0, 0, 1]
    assert source.labels.dtype == np.int64
    assert source.sizes.tolist() == [[60, 30], [25, 25], [20, 50]]  # height, width
    assert source.load(0).shape == (60, 30, 3)
    assert (source.load(0) == (0, 255, 0)).all()
    assert source.skipped == ()
    assert source.description == f"{pets}: 3 images in 2 classes"


def test_loose_images_are_one_unlabelled_class(tmp_path):
    for name in ("b.png", "a.bmp"):
        write_plain(tmp_path / "art" / name)
    (tmp_path / "art" / "notes.txt").write_text("not an image")
    (tmp_path / "art" / "empty folder").mkdir()
    source = ImageFolder(tmp_path / "art")
    assert source.class_names == ("art",)
    assert source.labels.tolist() == [0, 0]
    assert source.name(0) == "a.bmp"


def test_unconditional_takes_any_layout_as_one_class(pets):
    write_plain(pets / "loose.png")
    source = ImageFolder(pets, unconditional=True)
    assert source.class_names == ("pets",)
    assert source.labels.tolist() == [0, 0, 0, 0]


def test_hidden_files_and_archive_litter_do_not_count(pets):
    write_plain(pets / ".thumbnails" / "x.png")
    write_plain(pets / "cat" / ".hidden.png")
    write_plain(pets / "__MACOSX" / "cat" / "x.png")
    assert len(ImageFolder(pets)) == 3


def test_linked_classes_are_followed_and_loops_end(pets, tmp_path):
    write_plain(tmp_path / "elsewhere" / "x.png")
    (pets / "fox").symlink_to(tmp_path / "elsewhere")
    (pets / "cat" / "round").symlink_to(pets)
    source = ImageFolder(pets)
    assert source.class_names == ("cat", "dog", "fox")
    assert len(source) == 4


def test_names_that_are_not_unicode(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    write_plain(tmp_path / "odd" / "plain.png")
    os.rename(tmp_path / "odd" / "plain.png", tmp_path / "odd" / name)
    for _ in range(2):  # the second time from the cache
        source = ImageFolder(tmp_path / "odd")
        assert source.name(0) == r"caf\xe9.png"  # as reports can show it
        assert source.store.name(0) == name
        assert source.load(0).shape == (30, 40, 3)
    assert source.held_out(0.5).shape == (1,)


def test_a_source_survives_the_way_to_a_worker_process(pets):
    source = pickle.loads(pickle.dumps(ImageFolder(pets)))
    assert (source.load(1) == Image.open(pets / "cat" / "kittens" / "c.WebP")).all()


def test_missing_folder_and_file_instead_of_folder(tmp_path):
    with pytest.raises(InputError) as error:
        ImageFolder(tmp_path / "nowhere")
    one_paragraph(error, tmp_path / "nowhere", "does not exist")
    (tmp_path / "pets.zip").write_bytes(b"PK")
    with pytest.raises(InputError) as error:
        open_images(tmp_path / "pets.zip")
    one_paragraph(error, "pets.zip", "unpack")


def test_folder_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as error:
        ImageFolder(tmp_path / "empty")
    one_paragraph(error, "holds no images", "one subfolder per class")


def test_class_folder_without_images(pets):
    (pets / "fox").mkdir()
    (pets / "fox" / "list.csv").write_text("a,b")
    with pytest.raises(InputError) as error:
        ImageFolder(pets)
    one_paragraph(error, "hold no images", "fox")


def test_images_beside_class_folders_are_ambiguous(pets):
    write_plain(pets / "loose.png")
    with pytest.raises(InputError) as error:
        ImageFolder(pets)
    one_paragraph(error, "1 images beside 2 subfolders", "option unconditional")


def test_a_few_strays_beside_many_images_in_class_folders_are_left_out(tmp_path, caplog):
    for number in range(40):
        write_plain(tmp_path / ("cat" if number % 2 else "dog") / f"{number}.png")
    write_plain(tmp_path / "cover.png")
    source = ImageFolder(tmp_path)
    assert (source.class_names, len(source)) == (("cat", "dog"), 40)
    assert "1 image beside the class folders (such as cover.png), which is left out" in caplog.text
    assert len(ImageFolder(tmp_path, unconditional=True)) == 41


def test_classes_that_look_like_splits_are_pointed_out(tmp_path, caplog):
    for split in ("train", "val"):
        write_plain(tmp_path / split / "cat" / "a.png")
    ImageFolder(tmp_path)
    assert "train, val" in caplog.text


# --- damaged files ------------------------------------------------------------------------------------------------


def test_damaged_files_are_named_skipped_and_counted(pets, caplog):
    write_truncated(pets / "cat" / "half.jpg")
    (pets / "dog" / "page.jpg").write_text("<html>404</html>")
    (pets / "dog" / "zero.png").write_bytes(b"")
    (pets / "dog" / "gone.png").symlink_to(pets / "nowhere.png")
    Image.fromarray(np.full((4, 4), 1e6, dtype=np.float32)).save(pets / "dog" / "radar.tif")
    source = ImageFolder(pets, max_skipped_fraction=0.7)
    assert len(source) == len(source.labels) == 3
    reasons = {os.path.relpath(path, pets): reason for path, reason in source.skipped}
    assert set(reasons) == {"cat/half.jpg", "dog/page.jpg", "dog/zero.png", "dog/gone.png", "dog/radar.tif"}
    assert "truncated" in reasons["cat/half.jpg"]
    assert "not an image" in reasons["dog/page.jpg"]
    assert "No such file" in reasons["dog/gone.png"]
    assert "grey values" in reasons["dog/radar.tif"]
    assert "5 damaged files skipped" in source.description
    assert "5 of 8 images" in caplog.text
    assert "half.jpg" in caplog.text


def test_too_many_damaged_files(pets):
    write_truncated(pets / "cat" / "half.jpg")
    with pytest.raises(InputError) as error:
        ImageFolder(pets, max_skipped_fraction=0.2)
    one_paragraph(error, "1 of 4", "half.jpg", "max_skipped_fraction")
    assert len(ImageFolder(pets, max_skipped_fraction=0.25)) == 3


def test_only_damaged_files(tmp_path):
    write_truncated(tmp_path / "broken" / "a.jpg")
    with pytest.raises(InputError) as error:
        ImageFolder(tmp_path / "broken", max_skipped_fraction=1.0)
    one_paragraph(error, "1 of 1", "a.jpg", "truncated")


def test_class_with_only_damaged_files(pets):
    write_truncated(pets / "fox" / "a.jpg")
    with pytest.raises(InputError) as error:
        ImageFolder(pets)
    one_paragraph(error, "class fox", pets, "can be decoded")


def test_file_that_vanishes_after_indexing(pets):
    source = ImageFolder(pets)
    (pets / "cat" / "b.png").unlink()
    with pytest.raises(InputError) as error:
        source.load(0)
    one_paragraph(error, "b.png", "indexed")


# --- splits and names ---------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path):
    for index in range(200):
        write_plain(tmp_path / "many" / f"{'ab'[index % 2]}" / f"{index:03d}.png", (4, 4))
    return tmp_path / "many"


def names(source):
    return {source.name(index) for index in range(len(source))}


def test_folder_split_is_disjoint_complete_and_stable(many):
    source = ImageFolder(many)
    train, held_out = (split_source(source, split, 0.2) for split in ("train", "held_out"))
    assert names(train).isdisjoint(names(held_out))
    assert names(train) | names(held_out) == names(source)
    assert 0.1 < len(held_out) / len(source) < 0.3  # binomial(200, 0.2): 20..60 is beyond 3.5 standard deviations
    for path in list((many / "a").iterdir())[:50]:
        path.unlink()
    assert names(split_source(ImageFolder(many), "held_out", 0.2)) == names(held_out) & names(ImageFolder(many))


def test_larger_fractions_hold_out_more_of_the_same(many):
    source = ImageFolder(many)
    assert names(split_source(source, "held_out", 0.1)) < names(split_source(source, "held_out", 0.4))


def test_subset_keeps_images_labels_and_classes_together(many):
    source = ImageFolder(many)
    subset = ImageSubset(source, [150, 3], part="two")
    assert subset.class_names == ("a", "b")
    assert subset.labels.tolist() == [1, 0]
    assert subset.name(0) == source.name(150)
    assert (subset.load(1) == source.load(3)).all()
    assert subset.description == f"{many}: 200 images in 2 classes; two: 2 images"


def test_without_a_fraction_everything_is_for_training(many):
    source = ImageFolder(many)
    assert names(split_source(source, "train")) == names(source)
    assert split_source(source, "all", 0.5) is source
    with pytest.raises(InputError) as error:
        split_source(source, "held_out")
    one_paragraph(error, "raise held_out_fraction")


@pytest.mark.parametrize(("split", "fraction"), [("test", 0.1), ("train", 1.0), ("train", -0.1)])
def test_split_arguments_without_meaning(many, split, fraction):
    with pytest.raises(InputError):
        split_source(ImageFolder(many), split, fraction)


def test_open_images_knows_names_and_folders(pets, monkeypatch):
    assert isinstance(open_images("digits"), Digits)
    photographs = open_images("photographs", size=96)
    assert isinstance(photographs, Photographs)
    assert photographs.sizes[0].tolist() == [96, 96]
    assert len(open_images(pets)) == len(open_images(str(pets))) == 3
    assert open_images(pets, unconditional=True).class_names == ("pets",)
    with pytest.raises(InputError) as error:
        open_images("digist")
    one_paragraph(error, "digist", "'digits'")
    monkeypatch.chdir(pets.parent)
    pets.rename(pets.parent / "digits")
    assert re.search("3 images", open_images("./digits").description)
