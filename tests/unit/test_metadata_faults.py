"""Metadata of every odd kind, beside pixels that are sound: no image is lost, and each is turned upright."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from alight.data.decode import decode_image
from alight.data.image_folder import ImageFolder
from alight.data.metadata import exif_orientation

UPRIGHT = (np.indices((24, 32)).sum(0)[..., None] * 4 + np.array([0, 10, 20])).astype(np.uint8)
STORED = np.ascontiguousarray(np.rot90(UPRIGHT))  # as a camera stores it under orientation 6
TAGS = (0x010F, 0x0132, 0x011A, 0x0501, 0x8769, 0x8825, 0x9286, 0x9C9B, 0xA005)  # maker, dates, folders, comments


def exif_block(order, entries):
    """EXIF with entries of (tag, type, count, four bytes), in either byte order."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    body = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", len(entries)) + body + bytes(4)


def odd_entries(generator, order):
    """Types, counts and offsets that no reader expects."""

    def number(small, large):
        return int(generator.integers(small) if generator.random() < 0.7 else generator.integers(large))

    return [
        (
            int(generator.choice([*TAGS, number(65536, 65536)])),
            number(14, 65536),
            number(200, 2**32),
            struct.pack(f"{order}I", number(200, 2**32)),
        )
        for _ in range(generator.integers(1, 6))
    ]


def encoded(kind, **options):
    file = io.BytesIO()
    Image.fromarray(STORED).save(file, format=kind, **options)
    return file.getvalue()


def assert_upright(content):
    pixels = decode_image(io.BytesIO(content))
    assert pixels.shape == UPRIGHT.shape
    assert np.abs(pixels.astype(int) - UPRIGHT).mean() < 6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_odd_exif_costs_no_image_and_no_orientation(kind):
    generator = np.random.default_rng(0)
    for number in range(200):
        order = "<>"[number % 2]
        entries = odd_entries(generator, order)
        entries = [entry for entry in entries if entry[0] != 0x0112]
        entries.insert(number % (1 + len(entries)), (0x0112, 3, 1, struct.pack(f"{order}HH", 6, 0)))
        assert_upright(encoded(kind, exif=exif_block(order, entries)))


@pytest.mark.filterwarnings("ignore")
def test_odd_tags_of_a_tiff_cost_no_image_and_no_orientation():
    generator = np.random.default_rng(0)
    content = encoded("tiff", tiffinfo={0x0112: 6})
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    layout = content[start + 2 : start + 2 + 12 * count]
    for _ in range(200):
        odd = [entry for entry in odd_entries(generator, "<") if not 0x0100 <= entry[0] < 0x0153 or entry[0] in TAGS]
        tags = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in odd)
        table = struct.pack("<H", count + len(odd)) + layout + tags + bytes(4)
        assert_upright(content[:4] + struct.pack("<I", len(content)) + content[8:] + table)


@pytest.mark.filterwarnings("ignore")
def test_an_avif_with_odd_exif_opens():
    generator = np.random.default_rng(1)
    entries = [(0x0112, 3, 1, struct.pack(">HH", 6, 0)), (0x010F, 2, 4, b"make")]
    content = encoded("avif", exif=exif_block(">", entries))
    start = content.index(b"MM\0*")
    for _ in range(100):
        damaged = bytearray(content)
        damaged[start + 8 : start + 22] = generator.bytes(14)  # the first entry, which is all that is left of them
        assert_upright(bytes(damaged))


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(png, new, before=b"IDAT"):
    position = png.index(before) - 4
    return png[:position] + new + png[position:]


EXIF_CHUNK = chunk(b"eXIf", exif_block(">", [(0x0112, 3, 1, struct.pack(">HH", 6, 0))])[6:])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(
    "odd",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 << 20))),
        chunk(b"iCCP", b"profile\0\0no profile"),
        chunk(b"zTXt", b"Comment\0\7unknown compression"),
        chunk(b"tEXt", b"Comment\0sound")[:-1] + b"?",  # its checksum is wrong
        chunk(b"pHYs", b"\0"),
        chunk(b"gAMA", b""),
        chunk(b"cHRM", b"\1\2\3"),
        chunk(b"iTXt", b"cut off"),
    ],
    ids=["long text", "long xmp", "long profile", "profile", "compression", "checksum", "pHYs", "gAMA", "cHRM", "cut"],
)
def test_odd_chunks_of_a_png_cost_no_image(odd, place):
    assert_upright(with_chunk(with_chunk(encoded("png"), EXIF_CHUNK), odd, place))


def test_text_beyond_every_limit_costs_no_image(tmp_path):
    text = PngImagePlugin.PngInfo()
    for number in range(80):
        text.add_text(f"workflow {number}", "x" * (1 << 20), zip=True)
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png", pnginfo=text)
    assert (ImageFolder(tmp_path).load(0) == UPRIGHT).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["jpeg", "webp", "png", "tiff"])
def test_a_broken_colour_profile_costs_no_image(kind):
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[20:80] = b"\xff" * 60
    file = io.BytesIO()
    Image.fromarray(UPRIGHT).save(file, format=kind, icc_profile=bytes(profile))
    assert decode_image(file).shape == UPRIGHT.shape


def test_damaged_pixels_are_still_an_error():
    content = bytearray(encoded("png"))
    position = content.index(b"IDAT") + 30
    content[position : position + 40] = bytes(40)
    with pytest.raises((OSError, SyntaxError)):
        decode_image(io.BytesIO(content))
    with pytest.raises(OSError, match="(?i)truncated"):
        decode_image(io.BytesIO(encoded("jpeg")[:-300]))


@pytest.mark.parametrize(
    ("entry", "orientation"),
    [
        ((0x0112, 3, 1, b"\6\0\0\0"), 6),
        ((0x0112, 1, 1, b"\6\0\0\0"), 6),
        ((0x0112, 4, 1, b"\6\0\0\0"), 6),
        ((0x0112, 3, 1, b"\0\0\0\0"), 1),
        ((0x0112, 3, 1, b"\x09\0\0\0"), 1),
        ((0x0112, 12, 1, b"\6\0\0\0"), 1),
        ((0x0113, 3, 1, b"\6\0\0\0"), 1),
    ],
)
def test_orientation_by_hand(entry, orientation):
    block = exif_block("<", [entry])
    assert exif_orientation(block) == exif_orientation(block[6:]) == exif_orientation(b"Exif\0\0" + block)
    assert exif_orientation(block) == orientation
    for length in range(20):
        assert exif_orientation(block[:length]) == 1
