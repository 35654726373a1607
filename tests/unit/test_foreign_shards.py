"""Shards and indexes from elsewhere: what cannot be latents is refused at once, and no file outside is touched."""

import json
import os
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from alight.artifacts import replace_file
from alight.config import ConvertConfig
from alight.data.latent_folder import LatentFolder
from alight.data.latent_shards import map_shard
from alight.data.latents import LatentDataset
from alight.interop.latents import export_latents_statistics
from alight.runtime.checked_json import read_checked, write_checked
from alight.runtime.errors import InputError
from alight.stages import convert

SHARD = "latents_00000.safetensors"


def shard(folder, name=SHARD, **tensors):
    """A sound shard of three latents, but for the tensors that are given."""
    folder.mkdir(parents=True, exist_ok=True)
    values = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    sound = {"latents": values, "latents_flip": values.flip(-1), "labels": torch.arange(3)}
    save_file({key: value.clone() for key, value in {**sound, **tensors}.items()}, folder / name)


def adopt(source, output, **options):
    return convert.run(ConvertConfig(kind="latents", source=source, output=output, **options))


def raw_shard(path, header, data):
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


NAN = torch.full((3, 2, 2, 2), torch.nan)
HOSTILE = {
    "negative label": ({"labels": torch.tensor([0, -1, 2])}, "labels from -1"),
    "label bomb": ({"labels": torch.tensor([0, 2**40, 1])}, "holds labels from 0 to 1099511627776"),
    "float labels": ({"labels": torch.tensor([0.0, 1.0, 2.0])}, "where 3 integers"),
    "narrow labels": ({"labels": torch.arange(3, dtype=torch.int32)}, "of type I32"),
    "2-d labels": ({"labels": torch.arange(3)[:, None]}, r"'labels' have the shape \(3, 1\)"),
    "too few labels": ({"labels": torch.arange(2)}, r"'labels' have the shape \(2,\)"),
    "0-d labels": ({"labels": torch.tensor(1)}, "'labels' have the shape"),
    "NaN latents": ({"latents": NAN, "latents_flip": NAN}, "'latents' with NaN"),
    "infinite mirrored latents": ({"latents_flip": NAN / 0 + torch.inf}, "'latents_flip' with NaN"),
    "2-d latents": ({"latents": torch.zeros(3, 2), "latents_flip": torch.zeros(3, 2)}, r"shape \(3, 2\)"),
    "6-d latents": ({"latents": torch.zeros(3, 1, 1, 1, 1, 1)}, r"shape \(3, 1, 1, 1, 1, 1\)"),
    "integer latents": ({"latents": torch.ones(3, 2, 2, 2, dtype=torch.int64)}, "are integers"),
    "byte latents": ({"latents": torch.ones(3, 2, 2, 2, dtype=torch.uint8)}, "of type U8"),
    "no latents": ({"latents": torch.zeros(0, 2, 2, 2), "labels": torch.arange(0)}, r"shape \(0, 2, 2, 2\)"),
    "empty latents": ({"latents": torch.zeros(3, 2, 0, 2)}, r"shape \(3, 2, 0, 2\)"),
    "other mirrored latents": ({"latents_flip": torch.zeros(3, 2, 2, 1)}, "of another shape"),
}


@pytest.mark.parametrize("with_statistics", [False, True])
@pytest.mark.parametrize("case", HOSTILE)
def test_shards_that_cannot_be_latents_are_refused_at_once(case, with_statistics, tmp_path):
    tensors, message = HOSTILE[case]
    shard(tmp_path / "shards", **tensors)
    if with_statistics:
        export_latents_statistics(torch.zeros(2), torch.ones(2), tmp_path / "shards" / "latents_stats.pt")
    started = time.perf_counter()
    with pytest.raises(InputError, match=message):
        adopt(tmp_path / "shards", tmp_path / "out")
    assert time.perf_counter() - started < 5
    assert not (tmp_path / "out").exists()


def test_shards_of_different_shapes_are_refused(tmp_path):
    shard(tmp_path / "shards")
    wide = torch.zeros(3, 2, 2, 4)
    shard(tmp_path / "shards", "latents_00001.safetensors", latents=wide, latents_flip=wide)
    with pytest.raises(InputError, match="different shapes"):
        adopt(tmp_path / "shards", tmp_path / "out")


def test_more_classes_than_any_data_has_are_refused(tmp_path):
    shard(tmp_path / "shards")
    with pytest.raises(InputError, match="at most 1,000,000"):
        adopt(tmp_path / "shards", tmp_path / "out", num_classes=2**30)


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        # the labels lie within the latents, and as many bytes behind them belong to nothing
        {"latents": entry([2, 1, 2, 2], 0, 32), "labels": entry([2], 16, 32, "I64"), "x": entry([2], 32, 48, "I64")},
        {"latents": entry([2, 1, 2, 2], 0, 32), "labels": entry([2], 32, 48, "I64")} | {"x": entry([0], 9, 9)},
        {"labels": entry([2], 0, 16, "I64"), "latents": entry([2, 1, 2, 2], 18, 50)},
        {"h": entry([1], 0, 2, "F16"), "labels": entry([2], 2, 18, "I64"), "latents": entry([2, 1, 2, 2], 18, 50)},
        {"latents": entry([2, 1, 2, 2], 32, 0), "labels": entry([2], 32, 48, "I64")},
        {"latents": entry([2, 1, 2, 2], 0, 32.0), "labels": entry([2], 32, 48, "I64")},
        {"latents": entry([2, 1, 2, True], 0, 32), "labels": entry([2], 32, 48, "I64")},
        {"latents": entry([2**62, 4, 1, 1], 0, 32), "labels": entry([2], 32, 48, "I64")},
    ],
)
def test_overlapping_and_misaligned_tensors_are_refused(header, tmp_path):
    raw_shard(tmp_path / SHARD, header, bytes(50 if "h" in header else 48))
    with pytest.raises(InputError, match="not a complete shard"):
        map_shard(tmp_path / SHARD)


