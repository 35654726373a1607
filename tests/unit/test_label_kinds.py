"""Labels as tables, records and archives of every origin give them: recognised, refused, or named in a warning."""

import json
import tarfile

import pytest

from alight.data.image_folder import ImageFolder
from alight.data.image_tars import ImageTars
from alight.data.loading import open_images
from alight.runtime.errors import InputError
from helpers.pictures import noise_file
from helpers.tars import tar_of

datasets = pytest.importorskip("datasets")


@pytest.fixture
def images(tmp_path):
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(noise_file(number))
    return tmp_path


def opened(folder, name, text, **options):
    (folder / name).write_text(text, encoding="utf-8")
    return open_images(folder / name, **options)


def by_class(source):
    """The numbers of the images of each class."""
    found = {name: [] for name in source.class_names}
    for index in range(len(source)):
        found[source.class_names[source.labels[index]]].append(source.name(index).rpartition("/")[2].split(".")[0])
    return found


# --- columns and keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        *("path,category", "path,Label", "path, label", " Path ,LABEL ", "file_name,class", "image_path,class_name"),
        *("FileName,Category", "filepath,class label", "img,target", "Image Name,CATEGORY_ID", "image,labels"),
        *('"path","label"', "file,synset", "path,wnid", "img-path,class-id"),
    ],
)
def test_usual_columns_are_recognised(images, header, caplog):
    source = opened(images, "a.csv", f"{header}\n0.png,cat\n1.png,dog\n")
    assert by_class(source) == {"cat": ["0"], "dog": ["1"]}
    assert not caplog.records
    name, label = (part.strip().strip('"') for part in header.split(","))
    lines = [json.dumps({label: kind, name: f"{n}.png"}) for n, kind in enumerate(("cat", "dog"))]
    assert by_class(opened(images, "a.jsonl", "\n".join(lines))) == {"cat": ["0"], "dog": ["1"]}


@pytest.mark.parametrize(("separator", "name"), [(";", "a.csv"), ("\t", "a.csv"), (";", "a.txt"), ("\t", "a.txt")])
def test_other_separators_are_recognised(images, separator, name):
    header = f"path{separator}class\n" if name == "a.csv" else ""
    source = opened(images, name, f"{header}0.png{separator}big cat\n1.png{separator}dog\n")
    assert by_class(source) == {"big cat": ["0"], "dog": ["1"]}


def test_names_of_several_words_in_plain_text(images):
    source = opened(images, "a.txt", "0.png golden retriever\n1.png maillot, tank suit\n2.png cat\n")
    assert by_class(source) == {"cat": ["2"], "golden retriever": ["0"], "maillot, tank suit": ["1"]}


def test_columns_that_are_not_used_are_named(images, caplog):
    source = opened(images, "a.csv", "path,breed,width\n0.png,cat,5\n1.png,dog,5\n")
    assert source.class_names == ("a",)
    assert "Not used: breed, width" in caplog.text
    caplog.clear()
    assert opened(images, "a.csv", "path,breed\n0.png,cat\n1.png,dog\n", label_column="Breed").class_names[0] == "cat"
    opened(images, "b.csv", "path,breed\n0.png,cat\n", unconditional=True)
    opened(images, "c.csv", "path\n0.png\n")
    opened(images, "d.csv", "0.png\n1.png\n")
    assert not caplog.records
    opened(images, "e.jsonl", '{"path": "0.png", "Kind": 1}\n{"path": "1.png", "breed": {"a": 2}}')
    assert "Not used: Kind, breed" in caplog.text


def test_several_label_columns_are_named(images, caplog):
    source = opened(images, "a.csv", "class_name,path,class_id\ncat,0.png,3\ndog,1.png,4\n")
    assert by_class(source) == {"cat": ["0"], "dog": ["1"]}
    assert "several columns that may hold the labels (class_name, class_id); 'class_name' is used" in caplog.text


@pytest.mark.parametrize("header", ["picture,species", "id,picture,species", "picture,label", "Bild,Klasse,Breite"])
def test_an_unknown_header_is_no_image(images, header):
    row = "{}.png,cat" if header.startswith(("p", "B")) else "{0}.png,{0}.png,cat"
    text = f"{header}\n" + "".join(f"{row.format(number)}\n" for number in range(3))
    with pytest.raises(InputError, match="image_column and label_column"):
        opened(images, "a.csv", text)


def test_tables_recognise_columns_too(images, caplog):
    def saved(name, **columns):
        columns = {"image": [{"bytes": noise_file(n), "path": None} for n in range(4)], **columns}
        table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        table.to_parquet(images / name)
        return images / name

    source = open_images(saved("a.parquet", Category=["x", "y", "x", "y"]))
    assert source.class_names == ("x", "y")
    source = open_images(saved("b.parquet", label=[10.0, 0.0, 2.0, 10.0]))
    assert source.labels.tolist() == [10, 0, 2, 10]
    caplog.clear()
    assert open_images(saved("c.parquet", breed=["x", "y", "x", "y"])).class_names == ("c",)
    assert "Not used: breed" in caplog.text
    with pytest.raises(InputError, match=r"2 of 4 images .* no label"):
        open_images(saved("d.parquet", label=[1.0, float("nan"), None, 0.0]))


