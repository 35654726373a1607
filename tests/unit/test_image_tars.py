"""Tar files of the WebDataset layout: exact random access, labels, patterns, and files that are not what they say."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from alight.data import tar_index
from alight.data.file_patterns import expand_braces, find_files
from alight.data.image_folder import ImageFolder
from alight.data.image_tars import ImageTars
from alight.data.loading import open_images
from alight.runtime.errors import InputError
from helpers.pictures import noise_file
from helpers.tars import write_tar


@pytest.fixture
def shards(tmp_path):
    """Three tars of five samples each, with numbers as labels."""
    for tar in range(3):
        members = []
        for sample in range(tar * 5, tar * 5 + 5):
            members += [(f"{sample:04d}.cls", str(sample % 4).encode()), (f"{sample:04d}.png", noise_file(sample))]
        write_tar(tmp_path / "shards" / f"train-{tar:03d}.tar", members)
    return tmp_path / "shards"


# --- what is in them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_random_access_gives_exactly_the_extracted_files(tmp_path, tar_format):
    long_name = f"deep/{'x' * 90}/{'y' * 90}.jpg"  # needs a header of its own in every format
    members = [(f"{number % 3}/{number:03d}.png", noise_file(number, (5 + number, 9))) for number in range(20)]
    members.insert(7, (long_name, noise_file(99, kind="jpeg")))
    tar = write_tar(tmp_path / "all.tar", members, format=tar_format)
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path / "extracted", filter="data")
    source, files = ImageTars(tar), ImageFolder(tmp_path / "extracted")
    assert len(source) == len(files) == 21
    index_of = {files.name(index): index for index in range(len(files))}
    for index in np.random.default_rng(0).permutation(21).tolist():
        name = source.name(index).removeprefix("all.tar/")
        twin = index_of.pop(name)
        assert source.store.read(index) == (tmp_path / "extracted" / name).read_bytes()
        assert (source.load(index) == files.load(twin)).all()
        assert (source.sizes[index] == files.sizes[twin]).all()
        assert source.content_hash(index) == files.content_hash(twin)
    assert not index_of


def test_a_folder_of_tars_with_numbers_as_labels(shards):
    source = open_images(shards)
    assert isinstance(source, ImageTars)
    assert source.labels.tolist() == [sample % 4 for sample in range(15)]
    assert source.class_names == ("0", "1", "2", "3")
    assert source.name(7) == "train-001.tar/0007.png"
    assert source.description == f"{shards}: 15 images in 4 classes"
    unconditional = open_images(shards, unconditional=True)
    assert unconditional.class_names == ("shards",)
    assert not unconditional.labels.any()


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("train-001.tar", range(5, 10)),
        ("train-{000..001}.tar", range(10)),
        ("train-{002,000}.tar", [*range(10, 15), *range(5)]),
        ("train-*.tar", range(15)),
        ("train-{00,01}?.tar", None),
    ],
)
def test_patterns(shards, pattern, numbers):
    if numbers is None:
        with pytest.raises(InputError, match=r"no file .*01\?\.tar"):
            open_images(shards / pattern)
        return
    source = open_images(shards / pattern)
    assert [int(source.name(index)[-8:-4]) for index in range(len(source))] == list(numbers)


def test_braces():
    assert expand_braces("a{08..10}b") == ["a08b", "a09b", "a10b"]
    assert expand_braces("{x,y}/{1..2}") == ["x/1", "x/2", "y/1", "y/2"]
    assert expand_braces("plain") == ["plain"]
    for backwards_or_endless in ("{5..3}", "{0..999999999}"):
        with pytest.raises(InputError, match="count upwards"):
            expand_braces(backwards_or_endless)


def test_a_file_whose_own_name_looks_like_a_pattern(tmp_path):
    tar = write_tar(tmp_path / "[1]" / "a{1..2}*.tar", [("0.png", noise_file(0))])
    assert find_files(str(tar)) == [tar]
    assert len(open_images(tar)) == len(open_images(tar.parent)) == 1
    assert find_files(str(tar.parent / "*.tar")) == [tar]


def test_names_as_labels_from_cls_and_json(tmp_path):
    def labelled(extension, contents):
        members = []
        for number, content in enumerate(contents):
            members += [
                (f"./s/{number}.jpg", noise_file(number, kind="jpeg")),
                (f"./s/{number}.{extension}", content),
            ]
        return write_tar(tmp_path / f"{extension}.tar", members)

    by_cls = open_images(labelled("cls", [b"dog\n", b"chat noir", b"dog"]))
    assert by_cls.class_names == ("chat noir", "dog")
    assert by_cls.labels.tolist() == [1, 0, 1]
    assert by_cls.name(0) == "cls.tar/s/0.jpg"
    by_json = labelled("json", [json.dumps({"label": 2 - n, "kind": "ab"[n % 2]}).encode() for n in range(3)])
    assert open_images(by_json).labels.tolist() == [2, 1, 0]
    kinds = open_images(by_json, label_column="kind")
    assert kinds.class_names == ("a", "b")
    assert kinds.labels.tolist() == [0, 1, 0]


def test_samples_need_not_be_complete_or_adjacent(tmp_path):
    members = [
        ("0.png", noise_file(0)),
        ("notes.txt", b"no image"),
        (".hidden.png", noise_file(9)),
        ("1.png", noise_file(1)),
        ("1.cls", b"1"),
        ("1.png", noise_file(2)),  # a second of the same name: this one counts, as in unpacking
        ("0.cls", b"0"),
        ("2.cls", b"1"),
    ]
    tar = write_tar(tmp_path / "odd.tar", members)
    with tarfile.open(tar, "a") as archive:
        link = tarfile.TarInfo("3.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        archive.addfile(link)
    source = ImageTars(tar)
    assert [source.name(index) for index in range(len(source))] == ["odd.tar/0.png", "odd.tar/1.png"]
    assert source.labels.tolist() == [0, 1]
    assert source.store.read(1) == noise_file(2)


def test_samples_with_several_images_need_a_choice(tmp_path):
    members = [(f"{n}.{kind}.png", noise_file(10 * n + len(kind))) for n in range(2) for kind in ("input", "edge")]
    tar = write_tar(tmp_path / "pairs.tar", members)
    with pytest.raises(InputError, match="image_column=input.png"):
        open_images(tar)
    source = open_images(tar, image_column="edge.png")
    assert source.name(1) == "pairs.tar/1.edge.png"
    assert source.store.read(1) == noise_file(14)
    with pytest.raises(InputError, match="no images with the extension depth.png"):
        open_images(tar, image_column="depth.png")


def test_names_differ_when_tars_of_several_folders_have_the_same_name(tmp_path):
    for folder in ("a", "b"):
        write_tar(tmp_path / folder / "0.tar", [("0.png", noise_file(0))])
    source = open_images(tmp_path / "{a,b}" / "0.tar")
    assert [source.name(index) for index in range(2)] == ["a/0.tar/0.png", "b/0.tar/0.png"]


def test_a_tar_beside_the_folders_it_was_unpacked_to_does_not_count(tmp_path):
    members = [("cat/0.png", noise_file(0)), ("dog/0.png", noise_file(1))]
    tar = write_tar(tmp_path / "pets" / "pets.tar", members)
    assert isinstance(open_images(tmp_path / "pets"), ImageTars)
    with tarfile.open(tar) as archive:
        archive.extractall(tmp_path / "pets", filter="data")
    source = open_images(tmp_path / "pets")
    assert isinstance(source, ImageFolder)
    assert source.class_names == ("cat", "dog")


# --- the index ----------------------------------------------------------------------------------------------------


def test_unchanged_tars_are_listed_and_decoded_once(shards, monkeypatch):
    first = open_images(shards)
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "_members", None)  # calling it would fail
        patch.setattr("alight.data.image_index.decode_with_facts", None)
        again = open_images(shards)
    assert again.fingerprint == first.fingerprint
    assert not again.skipped
    write_tar(shards / "train-001.tar", [("0.png", noise_file(50, (30, 40))), ("0.cls", b"3")])
    changed = open_images(shards)
    assert len(changed) == 11
    assert changed.sizes[5].tolist() == [30, 40]
    assert changed.fingerprint != first.fingerprint


def test_a_tar_that_changes_under_a_source_is_noticed(shards):
    source = open_images(shards)
    os.utime(shards / "train-001.tar", ns=(1, 1))
    source.load(0)
    with pytest.raises(InputError, match=r"train-001.tar/0005.png .* changed") as error:
        source.load(5)
    assert "\n" not in str(error.value)
    (shards / "train-000.tar").unlink()
    with pytest.raises(InputError, match="train-000.tar"):
        source.load(0)


# --- files that are not what they say -----------------------------------------------------------------------------


def test_damaged_images_in_a_tar_are_skipped(tmp_path):
    members = [
        ("0.png", noise_file(0)),
        ("1.png", noise_file(1)[:99]),
        ("2.png", b""),
        ("3.png", noise_file(3)),
    ]
    source = ImageTars(write_tar(tmp_path / "some.tar", members))
    assert [source.name(index) for index in range(2)] == ["some.tar/0.png", "some.tar/3.png"]
    assert [path for path, _ in source.skipped] == [f"{tmp_path}/some.tar/{number}.png" for number in (1, 2)]
    assert (source.load(1) == np.asarray(Image.open(io.BytesIO(noise_file(3))))).all()


@pytest.mark.parametrize("cut", [0, 100, 512, 700, 1024, -10240 - 100, -10240 - 700])
def test_cut_tars_are_refused(tmp_path, cut):
    tar = write_tar(tmp_path / "cut.tar", [(f"{number}.png", noise_file(number, (40, 40))) for number in range(6)])
    tar.write_bytes(tar.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"cut\.tar") as error:
        open_images(tar)
    assert "\n" not in str(error.value)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    tar = write_tar(tmp_path / "flipped.tar", [(f"{number}.png", noise_file(number)) for number in range(6)])
    with tarfile.open(tar) as archive:
        header = archive.getmembers()[3].offset
    content = bytearray(tar.read_bytes())
    content[header + 1] ^= 4
    tar.write_bytes(content)
    with pytest.raises(InputError, match=f"damaged header at byte {header:,}"):
        open_images(tar)


def test_a_tar_without_its_end_mark_is_whole(tmp_path):
    tar = write_tar(tmp_path / "open.tar", [("0.png", noise_file(0)), ("1.png", noise_file(1))])
    with tarfile.open(tar) as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    tar.write_bytes(tar.read_bytes()[:end])
    assert len(open_images(tar)) == 2


def test_compressed_and_other_files_are_refused(tmp_path):
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(InputError, match="decompress"):
        open_images(tmp_path / "zipped.tar")
    (tmp_path / "page.tar").write_text("<html>404</html>" * 100)
    with pytest.raises(InputError, match="cannot be read to its end"):
        open_images(tmp_path / "page.tar")
    with pytest.raises(InputError, match="no images"):
        open_images(write_tar(tmp_path / "texts.tar", [("0.txt", b"a"), ("0.cls", b"1")]))
    with pytest.raises(InputError, match="There is no file"):
        open_images(tmp_path / "train-{000..001}.tar")
    with pytest.raises(InputError, match="There are no images"):
        open_images(tmp_path / "nowhere.tar")


@pytest.mark.parametrize(("member", "content"), [("1.cls", b"\xff\xfe"), ("1.json", b"{"), ("1.json", b"[1]")])
def test_labels_that_cannot_be_read_are_missing_labels(tmp_path, member, content):
    members = [("0.png", noise_file(0)), ("0.cls", b"1"), ("1.png", noise_file(1)), (member, content)]
    tar = write_tar(tmp_path / "labels.tar", members)
    with pytest.raises(InputError, match=r"1 of 2 images .* no label .*labels.tar/1.png"):
        open_images(tar)
    assert len(open_images(tar, unconditional=True)) == 2
