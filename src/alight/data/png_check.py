"""Integrity check of PNG files by the checksum of every chunk; Pillow does not verify those of pixels."""

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"IEND"


def is_intact_png(content: bytes) -> bool:
    """Tell if the file consists of its signature, chunks with correct CRC-32, and the end chunk.

    Any change of up to 32 neighbouring bits is detected, and of others all but one in four billion.
    """
    if not content.startswith(_SIGNATURE):
        return False
    position = len(_SIGNATURE)
    while position + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if end > len(content):
            return False
        (checksum,) = struct.unpack_from(">I", content, end - 4)
        if zlib.crc32(memoryview(content)[position + 4 : end - 4]) != checksum:
            return False
        if kind == _END:
            return end == len(content)
        position = end
    return False
