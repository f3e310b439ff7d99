"""Uploads as cameras, phones and editors write them: what must not change the pixels, and what decides their colours."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from darkroom.errors import Invalid
from darkroom.picture import converted, from_upload, to_png
from darkroom.png import MAX_CHUNKS
from darkroom.types import ModelCard, Params
from tests.profiles import ADOBE_RGB, DISPLAY_P3, grey_profile, rgb_profile

CARD = ModelCard("any", "sdxl", None, max_side=1024)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decoded(content: bytes) -> np.ndarray:
    pixels, width, height = from_upload(content, CARD, 10**6, 2**20)
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def shades() -> Image.Image:
    """Every colour at steps of 17, two pixels each way: 128 x 128 of them."""
    levels = np.arange(0, 256, 17)
    red, green, blue = np.meshgrid(levels, levels, levels, indexing="ij")
    cube = np.stack([red, green, blue], -1).reshape(64, 64, 3).astype(np.uint8)
    return Image.fromarray(cube.repeat(2, 0).repeat(2, 1))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows: bytes, bits: int, colour: int, *chunks: bytes, side: int = 128) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0))
    return SIGNATURE + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_chunk(content: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk right behind its header."""
    return content[:33] + chunk(kind, data) + content[33:]


LARGE = b"x" * 3_000_000


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"tEXt", b"workflow\0" + LARGE),
        (b"zTXt", b"workflow\0\0" + zlib.compress(LARGE)),
        (b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LARGE)),
        (b"iTXt", b"workflow\0\1\0\0\0" + b"not packed at all"),
        (b"iCCP", b"name\0\0" + zlib.compress(bytes(6_000_000))),
        (b"iCCP", b"name\0\0" + b"not packed at all"),
        (b"iCCP", b""),
        (b"eXIf", b"this is no TIFF"),
        (b"eXIf", b""),
        (b"pHYs", b"1"),
        (b"gAMA", b""),
        (b"aaAa", LARGE),
    ],
)
def test_metadata_of_any_size_and_kind_leaves_the_pixels_of_a_png_alone(kind: bytes, data: bytes) -> None:
    plain = saved(shades())
    assert np.array_equal(decoded(with_chunk(plain, kind, data)), np.asarray(shades()))


def test_of_many_profiles_one_is_unpacked() -> None:
    """Each takes some milliseconds, and thousands fit."""
    plain, profile = saved(shades()), chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(4_000_000)))
    began = time.monotonic()
    assert np.array_equal(decoded(plain[:33] + profile * 2000 + plain[33:]), np.asarray(shades()))
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("tail", [b"\x5a" * 70_000, b"\0" * 2_000_000, saved(shades())])
def test_bytes_behind_the_end_of_a_png_are_left_unread(tail: bytes) -> None:
    assert np.array_equal(decoded(saved(shades()) + tail), np.asarray(shades()))


def test_a_png_without_its_last_chunk_is_refused_whatever_stands_behind_it() -> None:
    whole = saved(shades())
    for broken in (whole[:-12], whole[:-1], whole[:-12] + b"IEND" * 100):
        with pytest.raises(Invalid, match="its end is missing"):
            decoded(broken)


def test_a_png_in_more_pieces_than_anybody_writes_is_refused() -> None:
    whole = saved(shades())
    with pytest.raises(Invalid, match=f"at most {MAX_CHUNKS} chunks"):
        decoded(whole[:33] + chunk(b"aaAa", b"") * (MAX_CHUNKS + 1) + whole[33:])


