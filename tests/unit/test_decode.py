"""Every way in which an image file can be stored, written with Pillow and read back."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from alight.data.decode import decode_image, to_rgb

RED, BLUE = (255, 0, 0), (0, 0, 255)


def two_pixels(mode, left, right):
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), left)
    image.putpixel((1, 0), right)
    return image


def saved(image, path, **options):
    image.save(path, **options)
    return decode_image(path)


@pytest.mark.parametrize(
    ("image", "left", "right"),
    [
        (two_pixels("1", 0, 255), (0, 0, 0), (255, 255, 255)),
        (two_pixels("L", 7, 200), (7, 7, 7), (200, 200, 200)),
        (two_pixels("RGB", RED, BLUE), RED, BLUE),
        (two_pixels("RGBA", (*RED, 255), (*BLUE, 0)), RED, (255, 255, 255)),  # transparent shows white, not blue
        (two_pixels("LA", (50, 255), (0, 0)), (50, 50, 50), (255, 255, 255)),
        (two_pixels("I;16", 0, 65535), (0, 0, 0), (255, 255, 255)),
        (two_pixels("I;16", 257, 32896), (1, 1, 1), (128, 128, 128)),  # 257 k is exactly level k
    ],
    ids=["1", "L", "RGB", "RGBA", "LA", "I;16", "I;16 scaled"],
)
def test_png_modes(tmp_path, image, left, right):
    pixels = saved(image, tmp_path / "a.png")
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.tolist() == [[list(left), list(right)]]


def test_half_transparent_colour_is_mixed_with_white(tmp_path):
    pixels = saved(Image.new("RGBA", (1, 1), (255, 0, 0, 51)), tmp_path / "a.png")  # 51/255 = one fifth red
    assert pixels[0, 0].tolist() == [255, 204, 204]


def test_palette_with_and_without_transparency(tmp_path):
    palette = two_pixels("P", 0, 1)
    palette.putpalette([*RED, *BLUE])
    assert saved(palette, tmp_path / "opaque.png").tolist() == [[list(RED), list(BLUE)]]
    assert saved(palette, tmp_path / "clear.png", transparency=1).tolist() == [[list(RED), [255, 255, 255]]]
    half_clear = saved(palette, tmp_path / "half.png", transparency=bytes([255, 51]))
    assert half_clear.tolist() == [[list(RED), [204, 204, 255]]]


def test_transparent_colour_of_rgb_png(tmp_path):
    image = two_pixels("RGB", RED, BLUE)
    assert saved(image, tmp_path / "a.png", transparency=BLUE).tolist() == [[list(RED), [255, 255, 255]]]


def test_cmyk_jpeg_has_natural_colours(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # magenta and yellow ink give red
    pixels = saved(image, tmp_path / "a.jpg", quality=100)
    assert Image.open(tmp_path / "a.jpg").mode == "CMYK"
    assert np.abs(pixels.astype(int) - RED).max() <= 3  # JPEG at quality 100 is off by a level or two


def test_lab_tiff_through_its_colour_profile(tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    colours = Image.new("RGB", (1, 1), (200, 100, 50))
    image = ImageCms.applyTransform(colours, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    pixels = saved(image, tmp_path / "a.tif")
    assert np.abs(pixels[0, 0].astype(int) - (200, 100, 50)).max() <= 3  # LAB keeps 8 bits per axis


def test_pgm_with_16_bits_is_scaled(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([257, 65535], dtype=">u2").tobytes())
    assert Image.open(tmp_path / "a.pgm").mode == "I"
    assert decode_image(tmp_path / "a.pgm")[0, :, 0].tolist() == [1, 255]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_16_bit_modes_of_either_byte_order(mode):
    assert to_rgb(two_pixels(mode, 514, 65535))[0, :, 2].tolist() == [2, 255]


@pytest.mark.parametrize(("values", "levels"), [([0.0, 0.2, 1.0], [0, 51, 255]), ([0.0, 51.0, 255.0], [0, 51, 255])])
def test_floating_point_tiff(tmp_path, values, levels):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert saved(image, tmp_path / "a.tif")[0, :, 1].tolist() == levels


@pytest.mark.parametrize("values", [[-1.0, 1.0], [0.0, 4000.0], [0.0, np.nan], [0.0, np.inf]])
def test_grey_without_a_known_white_is_refused(values):
    with pytest.raises(ValueError, match="grey values"):
        to_rgb(Image.fromarray(np.array([values], dtype=np.float32)))
    with pytest.raises(ValueError, match="grey values"):
        to_rgb(Image.fromarray(np.array([[0, 1 << 20]], dtype=np.int32)))


@pytest.mark.parametrize(
    ("mode", "stored", "shown"),
    [
        ("YCbCr", (76, 85, 255), RED),  # JPEG's full-range matrix: 0.299 * 255 = 76
        ("HSV", (170, 255, 255), BLUE),  # two thirds of the circle
        ("La", (51, 51), (255, 255, 255)),  # premultiplied: one fifth of white over white
        ("RGBa", (51, 0, 0, 51), (255, 204, 204)),  # one fifth of red over white
        ("RGBX", (*BLUE, 7), BLUE),
        ("CMYK", (0, 255, 255, 0), RED),
    ],
)
def test_rarer_modes_give_rgb(mode, stored, shown):
    pixels = to_rgb(Image.new(mode, (3, 2), stored))
    assert pixels.shape == (2, 3, 3)
    assert np.abs(pixels.astype(int) - shown).max() <= 2  # each conversion rounds


def test_palette_with_an_alpha_channel():
    image = two_pixels("P", 0, 1)
    image.putpalette([*RED, *BLUE])
    image = image.convert("PA")
    image.putalpha(two_pixels("L", 255, 51))
    assert image.mode == "PA"
    assert to_rgb(image).tolist() == [[list(RED), [204, 204, 255]]]


def test_bytes_are_read_like_a_file(tmp_path):
    Image.fromarray(upright()).save(tmp_path / "a.png")
    assert (decode_image(io.BytesIO((tmp_path / "a.png").read_bytes())) == upright()).all()


def upright():
    """32x64 with a corner of each colour, in blocks that survive JPEG."""
    image = np.zeros((32, 64, 3), dtype=np.uint8)
    image[:16, :32], image[:16, 32:], image[16:, :32] = RED, BLUE, (0, 255, 0)
    return image


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [  # how a camera stores the upright image under each EXIF orientation, as array operations
        (1, lambda image: image),
        (2, lambda image: image[:, ::-1]),
        (3, lambda image: np.rot90(image, 2)),
        (4, lambda image: image[::-1]),
        (5, lambda image: image.transpose(1, 0, 2)),
        (6, lambda image: np.rot90(image, 1)),
        (7, lambda image: np.rot90(image, 2).transpose(1, 0, 2)),
        (8, lambda image: np.rot90(image, -1)),
    ],
)
@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_exif_orientation_is_undone(tmp_path, orientation, stored, extension):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored(upright())))
    pixels = saved(image, tmp_path / f"a.{extension}", exif=exif, quality=95)
    assert pixels.shape == upright().shape
    assert np.abs(pixels.astype(int) - upright()).mean() < 4  # lossy at the edges; a wrong rotation differs by > 80


@pytest.mark.parametrize(
    ("extension", "options"), [("gif", {}), ("png", {}), ("webp", {"lossless": True}), ("tif", {})]
)
def test_first_frame_of_an_animation(tmp_path, extension, options):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / f"a.{extension}", save_all=True, append_images=frames[1:], **options)
    assert Image.open(tmp_path / f"a.{extension}").n_frames == 2
    assert (decode_image(tmp_path / f"a.{extension}") == RED).all()


def test_truncated_jpeg_is_an_error_not_a_grey_half(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="truncated"):
        decode_image(tmp_path / "a.jpg")
