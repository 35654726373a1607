"""Removal of metadata from image files with intact pixels and damaged EXIF, XMP, ICC or text.

Only the orientation matters to the pixels. It is read here from the EXIF block entry by entry, so that other entries
do no harm.
"""

import re
import struct
from collections.abc import Iterator

UPRIGHT = 1  # of the eight EXIF orientations
_ORIENTATION_TAG = 0x0112
_SIZES = {1: "B", 3: "H", 4: "I"}  # types of whole numbers in TIFF and EXIF: BYTE, SHORT, LONG
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_EXIF_HEADER = b"Exif\0\0"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_KEPT = {0xE0, 0xEE}  # JFIF, and Adobe's marker, which defines the coding of colours
_JPEG_DROPPED = ({*range(0xE0, 0xF0)} - _JPEG_KEPT) | {0xFE}  # the other application segments, and comments
_AVIF_BRANDS = (b"ftypav", b"ftypmi")  # avif, avis, mif1
_WEBP_DROPPED = {b"ICCP", b"EXIF", b"XMP "}
_WEBP_FLAGS = 0x20 | 0x08 | 0x04  # in a VP8X chunk: there is a profile, EXIF, XMP


def without_metadata(content: bytes) -> tuple[bytes, int | None] | None:
    """An encoded JPEG, PNG, WebP or AVIF image reduced to what affects its pixels, and its EXIF orientation.

    Returns:
        The bytes and the orientation, 1 to 8, or None if the format has its own beside EXIF. None for other formats.
    """
    if content.startswith(b"\xff\xd8"):
        kept, dropped = _split(_jpeg_segments(content))
        return kept, _orientation(dropped)
    if content.startswith(_PNG_SIGNATURE):
        kept, dropped = _split(_png_chunks(content))
        return kept, _orientation(dropped)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        kept, dropped = _split(_webp_chunks(content))
        return b"RIFF" + struct.pack("<I", 4 + len(kept)) + b"WEBP" + kept, _orientation(dropped)
    if content[4:10] in _AVIF_BRANDS:
        return _with_empty_exif(content), None
    return None


def exif_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, in a block of EXIF; 1 if there is no readable one."""
    while exif.startswith(_EXIF_HEADER):  # some writers put it twice
        exif = exif.removeprefix(_EXIF_HEADER)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return UPRIGHT
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _ = struct.unpack_from(f"{order}HHI", exif, entry)
            if tag == _ORIENTATION_TAG and kind in _SIZES:
                (value,) = struct.unpack_from(f"{order}{_SIZES[kind]}", exif, entry + 8)
                return value if 1 <= value <= 8 else UPRIGHT
    except struct.error:  # truncated
        pass
    return UPRIGHT


def _orientation(dropped: list[bytes]) -> int:
    """The orientation from EXIF, else from XMP, as in decoders."""
    for content in dropped:
        if (value := exif_orientation(content)) != UPRIGHT:
            return value
    found = next(filter(None, map(_XMP_ORIENTATION.search, dropped)), None)
    return int(found[1]) if found else UPRIGHT


def _split(parts: Iterator[tuple[bytes, bytes | None]]) -> tuple[bytes, list[bytes]]:
    """The kept parts joined, and the contents of the dropped ones."""
    kept, dropped = bytearray(), []
    for part, metadata in parts:
        if metadata is None:
            kept += part
        else:
            dropped.append(metadata)
    return bytes(kept), dropped


def _jpeg_segments(content: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """Each segment, with its content if it is metadata; everything from the first scan on is one segment."""
    position = 2
    yield content[:2], None
    while content[position : position + 1] == b"\xff" and position + 4 <= len(content):
        marker = content[position + 1]
        if marker == 0xFF:  # filling
            position += 1
            continue
        if marker == 0xDA:
            break
        (length,) = struct.unpack_from(">H", content, position + 2)
        segment = content[position : position + 2 + length]
        yield segment, segment[4:] if marker in _JPEG_DROPPED else None
        position += 2 + length
    yield content[position:], None


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """Each chunk, with its content if it is ancillary (except transparency, which changes pixels)."""
    position = len(_PNG_SIGNATURE)
    yield content[:position], None
    while position + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        chunk = content[position : position + 12 + length]
        ancillary = bool(kind[0] & 0x20) and kind != b"tRNS"
        yield chunk, chunk[8:-4] if ancillary else None
        position += 12 + length
    yield content[position:], None


def _webp_chunks(content: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """Each chunk, with its content if it is metadata; its flags in the header are cleared."""
    position = 12
    while position + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, position)
        chunk = content[position : position + 8 + length + length % 2]
        if kind == b"VP8X" and length:
            chunk = chunk[:8] + bytes([chunk[8] & ~_WEBP_FLAGS]) + chunk[9:]
        yield chunk, chunk[8 : 8 + length] if kind in _WEBP_DROPPED else None
        position += len(chunk)


def _with_empty_exif(content: bytes) -> bytes:
    """Empty every block that looks like EXIF; lengths stay, since other boxes depend on them."""
    emptied = bytearray(content)
    for found in re.finditer(rb"II\*\0|MM\0\*", content):
        order = "<" if found[0].startswith(b"I") else ">"
        offset = content[found.end() : found.end() + 4]
        start = found.start() + (struct.unpack(f"{order}I", offset)[0] if len(offset) == 4 else len(content))
        if start + 2 <= len(content):
            emptied[start : start + 2] = b"\0\0"
    return bytes(emptied)
