"""Lists of images: CSV, JSON lines and plain text, with and without labels."""

import json

import numpy as np
import pytest
from PIL import Image

from alight.config import ImagesConfig
from alight.data.image_list import ImageList
from alight.data.loading import open_images, open_source
from alight.runtime.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("a.png", "b.png", "sub/c, d.png", "sub/no extension")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10 + number, 8), (number, 0, 0)).save(path, format="png")
    return tmp_path / "images"


def opened(folder, name, text, **options):
    (folder / name).write_text(text, encoding="utf-8")
    return open_images(folder / name, **options)


def contents(source):
    """Name, class and red value of each image."""
    return [
        (source.name(index), source.class_names[source.labels[index]], int(source.load(index)[0, 0, 0]))
        for index in range(len(source))
    ]


EXPECTED = [("b.png", "cat", 1), ("a.png", "dog", 0), ("sub/c, d.png", "cat", 2)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.csv", 'b.png,cat\na.png,dog\n"sub/c, d.png",cat\n'),
        ("header.csv", 'path,label\nb.png,cat\na.png,dog\n"sub/c, d.png",cat\n'),
        ("order.CSV", 'label,id,file_name\r\ncat,1,b.png\r\ndog,2,a.png\r\n\r\ncat,3,"sub/c, d.png"\r\n'),
        ("bom.csv", '\ufeffpath,label\nb.png,cat\na.png,dog\n"sub/c, d.png",cat'),
        (
            "list.jsonl",
            '{"path": "b.png", "label": "cat"}\n\n{"label": "dog", "path": "a.png", "more": [1]}\n'
            '{"file_name": "sub/c, d.png", "label": "cat"}\n',
        ),
        ("list.txt", "b.png,cat\na.png, dog\n\nsub/c, d.png,cat\n"),
    ],
)
def test_every_format_in_the_order_of_the_list(folder, name, text):
    source = opened(folder, name, text)
    assert isinstance(source, ImageList)
    assert source.class_names == ("cat", "dog")
    assert contents(source) == EXPECTED
    assert source.sizes.tolist() == [[8, 11], [8, 10], [8, 12]]
    assert source.description == f"{folder / name}: 3 images in 2 classes"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("art.csv", 'a.png\n"sub/c, d.png"\n'),
        ("art.csv", 'path\na.png\n"sub/c, d.png"\n'),
        ("art.csv", 'path,label\na.png,\n"sub/c, d.png",\n'),
        ("art.jsonl", '"a.png"\n{"path": "sub/c, d.png"}\n'),
        ("art.jsonl", '{"path": "a.png", "label": null}\n{"path": "sub/c, d.png"}\n'),
        ("art.txt", "a.png\nsub/c, d.png\n"),
    ],
)
def test_without_labels_there_is_one_class(folder, name, text):
    assert contents(opened(folder, name, text)) == [("a.png", "art", 0), ("sub/c, d.png", "art", 2)]


def test_whole_numbers_are_labels_as_they_are(folder, caplog):
    source = opened(folder, "val.txt", "a.png 2\nb.png 0\nsub/c, d.png,0\n")
    assert source.class_names == ("0", "1", "2")
    assert source.labels.tolist() == [2, 0, 0]
    assert "1 of them have no image (such as 1)" in caplog.text
    assert opened(folder, "n.jsonl", '{"path": "a.png", "label": 1}').labels.tolist() == [1]
    mixed = opened(folder, "mixed.csv", "a.png,10\nb.png,ten\n")  # one name makes all of them names
    assert mixed.class_names == ("10", "ten")


def test_unconditional_ignores_labels(folder):
    source = opened(folder, "list.csv", "a.png,x\nb.png,\n", unconditional=True)
    assert source.class_names == ("list",)
    assert source.labels.tolist() == [0, 0]


def test_chosen_columns_through_the_configuration(folder):
    (folder / "table.csv").write_text("id,picture,colour\n1,a.png,red\n2,b.png,blue\n")
    config = ImagesConfig(source=str(folder / "table.csv"), image_column="picture", label_column="colour", size=8)
    source = open_source(config, "train")
    assert contents(source) == [("a.png", "red", 0), ("b.png", "blue", 1)]
    with pytest.raises(InputError, match="no column shape, but only id, picture, colour"):
        open_images(folder / "table.csv", image_column="picture", label_column="shape")
    with pytest.raises(InputError, match="no column photo"):
        open_images(folder / "table.csv", image_column="photo")
    with pytest.raises(InputError, match="no columns"):
        open_images(folder, image_column="photo")
    with pytest.raises(InputError, match="no column path or file_name"):
        opened(folder, "keys.jsonl", '{"picture": "a.png"}')


def test_absolute_paths_and_names_without_extension(folder, tmp_path):
    (tmp_path / "list.csv").write_text(
        f"{folder / 'a.png'}\nimages/sub/no extension\n../{tmp_path.name}/images/b.png\n"
    )
    source = open_images(tmp_path / "list.csv")
    assert [int(source.load(index)[0, 0, 0]) for index in range(3)] == [0, 3, 1]


def test_listed_files_that_are_missing_or_damaged_are_skipped(folder, caplog):
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:40])
    rows = 'gone.png,x\na.png,x\nb.png,x\nsub/no extension,y\n"nul\0.png",y'
    source = opened(folder, "list.csv", rows, max_skipped_fraction=0.7)
    assert [source.name(index) for index in range(len(source))] == ["a.png", "sub/no extension"]
    assert source.labels.tolist() == [0, 1]
    assert [path for path, _ in source.skipped] == [str(folder / name) for name in ("gone.png", "b.png", "nul\0.png")]
    assert "3 of 5 images" in caplog.text
    with pytest.raises(InputError, match="leaves none"):
        opened(folder, "wrong.csv", "images/a.png\nimages/b.png")
    with pytest.raises(InputError, match="max_skipped_fraction"):
        open_images(folder / "list.csv", max_skipped_fraction=0.5)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "", "empty"),
        ("a.csv", "path,label\n", "empty"),
        ("a.txt", "\n \n", "empty"),
        ("a.csv", "a.png,x\nb.png,y\na.png,z\n", "more than once .such as a.png"),
        ("a.csv", "a.png,x\nb.png,\n", "1 of 2 images .* no label .* unconditional=True"),
        ("a.csv", "a.png,0\nb.png,-1\n", "label -1"),
        ("a.csv", "a.png,0\nb.png,99999999999999999999\n", "99999999999999999999"),
        ("a.jsonl", '{"path": "a.png"}\n{"path": ', "Line 2"),
        ("a.jsonl", '{"path": "a.png"}\n7', "Line 2 .* not an object"),
        ("a.jsonl", '{"path": "a.png", "label": 1.5}', "Line 1 .* 1.5"),
        ("a.jsonl", '{"path": "a.png", "label": true}', "Line 1 .* True"),
        ("a.jsonl", '{"path": 3}', "Line 1 .* 3"),
        ("a.jsonl", "[" * 100_000, "Line 1 .* not JSON"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_paragraph(folder, name, text, words):
    with pytest.raises(InputError, match=words) as error:
        opened(folder, name, text)
    assert "\n" not in str(error.value)


def test_class_names_survive_any_alphabet(folder):
    source = opened(folder, "list.jsonl", json.dumps({"path": "a.png", "label": "猫, кошка"}))
    assert source.class_names == ("猫, кошка",)
    assert source.labels.dtype == np.int64
