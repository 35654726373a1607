"""Names of files and classes in other encodings, normal forms and lengths, and names that look like patterns."""

import io
import json
import os
import tarfile
import unicodedata

import numpy as np
import pytest

from alight.data.class_names import class_index, readable_class_names
from alight.data.image_folder import ImageFolder
from alight.data.loading import open_images
from alight.data.readable_names import readable
from alight.pipelines.call_arguments import as_labels
from alight.runtime.errors import InputError
from helpers.pictures import write_noise

LATIN_1 = os.fsdecode(b"caf\xe9")
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


# --- bytes that are not UTF-8 ---------------------------------------------------------------------------------------


def sources_named(tmp_path, classes):
    """The same classes as folders, in a list, as folders in a tar and as tars in a tar."""
    contents = {name: write_noise(tmp_path / "pets" / name / "0.png", n) for n, name in enumerate(classes)}
    with (tmp_path / "list.csv").open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"pets/{name}/0.png,{name}\n" for name in classes)

    def add(archive, name, content):
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))

    with tarfile.open(tmp_path / "folders.tar", "w") as folders, tarfile.open(tmp_path / "tars.tar", "w") as tars:
        for name, content in contents.items():
            add(folders, f"{name}/0.png", content)
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                add(archive, "0.png", content)
            add(tars, f"{name}.tar", inner.getvalue())
    return [tmp_path / place for place in ("pets", "list.csv", "folders.tar", "tars.tar")]


def test_class_names_that_are_not_utf_8_become_plain_text(tmp_path):
    for place in sources_named(tmp_path, ["abc", LATIN_1, os.fsdecode(b"caf\xe8")]):
        source = open_images(place)
        assert source.class_names == ("abc", r"caf\xe8", r"caf\xe9")
        assert [source.load(n).shape for n in range(3)] == [(12, 9, 3)] * 3
        json.dumps(source.class_names, ensure_ascii=False).encode("utf-8")
        assert len(source.fingerprint) == 16
        known = readable_class_names(json.loads(json.dumps(source.class_names)), 3)
        assert class_index(r"caf\xe9", known, 3) == 2  # as it is shown
        assert class_index(LATIN_1, known, 3) == 2  # as a shell passes the folder's name on


def test_a_place_that_is_not_utf_8_names_its_class_in_plain_text(tmp_path):
    write_noise(tmp_path / LATIN_1 / "0.png")
    assert ImageFolder(tmp_path / LATIN_1).class_names == (r"caf\xe9",)
    (tmp_path / f"{LATIN_1}.csv").write_bytes(b"caf\xe9/0.png\n")
    assert open_images(tmp_path / f"{LATIN_1}.csv").class_names == (r"caf\xe9",)


def test_messages_about_odd_names_can_be_printed(tmp_path):
    for place in ("a", "b"):
        write_noise(tmp_path / place / LATIN_1 / "0.png")
    (tmp_path / "a" / LATIN_1 / "0.png").write_bytes(b"torn")
    (tmp_path / "b" / os.fsdecode(b"\xff empty")).mkdir()
    for place in ("a", "b"):
        with pytest.raises(InputError) as error:
            open_images(tmp_path / place)
        assert str(error.value).encode("utf-8")
    source = open_images(tmp_path / "b", unconditional=True)
    (tmp_path / "b" / LATIN_1 / "0.png").unlink()
    with pytest.raises(InputError, match=r"caf\\udce9/0\.png could be decoded") as error:
        source.load(0)
    assert str(error.value).encode("utf-8")


def test_names_of_earlier_models_are_made_readable():
    assert readable_class_names(["a", LATIN_1], 2) == ("a", r"caf\xe9")
    assert readable_class_names([LATIN_1] * 1000, 1000)[0] == r"caf\xe9"


# --- normal forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("asked", [COMPOSED, DECOMPOSED, f" {DECOMPOSED.upper()} "])
def test_names_are_found_in_every_normal_form(tmp_path, stored, asked):
    for place in sources_named(tmp_path, [stored, "tea"]):
        source = open_images(place)
        assert class_index(asked, source.class_names, 2) == source.class_names.index(COMPOSED)
    assert class_index(asked, [f"cup, {stored}", "tea"], 2) == 0


def test_exact_spelling_tells_earlier_models_classes_apart():
    names = [COMPOSED, DECOMPOSED]
    assert [class_index(name, names, 2) for name in names] == [0, 1]


@pytest.mark.parametrize("twins", [(COMPOSED, DECOMPOSED), (os.fsdecode(b"\xe9t"), r"\xe9t"), ("\u212b", "\u00c5")])
def test_classes_that_look_the_same_are_refused(tmp_path, twins):
    for place in sources_named(tmp_path, [*twins, "tea"]):
        with pytest.raises(InputError, match="two classes that are both shown as") as error:
            open_images(place)
        assert str(error.value).encode("utf-8")
        assert len(open_images(place, unconditional=True)) == 3


# --- digits and types -----------------------------------------------------------------------------------------------

PADDED = [f"{number:02d}" for number in range(1, 12)]


@pytest.mark.parametrize("text", ["1", "8", "0", "001", "12", "+1", "010"])
def test_digits_that_are_no_class_of_numbered_names_are_refused(text):
    with pytest.raises(InputError, match=r"no class called .* in quotes in YAML"):
        class_index(text, PADDED, 11)


@pytest.mark.parametrize("text", ["0", "01", "08", "12"])
def test_digits_that_are_no_class_of_names_without_zeros_are_refused(text):
    with pytest.raises(InputError, match="no class called"):
        class_index(text, [str(number) for number in range(1, 12)], 11)