@pytest.mark.parametrize("primaries", [DISPLAY_P3, ADOBE_RGB])
@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("WEBP", "RGBA")]
)
def test_colours_are_those_that_the_profile_says(kind: str, mode: str, primaries: list[tuple[float, float]]) -> None:
    profile = rgb_profile(primaries)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    content = saved(shades().convert(mode), kind, icc_profile=profile, **options)
    with Image.open(io.BytesIO(content)) as stored:
        shown = ImageCms.profileToProfile(
            stored.convert("RGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        assert np.abs(np.asarray(shown).astype(int) - np.asarray(stored.convert("RGB"))).max() > 20
    assert np.abs(decoded(content).astype(int) - np.asarray(shown)).max() <= 1


def test_alpha_is_no_colour() -> None:
    half = shades()
    half.putalpha(0)
    assert (decoded(saved(half, icc_profile=rgb_profile(DISPLAY_P3))) == 255).all()


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_grey_pixels_follow_a_profile_of_grey(mode: str) -> None:
    grey = Image.new("L", (128, 128), 255 if mode == "1" else 100)
    image = Image.fromarray(np.full((128, 128), 100 * 257, np.uint16)) if mode == "I;16" else grey.convert(mode)
    wanted = 255 if mode == "1" else round(255 * _srgb((100 / 255) ** 1.0))
    out = decoded(saved(image, icc_profile=grey_profile(1.0)))
    assert np.abs(out.astype(int) - wanted).max() <= 2


def _srgb(linear: float) -> float:
    """IEC 61966-2-1's transfer function."""
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


@pytest.mark.parametrize("profile", [b"junk", b"\0" * 2_000_000, grey_profile(1.0), rgb_profile(DISPLAY_P3)[:200]])
def test_a_profile_that_cannot_be_read_or_does_not_fit_counts_as_srgb(profile: bytes) -> None:
    assert np.array_equal(decoded(saved(shades(), icc_profile=profile)), np.asarray(shades()))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_profile_of_srgb_changes_nothing_that_shows(kind: str) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options = {"quality": 95} if kind == "JPEG" else {}
    plain, tagged = (saved(shades(), kind, **options, **extra) for extra in ({}, {"icc_profile": srgb}))
    assert np.abs(decoded(plain).astype(int) - decoded(tagged)).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_one_transparent_level_of_grey_is_white_at_every_depth(bits: int) -> None:
    most = 2**bits - 1
    clear, other = (0, most) if bits == 1 else (most // 3, most // 5 if bits > 2 else 0)
    levels = np.full((128, 128), other)
    levels[32:96, 32:96] = clear
    rows = b"".join(b"\0" + _row(row, bits) for row in levels)
    out = decoded(png(rows, bits, 0, chunk(b"tRNS", struct.pack(">H", clear))))
    assert (out[32:96, 32:96] == 255).all()
    assert np.abs(out[:32].astype(int) - round(other * 255 / most)).max() <= 1


def _row(levels: np.ndarray, bits: int) -> bytes:
    if bits == 16:
        return levels.astype(">u2").tobytes()
    return np.packbits(np.unpackbits(levels.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes()


def test_one_transparent_colour_of_16_bits_is_white() -> None:
    levels = np.full((128, 128, 3), 0x2010)
    levels[32:96, 32:96] = 0x1234
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    out = decoded(png(rows, 16, 2, chunk(b"tRNS", struct.pack(">3H", *[0x1234] * 3))))
    assert (out[32:96, 32:96] == 255).all()
    assert (out[:32] == 0x20).all()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_turn_of_exif_is_undone(kind: str, turn: int) -> None:
    half = Image.new("RGB", (192, 128), "black")
    half.paste((255, 255, 255), (0, 0, 96, 64))  # the upper left quarter as it is to be seen
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose values that undo each turn
    stored = half.transpose(Image.Transpose(back[turn])) if turn in back else half
    exif = Image.Exif()
    exif[0x0112] = turn
    out = decoded(saved(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})))
    assert out.shape == (128, 192, 3)
    assert np.abs(out.astype(int) - np.asarray(half)).mean() < 1


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("text", ["\N{RED APPLE}", "a", "\N{SNOWMAN}"])
def test_prompts_of_any_length_and_script_go_into_a_jpeg_and_the_settings_stay_whole(kind: str, text: str) -> None:
    params = Params("demo-xl", text * 10_000, text * 10_000, 20, 128, 128, 6.5, 9)
    out = converted(to_png(bytes(128 * 128 * 3), params, 20), kind, 90)
    with Image.open(io.BytesIO(out)) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    said = comment.removeprefix(b"UNICODE\0").decode("utf-16-be")
    assert said.startswith(text * 9_000)
    assert said.rpartition("\n")[2].startswith("Steps: 20, CFG scale: 6.5, Seed: 9, Size: 128x128, Model: demo-xl")


def test_a_text_that_fits_is_not_cut() -> None:
    params = Params("demo-xl", "a cat", "a dog", 20, 128, 128, 6.5, 9)
    with Image.open(io.BytesIO(converted(to_png(bytes(128 * 128 * 3), params, 20), "JPEG", 90))) as image:
        said = image.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"UNICODE\0").decode("utf-16-be")
    assert said.startswith("a cat\nNegative prompt: a dog\nSteps: 20")
    assert PngImagePlugin.MAX_TEXT_CHUNK == 2**20  # Pillow's own bounds are not widened for it