def test_pipes_and_devices_are_no_shards(tmp_path):
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / SHARD)
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / SHARD).symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(InputError, match="not a regular file"):
            adopt(tmp_path / name, tmp_path / "out")


# --- indexes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def artifact(tmp_path):
    """A latents artifact of two shards with mirrored latents."""
    shard(tmp_path / "shards")
    shard(tmp_path / "shards", "latents_00001.safetensors")
    return adopt(tmp_path / "shards", tmp_path / "latents").path


def changed(folder, change):
    index = read_checked(folder / "index.json")
    change(index)
    write_checked(folder / "index.json", index)
    replace_file(folder, "index.json", (folder / "index.json").read_text())  # with a manifest that fits


OUTSIDE = ["../../outside.safetensors", "/{}/outside.safetensors", "sub/inner.safetensors", "..\\x.safetensors"]


@pytest.mark.parametrize("name", [*OUTSIDE, "..", ".", "", "latents_stats.pt", "a\0.safetensors"])
def test_an_index_names_no_file_outside_its_folder(name, artifact, tmp_path):
    name = name.format(tmp_path)
    (artifact / "sub").mkdir()
    for place in (tmp_path / "outside.safetensors", artifact / "sub" / "inner.safetensors"):
        place.write_bytes((artifact / SHARD).read_bytes())
    changed(artifact, lambda index: index["shards"][0].update(file=name))
    output = tmp_path / "a" / "b" / "out"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"shards\.0\.file.*not a plain file name"):
        convert.run(ConvertConfig(kind="latents", source=artifact, output=output, to="published"))
    with pytest.raises(InputError, match="not a plain file name"):
        LatentDataset(artifact)
    after = [path for path in sorted(tmp_path.rglob("*")) if path.name not in ("a", "b", "out")]
    assert after == before


def test_shards_behind_symbolic_links_are_taken_themselves(artifact, tmp_path):
    """As the cache of the hub keeps them; a second name of the link would lead nowhere."""
    (tmp_path / "linked").mkdir()
    (tmp_path / "blobs").mkdir()
    for path in (tmp_path / "shards").glob("*.safetensors"):
        (tmp_path / "blobs" / path.stem).write_bytes(path.read_bytes())
        (tmp_path / "linked" / path.name).symlink_to(f"../blobs/{path.stem}")
    output = adopt(tmp_path / "linked", tmp_path / "deep" / "er" / "out").path
    assert not any(path.is_symlink() for path in output.iterdir())
    assert len(LatentDataset(output)) == 6


def test_hidden_files_beside_shards_are_no_shards(tmp_path):
    shard(tmp_path / "shards")
    (tmp_path / "shards" / f"._{SHARD}").write_bytes(b"of another file system")
    assert len(LatentDataset(tmp_path / "shards")) == 3


WRONG = {
    "class names are numbers": lambda index: index.update(class_names=[1, 2, 3]),
    "class names are a text": lambda index: index.update(class_names="abc"),
    "no class names": lambda index: index.pop("class_names"),
    "statistics are a list": lambda index: index.update(statistics=[1, 2]),
    "statistics of texts": lambda index: index["statistics"].update(mean=["0", "0"]),
    "statistics of other channels": lambda index: index["statistics"].update(mean=[0.0]),
    "std of zero": lambda index: index["statistics"].update(std=[0.0, 1.0]),
    "std below float32": lambda index: index["statistics"].update(std=[1e-60, 1.0]),
    "no statistics": lambda index: index.pop("statistics"),
    "count is a text": lambda index: index.update(count="6"),
    "count is another": lambda index: index.update(count=7),
    "count of a shard": lambda index: index["shards"][0].update(count=4),
    "count of a shard is true": lambda index: index["shards"][0].update(count=True),
    "shards are a mapping": lambda index: index.update(shards={"file": SHARD}),
    "shards are names": lambda index: index.update(shards=[SHARD]),
    "no shards": lambda index: index.update(shards=[]),
    "a shard twice": lambda index: index["shards"].append(index["shards"][0]),
    "shape of two": lambda index: index.update(shape=[2, 2]),
    "another shape": lambda index: index.update(shape=[2, 4, 1]),
    "tensors are null": lambda index: index.update(tensors=None),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_index_of_the_wrong_shape_is_a_sentence(case, artifact):
    changed(artifact, WRONG[case])
    with pytest.raises(InputError, match=r"index\.json"):
        LatentDataset(artifact)


def test_an_index_that_says_more_is_read(artifact):
    changed(artifact, lambda index: index.update(remark="of a later version"))
    assert np.array_equal(LatentDataset(artifact).labels, [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("run.json", {"config": [], "seconds": 1.0}),
        ("run.json", {"config": {}, "seconds": "1"}),
        ("run.json", {"seconds": 1.0}),
        ("latents_00000.json", {"sha256": 3}),
        ("latents_00000.json", {}),
    ],
)
def test_records_of_an_unfinished_extraction_are_checked(name, values, tmp_path):
    (tmp_path / "unfinished").mkdir()
    write_checked(tmp_path / "unfinished" / name, values)
    folder = LatentFolder(tmp_path, 2, 2)
    if name == "run.json":
        with pytest.raises(InputError, match=r"run\.json"):
            folder.start({"images": {}}, {})
    else:
        assert not folder.holds(0)  # made again
        with pytest.raises(InputError, match=r"latents_00000\.json"):
            folder.records()
