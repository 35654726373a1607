"""Sources under stress: damaged bytes, several processes, workers, long runs; and their fingerprints."""

import io
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from alight.config import ImagesConfig
from alight.data.cache import read_cache, write_cache
from alight.data.embedded import Digits, Photographs
from alight.data.image_dataset import ImageDataset
from alight.data.image_folder import ImageFolder
from alight.data.images import ImageSubset
from alight.data.loading import open_images, source_fingerprint
from alight.runtime.errors import InputError
from helpers.tars import write_tar

Image.init()
FORMATS = [
    kind
    for kind in ("jpeg", "png", "gif", "webp", "tiff", "bmp", "ppm", "tga", "jpeg2000", "avif")
    if kind.upper() in Image.SAVE  # a build of Pillow may lack some
]


def encoded(seed, kind="png", size=(24, 20)):
    """A smooth picture with some noise, as bytes."""
    generator = np.random.default_rng(seed)
    pixels = np.indices(size).sum(0)[..., None] * 4 + generator.integers(0, 20, (*size, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, format=kind)
    return file.getvalue()


def damaged(content, generator):
    """Cut off, with some bits flipped, with a part overwritten, or with a part left out."""
    content = bytearray(content)
    start, stop = sorted(generator.integers(0, len(content), 2))
    kind = generator.integers(4)
    if kind == 0:
        return bytes(content[:start])
    if kind == 1:
        for position in generator.integers(0, len(content), generator.integers(1, 20)):
            content[position] ^= 1 << int(generator.integers(8))
    elif kind == 2:
        content[start:stop] = generator.bytes(int(stop - start))
    else:
        del content[start:stop]
    return bytes(content)


def opened_or_refused(place):
    """The source, or the message why not."""
    try:
        return open_images(place, max_skipped_fraction=1.0), ""
    except InputError as error:
        return None, str(error)


@pytest.fixture
def pets(tmp_path):
    for number in range(12):
        path = tmp_path / "pets" / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    return tmp_path / "pets"


@pytest.fixture
def three_sources(pets, tmp_path):
    """The same images as a folder, a list and a tar."""
    names = sorted(path.relative_to(pets).as_posix() for path in pets.rglob("*.png"))
    (tmp_path / "list.csv").write_text("".join(f"pets/{name},{name[:3]}\n" for name in names))
    members = [(name, (pets / name).read_bytes()) for name in names]
    write_tar(tmp_path / "pets.tar", members + [(f"{name[:-4]}.cls", name[:3].encode()) for name in names])
    return [open_images(place) for place in (pets, tmp_path / "list.csv", tmp_path / "pets.tar")]


# --- damaged bytes ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # Pillow warns about what it reads nevertheless
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_images_are_used_whole_or_skipped(tmp_path, kind):
    generator = np.random.default_rng(0)
    for number in range(40):
        (tmp_path / f"{number:02d}.png").write_bytes(damaged(encoded(number, kind), generator))
    (tmp_path / "sound.png").write_bytes(encoded(0, kind))
    source = ImageFolder(tmp_path, max_skipped_fraction=1.0, unconditional=True)
    assert len(source) + len(source.skipped) == 41
    assert len(source.skipped) >= 8  # those cut off, at the least; every format shows more than it must
    for index in range(len(source)):
        assert source.load(index).shape == (*source.sizes[index], 3)
    assert all(reason and "\n" not in reason for _, reason in source.skipped)


@pytest.mark.filterwarnings("ignore")
def test_damaged_tars_are_refused_or_read_whole(tmp_path):
    members = [
        (f"{n}.{kind}", encoded(n, "png") if kind == "png" else b"1") for n in range(4) for kind in ("png", "cls")
    ]
    write_tar(tmp_path / "whole.tar", members)
    whole = (tmp_path / "whole.tar").read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for number in range(120):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(damaged(whole[: -(1 << 13)], generator))  # most of the end is zeros, which says little
        source, message = opened_or_refused(path)
        assert "\n" not in message
        refused += source is None
        for index in range(len(source or ())):
            assert source.load(index).shape == (*source.sizes[index], 3)
    assert 30 < refused < 120


@pytest.mark.parametrize("extension", ["csv", "jsonl", "txt"])
def test_damaged_lists_are_refused_or_read(pets, extension):
    names = sorted(path.relative_to(pets).as_posix() for path in pets.rglob("*.png"))
    lines = {
        "csv": [f"{name},{name[:3]}\n" for name in names],
        "jsonl": [f'{{"path": "{name}", "label": "{name[:3]}"}}\n' for name in names],
        "txt": [f"{name} {number}\n" for number, name in enumerate(names)],
    }[extension]
    generator = np.random.default_rng(0)
    for _ in range(60):
        (pets / f"list.{extension}").write_bytes(damaged("".join(lines).encode(), generator))
        source, message = opened_or_refused(pets / f"list.{extension}")
        assert "\n" not in message
        assert source is None or source.load(0).shape == (24, 20, 3)


def test_many_skipped_files_are_listed_in_a_file(pets, caplog):
    for number in range(5):
        (pets / "cat" / f"torn{number}.png").write_bytes(encoded(0)[:50])
    source = open_images(pets)
    listed = caplog.text.split("all are listed in ")[1].split(")")[0]
    with open(listed, encoding="utf-8") as file:
        assert file.read().splitlines() == [f"{path}: {reason}" for path, reason in source.skipped]
    for path, _ in source.skipped:
        os.unlink(path)
    open_images(pets)
    assert not os.path.exists(listed)


# --- several processes --------------------------------------------------------------------------------------------


OPEN_AND_RECORD = """
import sys, time
from alight.data.image_folder import ImageFolder
from alight.data.image_store import FileStore
read = FileStore.read
def recorded(store, position):
    time.sleep(0.05)  # so that the processes meet
    with open(sys.argv[2], "a") as file:
        file.write(store.name(position) + "\\n")
    return read(store, position)
FileStore.read = recorded
print(ImageFolder(sys.argv[1]).fingerprint)
"""


@pytest.mark.slow
def test_of_several_processes_one_does_the_work(pets, tmp_path):
    record = tmp_path / "record"
    command = [sys.executable, "-c", OPEN_AND_RECORD, str(pets), str(record)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"RANK": str(rank)})
        for rank in range(3)
    ]
    fingerprints = {process.communicate(timeout=60)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert fingerprints == {open_images(pets).fingerprint}
    assert sorted(record.read_text().split()) == sorted(
        path.relative_to(pets).as_posix() for path in pets.rglob("*.png")
    )


def test_a_cache_is_never_read_half_written(tmp_path):
    file = tmp_path / "cache" / "a.json"
    values = [[letter] * 20_000 for letter in "ab"]
    write_cache(file, values[0])

    def write(number):
        write_cache(file, values[number % 2])

    def read(_):
        return read_cache(file)

    with ThreadPoolExecutor(4) as pool:
        writes, reads = pool.map(write, range(100)), pool.map(read, range(300))
        list(writes)
        assert all(value in values for value in reads)
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


@pytest.mark.slow
def test_spawned_workers_read_the_same(three_sources):
    dataset = ConcatDataset([ImageDataset(source, 16, cache_bytes=0) for source in three_sources])
    loader = DataLoader(dataset, batch_size=6, num_workers=2, multiprocessing_context="spawn")
    for batch, alone in zip(loader, DataLoader(dataset, batch_size=6), strict=True):
        assert (batch.image == alone.image).all()
        assert (batch.label == alone.label).all()


def test_a_mistake_found_in_a_worker_is_still_one_paragraph(pets):
    dataset = ImageDataset(open_images(pets), 16, cache_bytes=0)
    (pets / "cat" / "02.png").unlink()
    with pytest.raises(InputError) as error:
        list(DataLoader(dataset, batch_size=6, num_workers=1))
    assert str(error.value).startswith(f"{pets / 'cat' / '02.png'} could be decoded")
    assert "\n" not in str(error.value)


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is measured through /proc")
def test_memory_stays_flat_over_a_long_run(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.bmp").write_bytes(encoded(number, "bmp", size=(400, 400)))
    write_tar(tmp_path / "all.tar", [(f"{n}.bmp", (tmp_path / f"{n}.bmp").read_bytes()) for n in range(8)])
    for source in (ImageFolder(tmp_path), open_images(tmp_path / "all.tar")):
        for index in range(40):
            source.load(index % 8)
        before = resident_bytes()
        for index in range(200):
            source.load(index % 8)
        # One image has 0.48 MB: keeping one in twelve would be noticed, allocators keep a few
        assert resident_bytes() - before < 8 * 2**20


# --- identity -----------------------------------------------------------------------------------------------------


def test_a_fingerprint_names_exactly_these_images_and_labels(pets, tmp_path):
    first = open_images(pets).fingerprint
    assert len(first) == 16
    shutil.copytree(pets, tmp_path / "elsewhere", copy_function=shutil.copy)  # new times, another place
    assert open_images(tmp_path / "elsewhere").fingerprint == first
    seen = {first}

    def changed(change):
        shutil.rmtree(tmp_path / "changed", ignore_errors=True)
        shutil.copytree(pets, tmp_path / "changed")
        change(tmp_path / "changed")
        fingerprint = open_images(tmp_path / "changed").fingerprint
        assert fingerprint not in seen
        seen.add(fingerprint)

    changed(lambda folder: (folder / "cat" / "00.png").write_bytes(encoded(50)))  # another picture of the same size
    changed(lambda folder: (folder / "cat" / "00.png").write_bytes(encoded(0, size=(30, 20))))
    changed(lambda folder: (folder / "cat" / "00.png").rename(folder / "cat" / "x.png"))
    changed(lambda folder: (folder / "cat" / "00.png").rename(folder / "dog" / "00.png"))
    changed(lambda folder: (folder / "cat" / "00.png").unlink())
    changed(lambda folder: (folder / "cat").rename(folder / "fox"))
    changed(lambda folder: shutil.copy(folder / "cat" / "00.png", folder / "cat" / "y.png"))
    changed(lambda folder: (folder / "cat" / "00.png").write_bytes(encoded(0) + b"\0"))


def test_the_same_images_and_labels_have_one_fingerprint_in_a_folder_and_a_list(pets, tmp_path):
    names = sorted(path.relative_to(pets).as_posix() for path in pets.rglob("*.png"))
    (pets / "list.txt").write_text("".join(f"{name},{name[:3]}\n" for name in names))
    assert open_images(pets / "list.txt").fingerprint == open_images(pets).fingerprint
    others = {
        "renamed": "".join(f"{name},{name[2::-1]}\n" for name in names),  # classes tac and god
        "moved": "".join(f"{name},{'dog' if name == 'cat/00.png' else name[:3]}\n" for name in names),
        "reordered": "".join(f"{name},{name[:3]}\n" for name in reversed(names)),
    }
    for text in others.values():
        (pets / "list.txt").write_text(text)
        assert open_images(pets / "list.txt").fingerprint != open_images(pets).fingerprint


def test_fingerprints_of_parts_and_of_embedded_images(pets):
    source = open_images(pets)
    assert ImageSubset(source, range(12), part="all").fingerprint == source.fingerprint
    parts = {ImageSubset(source, part, part="some").fingerprint for part in ([0, 1], [1, 0], [0, 2], [0])}
    assert len(parts) == 4
    assert Digits().fingerprint == Digits().fingerprint
    assert len({Photographs(size).fingerprint for size in (32, 64)} | {Digits().fingerprint}) == 3


def test_one_class_may_have_any_name(tmp_path):
    for place in ("art", "kunst"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.png").write_bytes(encoded(0))
    assert open_images(tmp_path / "art").fingerprint == open_images(tmp_path / "kunst").fingerprint


def test_a_fingerprint_of_every_kind_of_source_shows_every_change(pets, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})

    def written(files):
        """The fingerprints of a folder, a list, a tar and a table with these files."""
        shutil.rmtree(tmp_path / "all", ignore_errors=True)
        (tmp_path / "all").mkdir()
        for name, content in files.items():
            path = tmp_path / "all" / "pets" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        (tmp_path / "all" / "list.csv").write_text("".join(f"pets/{name},{name[:3]}\n" for name in files))
        write_tar(tmp_path / "all" / "pets.tar", files.items())
        rows = {
            "image": [{"bytes": content, "path": None} for content in files.values()],
            "label": [name[:3] for name in files],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "all" / "pets.parquet")
        places = [tmp_path / "all" / name for name in ("pets", "list.csv", "pets.tar", "pets.parquet")]
        configs = [ImagesConfig(source=str(place), size=16) for place in places]
        found = [source_fingerprint(config, "train") for config in configs]
        assert found == [source_fingerprint(config, "train") for config in configs]
        return found

    files = {f"{kind}/{number}.png": encoded(number) for number, kind in enumerate(("cat", "cat", "dog", "dog"))}
    changes = [
        {},
        {"cat/0.png": encoded(50)},  # replaced by another of the same size in pixels
        {"cat/x.png": encoded(51)},  # added
        {"fox/0.png": encoded(52)},  # a class added
    ]
    fingerprints = [written(files | change) for change in changes]
    fingerprints.append(written({name: content for name, content in files.items() if name != "dog/2.png"}))
    fingerprints.append(written({name.replace("dog", "wolf"): content for name, content in files.items()}))
    for of_one_place in zip(*fingerprints, strict=True):
        assert len(set(of_one_place)) == len(fingerprints)
    assert written(files) == fingerprints[0]


def test_a_known_fingerprint_costs_no_decoding(pets, monkeypatch):
    config = ImagesConfig(source=str(pets), size=16)
    first = source_fingerprint(config, "train")
    monkeypatch.setattr("alight.data.image_index.decode_with_facts", None)  # calling it would fail
    assert source_fingerprint(config, "train") == first