# --- numbers --------------------------------------------------------------------------------------------------------


def labelled(folder, labels, name="n.csv"):
    if name.endswith("jsonl"):
        lines = [json.dumps({"path": f"{n}.png", "label": label}) for n, label in enumerate(labels)]
    else:
        lines = ["path,label", *(f"{n}.png,{label}" for n, label in enumerate(labels))]
    return opened(folder, name, "\n".join(lines) + "\n")


@pytest.mark.parametrize("style", ["{}", "{}.0", "{}.00", "{}.", "{}e0", "{}.0E+00"])
def test_numbers_of_every_spelling_are_sorted_as_numbers(images, style):
    source = labelled(images, [style.format(number) for number in range(11)])
    assert source.class_names == tuple(str(number) for number in range(11))
    assert source.labels.tolist() == list(range(11))


def test_floats_in_records_are_numbers(images):
    source = labelled(images, [float(number) for number in range(11)], "n.jsonl")
    assert source.class_names[10] == "10"
    assert source.labels.tolist() == list(range(11))
    members = [(f"{n}.png", noise_file(n)) for n in range(11)]
    members += [(f"{n}.json", json.dumps({"Class": float(n)}).encode()) for n in range(11)]
    (images / "n.tar").write_bytes(tar_of(members))
    assert open_images(images / "n.tar").labels.tolist() == list(range(11))


@pytest.mark.parametrize("name", ["n.csv", "n.jsonl"])
def test_leading_zeros_are_never_merged(images, name, caplog):
    source = labelled(images, ["7", "007", "7", "007"], name)
    assert by_class(source) == {"007": ["1", "3"], "7": ["0", "2"]}
    assert "007 and 7" in caplog.text
    padded = labelled(images, [f"{number:02d}" for number in range(1, 12)], name)
    assert padded.class_names == tuple(f"{number:02d}" for number in range(1, 12))


@pytest.mark.parametrize("digits", ["\u0661", "1_0", "+1", "0x1", "1 0", "\u00b2"])
def test_what_only_looks_like_a_number_is_a_name(images, digits):
    assert set(labelled(images, ["1", digits]).class_names) == {"1", digits}


@pytest.mark.parametrize("label", ["0.5", "1e400", "-1.0", "-3", "1e7", "99999999999999999999"])
def test_numbers_that_cannot_be_labels_are_refused(images, label):
    with pytest.raises(InputError, match=r"1\.png has the label .* whole numbers"):
        labelled(images, ["1", label])


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "NULL", "N/A", ""])
def test_missing_labels_among_numbers_are_missing(images, word):
    with pytest.raises(InputError, match="1 of 3 images .* no label"):
        labelled(images, ["1.0", word, "0.0"])


def test_none_is_a_name_among_names(images):
    assert labelled(images, ["cat", "none"]).class_names == ("cat", "none")


# --- tars -----------------------------------------------------------------------------------------------------------

SYNSETS = ("n01440764", "n01443537", "n02084071")


def synset_tar(synset, start=0):
    return tar_of([(f"{synset}_{n}.JPEG", noise_file(start + n)) for n in range(3)])


