"""Files on disk: locks, hashes, atomic replacement, and the sentences that stand for the disk's refusals."""

import errno
import fcntl
import hashlib
import os

import pytest

from alight.runtime import files
from alight.runtime.errors import InputError
from alight.runtime.files import (
    LOCK_FILE,
    explained_disk_errors,
    locked_folder,
    replacing,
    segmented_hash,
    write_text,
)


def test_a_locked_folder_is_refused_and_free_again_afterwards(tmp_path):
    with locked_folder(tmp_path / "run"), pytest.raises(InputError, match="in use"), locked_folder(tmp_path / "run"):
        pass
    with locked_folder(tmp_path / "run"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_in_the_file_system_work_goes_on(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked_folder(tmp_path):
        pass


def test_a_symbolic_link_in_place_of_the_lock_is_not_followed(tmp_path):
    target = tmp_path / "precious.txt"
    target.write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(target)
    with pytest.raises(InputError, match="symbolic link"), locked_folder(tmp_path / "run"):
        pass
    assert target.read_text() == "kept"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EXDEV, errno.EINVAL, errno.ENOSPC, errno.EBUSY])
def test_every_error_of_the_disk_is_a_sentence(tmp_path, number):
    with pytest.raises(InputError, match="Cannot write to"), explained_disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_replacing_keeps_the_old_file_when_the_new_one_fails(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match="input/output error"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["file.txt"]


def test_replacing_leaves_nothing_behind_when_the_block_fails(tmp_path):
    def write_half():
        with replacing(tmp_path / "file.txt") as temporary:
            temporary.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert not list(tmp_path.iterdir())


def test_the_segmented_hash_is_that_of_its_segments(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    content = os.urandom(3_000_001)
    path.write_bytes(content)
    assert segmented_hash(path) == hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(files, "_SEGMENT", 1 << 20)
    parts = [hashlib.sha256(content[start : start + (1 << 20)]).digest() for start in range(0, len(content), 1 << 20)]
    assert segmented_hash(path) == hashlib.sha256(b"".join(parts)).hexdigest()
