"""Tars of given members, as data sets come in."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path


def tar_of(members: Iterable[tuple[str, bytes]], **options: object) -> bytes:
    """The bytes of a tar of (name, content) pairs; `options` are those of `tarfile.open`."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], **options: object) -> Path:
    """Write such a tar, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(members, **options))
    return path