def test_a_tar_of_a_tar_per_synset_has_their_classes(tmp_path, caplog):
    inner = [(f"{synset}.tar", synset_tar(synset, 10 * n)) for n, synset in enumerate(SYNSETS)]
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))
    for _ in range(2):  # the second time from the cache
        source = open_images(tmp_path / "ILSVRC2012_img_train.tar")
        assert source.class_names == SYNSETS
        assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert [source.store.read(n) for n in range(9)] == [noise_file(10 * (n // 3) + n % 3) for n in range(9)]
        assert source.name(4) == "ILSVRC2012_img_train.tar/n01443537.tar/n01443537_1.JPEG"
    assert open_images(tmp_path / "ILSVRC2012_img_train.tar", unconditional=True).class_names == (
        "ILSVRC2012_img_train",
    )
    assert not caplog.records


@pytest.mark.parametrize("names", [SYNSETS, ("cat", "dog", "red fox")])
def test_a_folder_of_a_tar_per_class_has_their_classes(tmp_path, names):
    for number, name in enumerate(names):
        (tmp_path / f"{name}.tar").write_bytes(synset_tar("x", 10 * number))
    for word in (tmp_path, tmp_path / "*.tar"):
        source = open_images(word)
        assert source.class_names == names
        assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("prefix", ["", "./", "pets/", "./data/pets/"])
def test_a_tar_of_class_folders_has_their_classes(tmp_path, prefix, caplog):
    names = ["10/0.png", "10/deep/1.png", "cat/0.png", "9/0.png"]
    (tmp_path / "pets.tar").write_bytes(tar_of([(prefix + name, noise_file(n)) for n, name in enumerate(names)]))
    source = ImageTars(tmp_path / "pets.tar")
    assert source.class_names == ("10", "9", "cat")
    assert source.labels.tolist() == [0, 0, 2, 1]
    assert not caplog.records


def test_class_folders_have_the_same_labels_packed_and_unpacked(tmp_path):
    members = [(f"{number}/{image}.png", noise_file(number)) for number in range(11) for image in range(2)]
    (tmp_path / "all.tar").write_bytes(tar_of(members))
    with tarfile.open(tmp_path / "all.tar") as archive:
        archive.extractall(tmp_path / "all", filter="data")
    packed, unpacked = ImageTars(tmp_path / "all.tar"), ImageFolder(tmp_path / "all")
    assert packed.class_names == unpacked.class_names
    names = {unpacked.name(n): unpacked.labels[n] for n in range(22)}
    assert all(names[packed.name(n).removeprefix("all.tar/")] == packed.labels[n] for n in range(22))


def test_loose_images_beside_class_folders_of_a_tar_are_ambiguous(tmp_path):
    (tmp_path / "a.tar").write_bytes(
        tar_of([("cat/0.png", noise_file()), ("1.png", noise_file(1)), ("dog/2.png", noise_file())])
    )
    with pytest.raises(InputError, match="1 images beside folders with images .cat, dog"):
        open_images(tmp_path / "a.tar")
    assert len(open_images(tmp_path / "a.tar", unconditional=True)) == 3


def test_numbered_tars_without_labels_are_one_class_in_a_warning(tmp_path, caplog):
    (tmp_path / "shards").mkdir()
    for number in range(3):
        (tmp_path / "shards" / f"train-{number:03d}.tar").write_bytes(synset_tar("x", 10 * number))
    assert len(open_images(tmp_path / "shards").class_names) == 1
    assert "3 tar files (train-000, train-001, train-002) are taken as parts of one class" in caplog.text
    caplog.clear()
    open_images(tmp_path / "shards", unconditional=True)
    assert not caplog.records


def test_labels_of_samples_count_before_folders(tmp_path):
    members = [("a/0.png", noise_file()), ("a/0.cls", b"x"), ("b/1.png", noise_file(1)), ("b/1.cls", b"x")]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    assert open_images(tmp_path / "a.tar").class_names == ("x",)


def test_keys_of_samples_that_are_not_used_are_named(tmp_path, caplog):
    members = [("0.png", noise_file()), ("0.json", b'{"breed": "a", "size": 3}'), ("0.txt", b"a cat")]
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    assert open_images(tmp_path / "a.tar").class_names == ("a",)
    assert "Not used: .txt, breed, size" in caplog.text
    with pytest.raises(InputError, match="under the key klass, only breed, size"):
        open_images(tmp_path / "a.tar", label_column="klass")


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_cut_inner_tar_is_refused(tmp_path, keep):
    whole = synset_tar("x")
    whole = whole[: int(keep * len(whole.rstrip(b"\0")))]
    (tmp_path / "a.tar").write_bytes(tar_of([("cat.tar", whole), ("dog.tar", synset_tar("y"))]))
    with pytest.raises(InputError, match="cannot be read to its end"):
        open_images(tmp_path / "a.tar")


def test_tars_three_deep_and_archives_inside_are_not_passed_over(tmp_path, caplog):
    (tmp_path / "deep.tar").write_bytes(tar_of([("a.tar", tar_of([("b.tar", synset_tar("x"))]))]))
    with pytest.raises(InputError, match="unpack it"):
        open_images(tmp_path / "deep.tar")
    (tmp_path / "zipped.tar").write_bytes(tar_of([("0.png", noise_file()), ("more.tar.gz", b"1234")]))
    assert len(open_images(tmp_path / "zipped.tar")) == 1
    assert "more.tar.gz" in caplog.text


# --- folders --------------------------------------------------------------------------------------------------------


def test_hidden_and_litter_folders_are_no_classes_anywhere(tmp_path):
    names = ["cat/0.png", "dog/1.png"]
    hidden = (".ipynb_checkpoints/0.png", "cat/.ipynb_checkpoints/0.png", ".git/x.png", "__MACOSX/cat/._0.png")
    names += [*hidden, "cat/.hidden.png", "@eaDir/1.png", "lost+found/1.png", "__MACOSX/cat/0.png", ".cache/a/0.png"]
    for number, name in enumerate(names):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise_file(number))
    (tmp_path / "pets.tar").write_bytes(tar_of([(f"./{name}", noise_file(n)) for n, name in enumerate(names)]))
    for place in ("pets", "pets.tar"):
        source = open_images(tmp_path / place)
        assert source.class_names == ("cat", "dog")
        assert len(source) == 2


def test_a_single_class_folder_with_folders_of_its_own_is_pointed_out(tmp_path, caplog):
    for name in ("cat/0.png", "dog/1.png"):
        path = tmp_path / "pets" / "images" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(noise_file())
    assert ImageFolder(tmp_path / "pets").class_names == ("images",)
    assert "images has subfolders (cat, dog)" in caplog.text
    caplog.clear()
    ImageFolder(tmp_path / "pets" / "images")
    assert not caplog.records
