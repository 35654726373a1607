"""The cached index of a folder: unchanged files are decoded once, and a damaged cache is no cache."""

import os
from hashlib import sha256

import pytest

from alight.data.cache import read_cache
from alight.data.image_folder import ImageFolder
from alight.data.image_index import index_images
from alight.data.image_store import FileStore, list_images
from alight.runtime.cache_folder import cache_folder
from helpers.pictures import write_pets, write_plain, write_truncated


@pytest.fixture
def pets(tmp_path):
    return write_pets(tmp_path / "pets")


@pytest.fixture
def decoded(monkeypatch):
    """The files that indexing really reads, in a list that the test may clear."""
    seen = []

    def recording(store, position):
        seen.append(os.path.basename(store.name(position)))
        return read(store, position)

    read = FileStore.read
    monkeypatch.setattr(FileStore, "read", recording)
    return seen


def index(folder):
    return index_images(FileStore(folder, folder, list_images(folder)))


def index_file():
    return next((cache_folder() / "image-index-4").glob("*.json"))


def test_unchanged_files_are_decoded_once(pets, decoded):
    first = index(pets)
    assert sorted(decoded) == ["a.JPG", "b.png", "c.WebP"]
    decoded.clear()
    assert index(pets) == first
    assert decoded == []


def test_the_index_holds_sizes_and_hashes_of_the_files(pets):
    first = index(pets).images[0]
    content = (pets / "cat" / "b.png").read_bytes()
    assert first[:2] == ("cat/b.png", f"{len(content)}-{(pets / 'cat' / 'b.png').stat().st_mtime_ns}")
    assert first[2:] == (60, 30, sha256(content).hexdigest()[:32], 0, "RGB", False)
    assert ImageFolder(pets).content_hash(0) == first.hash


def test_only_changed_new_and_damaged_files_are_decoded_again(pets, decoded):
    write_truncated(pets / "dog" / "half.jpg")
    assert len(index(pets).skipped) == 1
    decoded.clear()
    write_plain(pets / "dog" / "new.png")
    write_plain(pets / "cat" / "b.png", (99, 98))
    (pets / "dog" / "a.JPG").unlink()
    found = index(pets)
    assert sorted(decoded) == ["b.png", "half.jpg", "new.png"]
    assert [record.name for record in found.images] == ["cat/b.png", "cat/kittens/c.WebP", "dog/new.png"]
    assert (found.images[0].height, found.images[0].width) == (98, 99)
    cached = read_cache(index_file())
    assert sorted(fields[0] for fields in cached) == [record.name for record in found.images]


def test_same_size_but_touched_is_decoded_again(pets, decoded):
    index(pets)
    decoded.clear()
    os.utime(pets / "cat" / "b.png", ns=(1, 1))
    index(pets)
    assert decoded == ["b.png"]


def test_same_time_but_another_size_is_decoded_again(pets, decoded):
    os.utime(pets / "cat" / "b.png", ns=(1, 1))
    index(pets)
    decoded.clear()
    write_plain(pets / "cat" / "b.png", (99, 98))
    os.utime(pets / "cat" / "b.png", ns=(1, 1))
    index(pets)
    assert decoded == ["b.png"]


def test_file_damaged_after_indexing_is_found(pets):
    index(pets)
    write_truncated(pets / "cat" / "b.png")
    found = index(pets)
    assert [os.path.basename(skipped.path) for skipped in found.skipped] == ["b.png"]
    assert [record.name for record in found.images] == ["cat/kittens/c.WebP", "dog/a.JPG"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"60", b"61"),  # the height of cat/b.png
        lambda content: content.split(b"\n", 1)[1],
    ],
)
def test_damaged_cache_is_no_cache(pets, damage):
    first = index(pets)
    assert first.images[0].height == 60
    index_file().write_bytes(damage(index_file().read_bytes()))
    assert index(pets) == first


def test_cache_that_cannot_be_written_is_no_error(pets, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")  # also stops root, whom a read-only folder does not
    monkeypatch.setenv("ALIGHT_CACHE", str(tmp_path / "file" / "cache"))
    assert len(ImageFolder(pets)) == 3


def test_interrupted_indexing_keeps_what_it_reached(pets, monkeypatch, decoded):
    recording = FileStore.read

    def interrupted(store, position):
        if store.name(position) == "dog/a.JPG":  # the last name
            raise MemoryError
        return recording(store, position)

    monkeypatch.setattr(FileStore, "read", interrupted)
    with pytest.raises(MemoryError):
        index(pets)
    decoded.clear()
    monkeypatch.setattr(FileStore, "read", recording)
    assert len(index(pets).images) == 3
    assert decoded == ["a.JPG"]


def test_where_the_cache_lies(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "alight-cache"
    monkeypatch.delenv("ALIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "alight"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "alight"
