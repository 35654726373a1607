"""Images with more than 8 bits per channel: shown by the white of their file, or named where nobody knows it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from alight.data.decode import decode_image, decode_with_facts
from alight.data.image_folder import ImageFolder


def grey(largest, path, shape=(6, 5)):
    values = np.linspace(0, largest, shape[0] * shape[1]).reshape(shape).astype(np.uint16)
    Image.fromarray(values).save(path)


def write_rgb16(path, values):
    """A PNG of (H, W, 3) uint16, which Pillow reads and does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_fewer_bits_in_16_are_named_with_the_largest_value(tmp_path, caplog, extension, bits):
    for number in range(3):
        grey((1 << bits) - 1 - number, tmp_path / f"{number}.{extension}")
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        source = ImageFolder(tmp_path)
        assert f"3 of 3 images with 16 bits in {tmp_path} have no value above {(1 << bits) - 1:,}" in caplog.text
        assert f"held {bits} bits (the brightest is 0.{extension}, with {(1 << bits) - 1:,})" in caplog.text
    assert source.load(0).max() == round(((1 << bits) - 1) / 257)  # the scale is that of the file format


def test_a_few_dim_images_among_others_are_named(tmp_path, caplog):
    grey(65535, tmp_path / "a.png")
    grey(4095, tmp_path / "b.png")
    Image.new("L", (5, 6)).save(tmp_path / "c.png")
    ImageFolder(tmp_path)
    assert "1 of 2 images with 16 bits" in caplog.text
    assert "b.png" in caplog.text


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_colours_of_fewer_bits_are_named(tmp_path, caplog, bits):
    values = np.full((4, 4, 3), (1 << bits) - 1, dtype=np.uint16)
    write_rgb16(tmp_path / "a.png", values)
    ImageFolder(tmp_path)
    assert f"held {bits} bits (the brightest is a.png" in caplog.text


def test_what_is_bright_black_or_of_8_bits_is_not_named(tmp_path, caplog):
    grey(65535, tmp_path / "a.png")
    grey(16384, tmp_path / "b.png")
    grey(0, tmp_path / "black.png")
    write_rgb16(tmp_path / "c.png", np.full((4, 4, 3), 40000, dtype=np.uint16))
    Image.new("RGB", (5, 6), (3, 3, 3)).save(tmp_path / "d.png")
    Image.fromarray(np.full((4, 4), 0.1, dtype=np.float32)).save(tmp_path / "e.tif")
    (tmp_path / "f.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([0, 4095], dtype=">u2").tobytes())
    source = ImageFolder(tmp_path)
    assert not caplog.records
    assert source.load([source.name(n) for n in range(len(source))].index("f.pgm"))[0, :, 0].tolist() == [0, 255]


def test_a_tiff_that_says_it_has_12_bits_is_scaled_by_them(tmp_path, caplog):
    values = np.array([0, 2048, 4095, 1024])
    packed = b"".join(
        bytes([left >> 4, (left & 15) << 4 | right >> 8, right & 255])
        for left, right in values.reshape(-1, 2).tolist()
    )
    tags = [(256, 3, 4), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1), (278, 3, 1)]
    tags.append((279, 4, len(packed)))
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + table + bytes(4)
    content = head.ljust(200, b"\0") + packed
    assert decode_image(io.BytesIO(content))[0, :, 0].tolist() == [0, 128, 255, 64]
    assert decode_with_facts(io.BytesIO(content)).peak == 0
    (tmp_path / "a.tif").write_bytes(content)
    ImageFolder(tmp_path)
    assert not caplog.records
