"""FIFOs, devices and the like in the place of an image, a list, a tar or a table: skipped or refused, never read."""

import io
import json
import os
import socket
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from alight.data.loading import open_images
from alight.data.sample_folder import Request, SampleFolder
from alight.runtime.errors import InputError
from helpers.pictures import noise_file

datasets = pytest.importorskip("datasets")

SECONDS = 60  # far beyond what opening takes
OPEN = """
import json, sys
from alight.data.loading import open_images
from alight.runtime.errors import InputError
for place in sys.argv[1:]:
    try:
        source = open_images(place, max_skipped_fraction=0.9)
        print(json.dumps([len(source), source.skipped]))
    except InputError as error:
        print(json.dumps(str(error)))
"""


def opened(*places):
    """Of each, [number of images, skipped] or the message why not; from a process of its own, which may be stopped."""
    command = [sys.executable, "-c", OPEN, *map(os.fspath, places)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(places)
    return answers


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have 108 characters
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def link_to_device(path):
    path.symlink_to("/dev/zero")


def make_folder(path):
    path.mkdir()


def make_sparse_giant(path):
    with path.open("wb") as file:
        file.truncate(100 * 2**30)


SPECIAL = {
    "fifo": (make_fifo, "not a regular file"),
    "socket": (make_socket, "not a regular file"),
    "device": (link_to_device, "not a regular file"),
    "folder": (make_folder, "not a regular file"),
    "giant": (make_sparse_giant, "more than the 536,870,912 that an image may have"),
}


@pytest.fixture
def sound(tmp_path):
    (tmp_path / "pets").mkdir()
    for number in range(3):
        (tmp_path / "pets" / f"{number}.png").write_bytes(noise_file(number))
    return tmp_path / "pets"


@pytest.mark.slow
def test_in_folders_lists_and_tables_they_are_skipped(sound, tmp_path):
    reasons = {}
    for kind, (make, reason) in SPECIAL.items():
        make(sound / f"{kind}.png")
        reasons[f"{sound}/{kind}.png"] = reason
    (sound / "list.csv").write_text("path,label\n0.png,a\n1.png,b\n" + "".join(f"{kind}.png,a\n" for kind in SPECIAL))
    rows = [{"bytes": noise_file(), "path": None}] + [{"bytes": None, "path": path} for path in reasons]
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(tmp_path / "a.parquet")
    folder, listed, table = opened(sound, sound / "list.csv", tmp_path / "a.parquet")
    assert (folder[0], listed[0], table[0]) == (3, 2, 1)
    assert dict(listed[1]).keys() == reasons.keys()
    assert dict(folder[1]).keys() == reasons.keys() - {f"{sound}/folder.png"}  # which is empty
    assert [path for path, _ in table[1]] == [f"{tmp_path}/a.parquet row {1 + row}" for row in range(len(reasons))]
    assert all(said.endswith(reasons[path]) for path, said in folder[1] + listed[1])
    assert all(said.endswith(reason) for (_, said), reason in zip(table[1], reasons.values(), strict=True))


@pytest.mark.slow
def test_in_the_place_of_a_source_they_are_refused(tmp_path):
    places = []
    for kind in ("fifo", "socket", "device"):
        (tmp_path / kind).mkdir()
        for name in ("a.csv", "a.jsonl", "a.txt", "a.tar", "a.parquet", "a.png"):
            places.append(tmp_path / kind / name)
            SPECIAL[kind][0](places[-1])
    for kind in ("parquet", "tar"):
        (tmp_path / kind).mkdir()
        make_fifo(tmp_path / kind / f"a.{kind}")
        places.append(tmp_path / kind)
    for place, answer in zip(places, opened(*places), strict=True):
        assert isinstance(answer, str)
        assert str(place) in answer


def test_members_of_a_tar_are_skipped_with_a_warning(tmp_path, caplog):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, kind in enumerate((tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.SYMTYPE)):
            member = tarfile.TarInfo(f"odd{number}.png")
            member.type, member.linkname = kind, "/dev/zero" if kind == tarfile.SYMTYPE else ""
            archive.addfile(member)
        member = tarfile.TarInfo("0.png")
        member.size = len(noise_file())
        archive.addfile(member, io.BytesIO(noise_file()))
    assert len(open_images(tmp_path / "a.tar")) == 1
    assert "4 members" in caplog.text
    assert "odd0.png" in caplog.text


def test_a_file_that_becomes_a_fifo_is_one_paragraph(sound):
    source = open_images(sound)
    (sound / "1.png").unlink()
    make_fifo(sound / "1.png")
    with pytest.raises(InputError, match=r"1\.png could be decoded .*not a regular file"):
        source.load(1)


# --- samples that a run left unfinished -----------------------------------------------------------------------------


@pytest.fixture
def samples(tmp_path):
    folder = SampleFolder(tmp_path / "samples", {}, {})
    folder.start()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    folder.write(0, pixels, Request(3, 7), nfe=5, settings={"class": "猫", "steps": 5})
    assert folder.holds(0, Request(3, 7))
    return folder


def test_every_flipped_bit_of_an_unfinished_sample_is_noticed(samples):
    path = samples.image_path(0)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert not samples.holds(0, Request(3, 7)), position


def test_other_damage_of_an_unfinished_sample_is_noticed(samples):
    path = samples.image_path(0)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    variants = [whole[:length] for length in range(0, len(whole), 7)] + [whole + b"\0", whole + whole, whole[8:]]
    for _ in range(300):
        start, stop = sorted(generator.integers(8, len(whole), 2).tolist())
        variants += [whole[:start] + whole[stop:], whole[:start] + generator.bytes(stop - start) + whole[stop:]]
    for variant in variants:
        path.write_bytes(variant)
        assert samples.holds(0, Request(3, 7)) == (variant == whole)
    path.write_bytes(whole)
    assert not samples.holds(0, Request(3, 8))
    assert not samples.holds(0, Request(4, 7))
    assert not samples.holds(1, Request(3, 7))


def test_what_is_no_file_is_no_finished_sample(samples):
    make_fifo(samples.image_path(1))
    samples.image_path(2).mkdir()
    assert not samples.holds(1, Request(3, 7))
    assert not samples.holds(2, Request(3, 7))
