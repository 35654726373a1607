"""Tables of images through Hugging Face `datasets`: saved to disk, parquet, local folders; columns, labels, splits."""

import io
import pickle
import sys

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from alight.data.hugging_face import HuggingFaceImages
from alight.data.image_dataset import ImageDataset
from alight.data.loading import open_images
from alight.runtime.errors import InputError
from helpers.pictures import noise_file

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed: pip install 'alight[data]'")


@pytest.fixture(autouse=True)
def _own_cache_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def table(count=6, names=("zebra", "ant", "unused"), **columns):
    """A typed table: images in the column `img`, classes in `animal`."""
    features = {"img": datasets.Image(), "animal": datasets.ClassLabel(names=list(names))}
    rows = {
        "img": [{"bytes": noise_file(n), "path": None} for n in range(count)],
        "animal": [n % 2 for n in range(count)],
    }
    typed = {
        name: datasets.Value("int64" if isinstance(values[0], int) else "string") for name, values in columns.items()
    }
    return datasets.Dataset.from_dict(rows | columns, features=datasets.Features(features | typed))


def plain_parquet(path, **columns):
    """As other programs write it, without the types of `datasets`."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


def assert_rows(source, numbers):
    """These rows of `table`, byte for byte."""
    assert len(source) == len(numbers)
    for index in np.random.default_rng(0).permutation(len(numbers)).tolist():
        assert source.store.read(index) == noise_file(numbers[index])
        assert (source.load(index) == np.asarray(Image.open(io.BytesIO(noise_file(numbers[index]))))).all()


def test_saved_table_with_columns_found_by_type(tmp_path):
    table().save_to_disk(tmp_path / "saved")
    source = open_images(tmp_path / "saved")
    assert isinstance(source, HuggingFaceImages)
    assert source.class_names == ("zebra", "ant", "unused")  # in the order of the data, with those that do not occur
    assert source.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert source.labels.dtype == np.int64
    assert source.sizes.tolist() == [[12, 9]] * 6
    assert source.name(3) == "row-00000003"
    assert source.description == f"{tmp_path / 'saved'}: 6 images in 3 classes"
    assert_rows(source, range(6))
    assert open_images(tmp_path / "saved", unconditional=True).class_names == ("saved",)


def test_splits_of_a_saved_table(tmp_path):
    splits = datasets.DatasetDict({"train": table(4), "test": table(2)})
    splits.save_to_disk(tmp_path / "saved")
    assert_rows(open_images(tmp_path / "saved"), range(4))
    assert_rows(open_images(f"hf:{tmp_path / 'saved'}:test"), range(2))
    assert_rows(open_images(tmp_path / "saved" / "test"), range(2))
    with pytest.raises(InputError, match="no split val.* train, test"):
        open_images(f"hf:{tmp_path / 'saved'}:val")
    with pytest.raises(InputError, match="no split val.* no splits"):
        open_images(f"hf:{tmp_path / 'saved' / 'train'}:val")


def test_parquet_files_and_slices_of_them(tmp_path):
    folder = tmp_path / "parts.parquet"  # a folder, as some programs name it
    folder.mkdir()
    for number in range(3):
        table().select(range(2 * number, 2 * number + 2)).to_parquet(folder / f"part-{number}.parquet")
    assert_rows(open_images(folder / "part-1.parquet"), [2, 3])
    source = open_images(folder / "part-{0..2}.parquet")
    assert source.class_names == ("zebra", "ant", "unused")
    assert_rows(source, range(6))
    assert_rows(open_images(folder / "part-*.parquet"), range(6))
    assert_rows(open_images(folder), range(6))
    head, tail = (open_images(f"hf:{folder}:train{part}") for part in ("[:2]", "[2:]"))
    assert_rows(head, range(2))
    assert_rows(tail, range(2, 6))
    assert head.fingerprint != tail.fingerprint
    with pytest.raises(InputError, match="no data"):
        open_images(f"hf:{folder}:train[:0]")
    table(0).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="no rows|cannot open"):
        open_images(tmp_path / "empty.parquet")


def test_parquet_of_other_programs(tmp_path):
    images = [noise_file(n) for n in range(3)]
    binary = plain_parquet(tmp_path / "a.parquet", image=images, label=["x", "y", "x"], score=[0.5, 1.0, 2.0])
    source = open_images(binary)
    assert source.class_names == ("x", "y")
    assert source.labels.tolist() == [0, 1, 0]
    assert_rows(source, range(3))
    nested = plain_parquet(tmp_path / "b.parquet", picture=[{"bytes": b, "path": "n"} for b in images], kind=[2, 0, 2])
    with pytest.raises(InputError, match="no column image among picture, kind"):
        open_images(nested)
    source = open_images(nested, image_column="picture", label_column="kind")
    assert source.labels.tolist() == [2, 0, 2]
    assert_rows(source, range(3))
    with pytest.raises(InputError, match="score .* neither whole numbers nor text"):
        open_images(binary, label_column="score")
    with pytest.raises(InputError, match="cannot open .* image_column|datasets cannot open"):
        open_images(binary, image_column="score")


def test_a_parquet_file_that_changes_is_read_anew(tmp_path):
    path = plain_parquet(tmp_path / "a.parquet", image=[noise_file(0), noise_file(1)])
    first = open_images(path)
    plain_parquet(path, image=[noise_file(0), noise_file(2), noise_file(3)])
    second = open_images(path)
    assert_rows(second, [0, 2, 3])
    assert second.fingerprint != first.fingerprint


def test_columns_must_be_unambiguous(tmp_path):
    table(2, label=[0, 1]).save_to_disk(tmp_path / "typed")  # the type decides before the name
    assert open_images(tmp_path / "typed").class_names == ("zebra", "ant", "unused")
    assert open_images(tmp_path / "typed", label_column="label").class_names == ("0", "1")
    twice = table(2).add_column("label", [1, 0]).cast_column("label", datasets.ClassLabel(names=["on", "off"]))
    twice.save_to_disk(tmp_path / "twice")
    with pytest.raises(InputError, match="2 columns of classes among img, animal, label"):
        open_images(tmp_path / "twice")
    assert open_images(tmp_path / "twice", label_column="label").class_names == ("on", "off")
    with pytest.raises(InputError, match="no column breed"):
        open_images(tmp_path / "twice", label_column="breed")
    with pytest.raises(InputError, match="no column photo"):
        open_images(tmp_path / "twice", image_column="photo")


def test_rows_without_labels_or_images(tmp_path):
    rows = {
        "image": [{"bytes": noise_file(0), "path": None}, None, {"bytes": b"torn", "path": None}],
        "label": [0, 0, -1],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="no class in the column label.* another split"):
        open_images(tmp_path / "saved")
    source = open_images(tmp_path / "saved", unconditional=True, max_skipped_fraction=0.7)
    assert_rows(source, [0])
    assert [reason for _, reason in source.skipped] == ["the row has no image", "not an image that Pillow supports"]


def test_an_image_folder_through_datasets(tmp_path):
    for number in range(4):
        path = tmp_path / "pets" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise_file(number))
    source = open_images(f"hf:{tmp_path / 'pets'}")
    assert source.class_names == ("cat", "dog")
    assert sorted(source.store.read(index) for index in range(4)) == sorted(noise_file(number) for number in range(4))
    assert source.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("word", ["hf:nobody/nothing", "hf:nobody/nothing:test", "hf:./nowhere", "hf:", "hf: :"])
def test_a_hub_that_cannot_be_reached_is_one_paragraph(word):
    with pytest.raises(InputError, match="cannot open") as error:
        open_images(word)
    assert "\n" not in str(error.value)


def test_damaged_files_are_one_paragraph(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"\0" * 100)
    with pytest.raises(InputError, match="cannot open") as error:
        open_images(tmp_path / "a.parquet")
    assert "\n" not in str(error.value)
    table(2).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="cannot open"):
        open_images(tmp_path / "saved")


@pytest.mark.slow
def test_worker_processes_read_the_same(tmp_path):
    table().save_to_disk(tmp_path / "saved")
    source = open_images(tmp_path / "saved")
    assert len(pickle.dumps(source)) < 20_000  # the images stay in their file
    dataset = ImageDataset(source, 8, cache_bytes=0)
    loader = DataLoader(dataset, batch_size=2, num_workers=1, multiprocessing_context="spawn")
    for batch, alone in zip(loader, DataLoader(dataset, batch_size=2), strict=True):
        assert (batch.image == alone.image).all()
        assert (batch.label == alone.label).all()


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as where it is not installed
    with pytest.raises(InputError, match=r"pip install 'alight\[data\]'"):
        open_images("hf:owner/name")
