"""JPEGs that ask for more than anybody writes, and those that people have."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image, ImageCms

from darkroom.errors import Invalid
from darkroom.jpeg import MAX_SCANS, check_cost
from darkroom.picture import from_upload
from darkroom.types import ModelCard

CARD = ModelCard("any", "sdxl", None, max_side=1024)
REST = struct.pack(">H", 2)


def photo(**options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (160, 128, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG", **options)
    return out.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return bytes([255, marker]) + struct.pack(">H", len(content) + 2) + content


def many_scans(scans: int, side: int = 128) -> bytes:
    """A progressive JPEG whose coefficients are refined in so many scans, by Huffman tables of one code each."""
    frame = struct.pack(">BHHB", 8, side, side, 3) + b"".join(bytes([i + 1, 0x11, 0]) for i in range(3))
    head = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC2, frame)
    tables = segment(0xC4, bytes([0, 1] + [0] * 15 + [0])) + segment(0xC4, bytes([0x10, 1] + [0] * 15 + [0xE0]))
    blocks = ((side + 7) // 8) ** 2
    first = segment(0xDA, b"\3\1\0\2\0\3\0\0\0\0") + bytes(blocks * 3 // 8 + 1)
    bits = ("0" + "1" * 14) * (blocks // 32767 + 1)
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    refined = (segment(0xDA, bytes([1, i % 3 + 1, 0, 1, 63, 0x10])) + data for i in range(scans - 1))
    return head + tables + first + b"".join(refined) + b"\xff\xd9"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"progressive": True, "quality": 90, "subsampling": 0}])
def test_what_encoders_write_is_taken(options: dict[str, object]) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "\xff\xda" * 5_000  # a text that looks like ten thousand scans
    content = photo(**options, icc_profile=profile, exif=exif.tobytes(), comment=b"\xff\xda\xff\xc9" * 5_000)
    check_cost(content)
    assert from_upload(content, CARD, 10**6, 2**20)[1:] == (128, 192)


@pytest.mark.parametrize("content", [photo() + photo(progressive=True) * 40, photo() + b"\xff" * 5_000_000, photo()[:-2]])
def test_what_stands_behind_the_end_or_lacks_it_plays_no_part(content: bytes) -> None:
    check_cost(content)


@pytest.mark.parametrize("side", [128, 6300])
def test_more_scans_than_anybody_writes_are_refused_before_they_are_decoded(side: int) -> None:
    assert from_upload(many_scans(MAX_SCANS), CARD, 10**6, 2**20)[1:] == (128, 128)
    began = time.monotonic()
    with pytest.raises(Invalid, match=f"at most {MAX_SCANS} scans"):
        from_upload(many_scans(1500, side), CARD, 40_000_000, 2**20)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (photo()[:2] + b"\xff" * 20_000_000 + photo()[2:], "bytes of fill"),
        (photo()[:-2] + b"\xff" * 20_000_000 + photo()[-2:], "bytes of fill"),
        (photo()[:2] + segment(0xF0, b"\xff" * 65_533) * 300 + photo()[2:], "bytes of fill"),
        (photo()[:2] + segment(0xC8, b"\0" * 65_533) * 300 + photo()[2:], "bytes between two segments"),
        (photo()[:2] + (segment(0xEF, b"") + b"\0" * 1000) * 9_000 + photo()[2:], "bytes between its segments"),
        (photo()[:20] + b"\0" * 20_000_000 + photo()[20:], "bytes between two segments"),
        (photo()[:2] + segment(0xEF, b"") * 5_000_000 + photo()[2:], "segments"),
        (b"\xff\xd8\xff\xd9" + many_scans(200), "scans"),
        (b"\xff\xd8" * 200 + many_scans(200), "scans"),
        (photo().replace(b"\xff\xc0", b"\xff\xc9", 1), "arithmetic"),
        (many_scans(5).replace(b"\xff\xc2", b"\xff\xca", 1), "arithmetic"),
    ],
    ids=[
        "fill",
        "fill in a scan",
        "fill in a reserved segment",
        "zeros in a reserved segment",
        "zeros in pieces",
        "zeros",
        "segments",
        "an end before the picture",
        "many beginnings",
        "arithmetic",
        "progressive arithmetic",
    ],
)
def test_what_would_only_take_long_is_refused_at_once(content: bytes, line: str) -> None:
    began = time.monotonic()
    with pytest.raises(Invalid, match=line):
        from_upload(content, CARD, 40_000_000, 2**20)
    assert time.monotonic() - began < 2
