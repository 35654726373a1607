"""Archives of arrays from elsewhere: damaged, lying, locked, nested or exploding ones cost a sentence, no memory."""

import io
import json
import random
import struct
import tracemalloc
import zipfile
from contextlib import suppress

import numpy as np
import pytest

from alight.artifacts import write_manifest
from alight.data.provenance import read_npz_entry
from alight.evaluation.generated import open_generated
from alight.evaluation.reference_set import _open_folder
from alight.metrics.frechet import FeatureStatistics
from alight.metrics.reference import read_reference
from alight.runtime.errors import InputError
from alight.runtime.npz import array_headers, read_array
from alight.show.files import describe_file

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)


def member(header, data=b"", version=(1, 0)):
    text = header.encode("latin-1")
    size = struct.pack("<H", len(text)) if version == (1, 0) else struct.pack("<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text + data


def npy(array, **options):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def header(shape, dtype="|u1", order=False):
    return f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}\n"


HOSTILE = {
    "lying shape": member(header((4, 5, 6, 300000)), PIXELS.tobytes()),
    "negative shape": member(header((-4, 5, 6, 3)), PIXELS.tobytes()),
    "huge shape": member(header((2**40, 2**40, 6, 3)), PIXELS.tobytes()),
    "shape of text": member(header("'abc'"), PIXELS.tobytes()),
    "nested header": member("(" * 9_000),
    "nested minus": member("{'descr': '|u1', 'shape': " + "-" * 9_000 + "1}"),
    "nested dtype": member(header((1,)).replace("'|u1'", "[('a', " * 900 + "'<i4'" + ")]" * 900)),
    "endless header": member(" " * 200_000, version=(2, 0)),
    "header beyond the end": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1),
    "no header": b"nothing",
    "unknown version": member(header((4, 5, 6, 3)), PIXELS.tobytes()).replace(b"\x01\x00", b"\x09\x00", 1),
    "objects": npy(np.array([{}, None]), allow_pickle=True),
    "objects within": npy(np.array([(1, None)], dtype=[("a", "i4"), ("b", "O")]), allow_pickle=True),
    "empty": b"",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_arrays_that_are_not_what_they_say_are_refused(case, tmp_path):
    images = archive(tmp_path / "images.npz", arr_0=HOSTILE[case])
    moments = archive(tmp_path / "moments.npz", mu=npy(np.zeros(3)), sigma=HOSTILE[case])
    told = archive(tmp_path / "told.npz", arr_0=npy(PIXELS), provenance=HOSTILE[case])
    for read, path in (
        (open_generated, images),
        (describe_file, images),
        (read_reference, moments),
        (open_generated, told),
        (describe_file, told),
    ):
        with pytest.raises(InputError, match=path.name):
            read(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"",
        lambda whole: b"PK\x05\x06" + bytes(18),  # an archive of nothing
        lambda whole: whole.replace(b"\x08\x00", b"\x63\x00"),  # compressed by nobody knows which method
        lambda whole: whole[:60] + bytes(20) + whole[80:],
    ],
)
def test_damaged_archives_are_refused(damage, tmp_path):
    path = archive(tmp_path / "damaged.npz", arr_0=npy(PIXELS), mu=npy(np.zeros(3)), sigma=npy(np.eye(3)))
    path.write_bytes(damage(path.read_bytes()))
    for read in (lambda path: list(open_generated(path).read(0, 4, 2)), read_reference):
        with pytest.raises(InputError, match=r"damaged\.npz"):
            read(path)


def test_any_damage_of_an_archive_is_a_sentence_or_harmless(tmp_path):
    rng = random.Random(0)
    record = {"arr_0": npy(PIXELS), "mu": npy(np.zeros(3)), "sigma": npy(np.eye(3))}
    path = archive(tmp_path / "damaged.npz", **record, provenance=npy(np.array(json.dumps({"a": 1}))))
    whole = path.read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 8])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        for read in (lambda path: list(open_generated(path).read(0, 4, 2)), read_reference, describe_file):
            with suppress(InputError):
                read(path)


def test_encrypted_archives_are_refused(tmp_path):
    path = archive(tmp_path / "locked.npz", arr_0=npy(PIXELS), mu=npy(np.zeros(3)), sigma=npy(np.eye(3)))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(signature)
        while start >= 0:
            data[start + offset] |= 1
            start = data.find(signature, start + 1)
    path.write_bytes(data)
    for read in (open_generated, describe_file, read_reference):
        with pytest.raises(InputError, match="encrypted"):
            read(path)


