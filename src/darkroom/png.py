"""A PNG reduced to what its pixels need, before Pillow reads it. Pure bytes; no Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from darkroom.errors import Invalid

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What decides the pixels, whether there is more than one picture, and which way up it is. All else is metadata.
NEEDED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"eXIf"}
MAX_CHUNKS = 200_000  # a picture written in pieces of 8 kB has 2,500 in 20 MB; each costs some microseconds here
MAX_PROFILE = 4 * 2**20  # bytes of an ICC profile once unpacked; a printer's has about 2 MB
GREY, RGB = 0, 2  # colour types


def essentials(content: bytes) -> tuple[bytes, bytes]:
    """A PNG without its metadata and without what follows its end, and its ICC profile (b"" if there is none that can be read).

    Text, however large, plays no part in the pixels; a decoder would unpack it all the same, or refuse the picture
    for its size. Raises Invalid if the last chunk is missing.
    """
    parts, header, profile = [SIGNATURE], b"", None
    for kind, data, whole in _chunks(content):
        if kind == b"IHDR":
            header = data
        elif kind == b"iCCP" and profile is None:  # a PNG has one; each that is unpacked takes milliseconds
            profile = _profile(data)
        if kind == b"tRNS":
            whole = _chunk(kind, _transparency(data, header))
        if kind in NEEDED:
            parts.append(whole)
    return b"".join(parts), profile or b""


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Kind, data and all bytes of each chunk, up to the last one."""
    view, start = memoryview(content), len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if start + 12 > len(content):
            break
        (length,) = struct.unpack_from(">I", content, start)
        end = start + 12 + length
        if end > len(content):
            break
        kind = content[start + 4 : start + 8]
        yield kind, view[start + 8 : end - 4], view[start:end]  # type: ignore[misc]
        if kind == b"IEND":
            return
        start = end
    else:
        raise Invalid(f"image must be a PNG with at most {MAX_CHUNKS} chunks, got more", name="invalid_image")
    raise Invalid("image must be a whole PNG picture, but its end is missing", name="invalid_image")


def _profile(data: bytes) -> bytes:
    """What an iCCP chunk holds: a name, NUL, the method of compression, and the profile."""
    packed = bytes(data).partition(b"\0")[2][1:]
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed, MAX_PROFILE)
    except zlib.error:
        return b""
    return profile if unpacker.eof else b""


def _transparency(data: bytes, header: bytes) -> bytes:
    """A tRNS chunk's data in levels that Pillow compares with: it widens pixels of 2 and 4 bits to 8 and narrows RGB of 16 bits to
    8, but leaves the transparent level as it stands in the file."""
    if len(header) < 10:
        return bytes(data)
    bits, colour = header[8], header[9]
    if colour == GREY and bits in (2, 4) and len(data) == 2:
        return struct.pack(">H", struct.unpack(">H", data)[0] * 255 // (2**bits - 1) & 0xFFFF)
    if colour == RGB and bits == 16 and len(data) == 6:
        return struct.pack(">3H", *(level >> 8 for level in struct.unpack(">3H", data)))
    return bytes(data)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