def test_digits_that_name_a_class_are_that_class():
    assert [class_index(name, PADDED, 11) for name in PADDED] == list(range(11))
    assert class_index("7", ["007", "7", "x"], 3) == 1
    assert class_index(1, PADDED, 11) == 1  # a number is a label
    assert class_index("1", ["cat", "dog", "24"], 3) == 1  # an index: only one class is called by a number
    with pytest.raises(InputError, match="Did you mean '24'"):
        class_index("024", ["cat", "24", "dog"], 30)
    assert class_index("010", [str(number) for number in range(11)], 11) == 10


def test_folders_of_numbers_are_never_mistaken(tmp_path):
    for number, name in enumerate(PADDED):
        write_noise(tmp_path / "pets" / name / "0.png", number)
    source = open_images(tmp_path / "pets")
    assert class_index("01", source.class_names, 11) == 0
    with pytest.raises(InputError, match="Did you mean '01'"):
        class_index("1", source.class_names, 11)


@pytest.mark.parametrize("label", [2.5, True, None, [1], b"cat", "--1", "+-1", "9" * 5000, "\u0663", "x" * 100_000])
def test_what_is_no_class_is_refused(label):
    with pytest.raises(InputError) as error:
        class_index(label, ("cat", "dog"), 2)
    assert len(str(error.value)) < 600


def test_a_single_name_or_number_is_one_class():
    assert as_labels("animals") == as_labels(["animals"]) == ["animals"]
    assert as_labels(1) == as_labels(np.array([1])) == as_labels(np.array(1)) == [1]
    assert [class_index(label, ["animals, plants", "b"], 2) for label in as_labels("animals, plants")] == [0]


# --- names like patterns --------------------------------------------------------------------------------------------

BRACKETS = ("[1]", "a*b", "q?", "br{1..3}", "x[!a]", "a,b", "{a,b}", "per%20cent", "#1")


@pytest.mark.parametrize("name", BRACKETS)
def test_names_like_patterns_are_names(tmp_path, name):
    folder = tmp_path / name
    content = write_noise(folder / "pets" / name / f"{name}.png")
    (folder / f"{name}.csv").write_text(f'path,label\n"pets/{name}/{name}.png",cat\n')
    (folder / f"{name}.jsonl").write_text(json.dumps({"path": f"pets/{name}/{name}.png", "label": "cat"}))
    (folder / "tars").mkdir()
    with tarfile.open(folder / "tars" / f"{name}.tar", "w") as archive:
        archive.add(folder / "pets" / name / f"{name}.png", f"{name}.png")
    for place in ("pets", f"{name}.csv", f"{name}.jsonl", "tars", f"tars/{name}.tar", "tars/*.tar"):
        assert open_images(folder / place).store.read(0) == content


@pytest.mark.parametrize("name", BRACKETS)
def test_tables_with_names_like_patterns_are_found(tmp_path, name):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / name
    content = write_noise(folder / "images" / "cat" / f"{name}.png")
    rows = {"image": [{"bytes": content, "path": None}]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    (folder / "table").mkdir()
    table.to_parquet(folder / "table" / f"{name}.parquet")
    table.save_to_disk(folder / "saved")
    for word in (folder / "table" / f"{name}.parquet", folder / "table", folder / "saved", f"hf:{folder / 'images'}"):
        assert open_images(word).store.read(0) == content


@pytest.mark.parametrize(
    "word",
    [*("x" * 300 + end for end in ("", ".csv", "*.tar", "*.parquet")), "x" * 5000, "a\0b", "a\0b.tar", ""],
)
def test_words_that_no_path_can_be_are_one_paragraph(word):
    with pytest.raises(InputError, match="There (are no images|is no file)") as error:
        open_images(word)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("word", ["{0..5}" * 12, "{1..100000}{1..100000}", "{a,b}" * 30])
def test_patterns_of_too_many_files_are_refused_at_once(word):
    with pytest.raises(InputError, match="more than 100,000 files"):
        open_images(f"{word}.tar")


# --- text that is no name -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", rb'{"path": "\ud800.png"}', "not a valid file name"),
        ("a.jsonl", rb'{"path": "0.png", "label": "' + b"x" * 100_000 + b'"}', "100,000 characters"),
        ("a.jsonl", b'{"path": "' + b"x" * 100_000 + b'.png"}', "100,004 characters"),
        ("a.jsonl", b'{"path": "0.png", "label": ' + b"9" * 5000 + b"}", "not JSON"),
        ("a.jsonl", b'{"path": "0.png", "label": 1e400}', "whole number"),
        ("a.csv", b"0.png," + b"x" * 200_000, "field larger"),
        ("a.csv", b"x" * 100_000 + b".png,cat", "100,004 characters"),
        ("a.txt", b"x" * 5000 + b".png", "5,004 characters"),
        ("a.csv", "0.png,cat\n".encode("utf-16"), "UTF-16"),
        ("a.txt", "0.png cat\n".encode("utf-16"), "UTF-16"),
        ("a.csv", b"\0\0\0.png,cat\n", "leaves none"),
        ("a.csv", b"\0" * 1000, "leaves none"),
    ],
)
def test_text_that_is_no_list_is_one_paragraph(tmp_path, name, content, words):
    write_noise(tmp_path / "0.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        open_images(tmp_path / name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert str(error.value).encode("utf-8")


def test_half_a_surrogate_pair_as_a_label_is_readable(tmp_path):
    write_noise(tmp_path / "0.png")
    (tmp_path / "a.jsonl").write_text(r'{"path": "0.png", "label": "\ud83d cat"}')
    assert open_images(tmp_path / "a.jsonl").class_names == (r"\ud83d cat",)


def test_readable_names_are_plain():
    assert readable(os.fsdecode(bytes(range(0x80, 0x100)))).isascii()
    for text in ("plain", "naïve", "猫", "a\\xe9"):
        assert readable(text) == text