def bomb(path, name, shape, dtype, **others):
    """An archive whose array of zeros unpacks to a thousand times its size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for other, content in others.items():
            file.writestr(f"{other}.npy", content)
        with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
            entry.write(member(header(shape, dtype)))
            left = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
            while left:
                left -= entry.write(bytes(min(left, 2**24)))
    return path


def peak(function, *arguments):
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as refused:
            function(*arguments)
        return tracemalloc.get_traced_memory()[1], str(refused.value)
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_bombs_fill_no_memory(tmp_path):
    mu = npy(np.zeros(20_000))
    covariance = bomb(tmp_path / "sigma.npz", "sigma", (12_000, 12_000), "<f8", mu=npy(np.zeros(12_000)))
    mean = bomb(tmp_path / "mu.npz", "mu", (2**27 + 1,), "<f8", sigma=mu)
    picture = bomb(tmp_path / "image.npz", "arr_0", (2, 10_000, 10_000, 3), "|u1")
    text = bomb(tmp_path / "told.npz", "provenance", (), f"<U{2**27}", arr_0=npy(PIXELS))
    for read, path in (
        (FeatureStatistics.load, covariance),
        (FeatureStatistics.load, mean),
        (open_generated, picture),
        (open_generated, text),
        (describe_file, text),
    ):
        assert path.stat().st_size < 2**21
        used, message = peak(read, path)
        assert used < 2**24, path.name
        assert path.name in message


def test_info_unpacks_no_elements(tmp_path):
    path = bomb(tmp_path / "wide.npz", "arr_0", (2**28,), "|u1")
    tracemalloc.start()
    details = describe_file(path).as_data()
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert details["arrays"] == {"arr_0": f"uint8 ({2**28},)"}
    assert used < 2**22


def test_images_column_by_column_are_told_how_to_be_saved(tmp_path):
    np.savez(tmp_path / "fortran.npz", np.asfortranarray(PIXELS))
    with pytest.raises(InputError, match=r"Fortran order.*ascontiguousarray"):
        open_generated(tmp_path / "fortran.npz")


def test_sound_archives_are_read_in_any_order_and_version(tmp_path):
    values = np.arange(6.0).reshape(2, 3)
    np.savez(tmp_path / "sound.npz", c=values, f=np.asfortranarray(values), text=np.array("a"))
    archive(tmp_path / "new.npz", c=member(header((2, 3), "<f8"), values.tobytes(), version=(3, 0)))
    for name in ("c", "f"):
        assert np.array_equal(read_array(tmp_path / "sound.npz", name, 100), values)
    assert np.array_equal(read_array(tmp_path / "new.npz", "c", 100), values)
    assert str(array_headers(tmp_path / "sound.npz")["f"]) == "float64 (2, 3), in Fortran order"
    assert read_npz_entry(tmp_path / "sound.npz") == {}


WRONG = {
    "labels of text": {"labels": ["0", "1", "2", "3"]},
    "labels beyond the classes": {"labels": [0, 1, 2, 9]},
    "negative labels": {"labels": [0, 1, 2, -1]},
    "labels missing": {"labels": [0]},
    "names of numbers": {"class_names": [1, 2, 3]},
    "sampling a list": {"sampling": []},
    "nfe a text": {"nfe": "many"},
    "hash a number": {"transformer": 12},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_record_of_the_wrong_shape_is_a_sentence(case, tmp_path):
    record = {
        **{"count": 4, "labels": [0, 1, 2, 0], "class_names": ["a", "b", "c"], "sampling": {"solver": "euler"}},
        **{"label_protocol": "balanced", "nfe": 3, "seed": 0, "uint8_rule": "r", "transformer": "t", "tokenizer": "u"},
    }
    sound = archive(tmp_path / "sound.npz", arr_0=npy(PIXELS), provenance=npy(np.array(json.dumps(record))))
    assert open_generated(sound).labels.tolist() == [0, 1, 2, 0]
    text = json.dumps(record | WRONG[case])
    path = archive(tmp_path / "wrong.npz", arr_0=npy(PIXELS), provenance=npy(np.array(text)))
    with pytest.raises(InputError, match=r"wrong\.npz"):
        open_generated(path)


@pytest.mark.parametrize(
    "facts",
    [
        {"spaces": ["../outside"]},
        {"spaces": ["/outside"]},
        {"spaces": "pixels"},
        {"spaces": [3]},
        {"size": [8]},
        {"size": 8},
        {"size": [0, 8]},
        {"description": None},
    ],
)
def test_a_reference_of_the_wrong_shape_is_a_sentence(facts, tmp_path):
    sound = {"spaces": [], "size": [8, 8], "description": "digits", "features": {}, "count": 3}
    write_manifest(tmp_path, "reference", {}, "hash", facts=sound | facts)
    with pytest.raises(InputError, match=r"alight\.json"):
        _open_folder(tmp_path)
