"""PNGs with their parameters, and uploads, against bytes that nobody would think of."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from darkroom.errors import Invalid, TooLarge, UnsupportedMedia
from darkroom.picture import from_upload, output_size, to_png
from darkroom.types import Lora, ModelCard, Params

CARD = ModelCard("any", "sdxl", None, max_side=1024)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60)


def upload(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=50)
@given(TEXT, TEXT | st.just(""))
def test_any_prompt_comes_back_from_the_png(prompt: str, negative: str) -> None:
    params = Params("demo-xl", prompt, negative, 20, 128, 192, 6.5, 9)
    pixels = noise(128, 192)
    image = Image.open(io.BytesIO(to_png(pixels.tobytes(), params, 20)))
    assert np.array_equal(np.asarray(image), np.asarray(pixels))
    ours = json.loads(image.text["darkroom"])
    assert (ours["prompt"], ours["negative_prompt"], ours["seed"], ours["cfg_scale"]) == (prompt, negative, 9, 6.5)
    assert image.text["parameters"].startswith(prompt)
    assert "Steps: 20, CFG scale: 6.5, Seed: 9, Size: 128x192, Model: demo-xl" in image.text["parameters"]


def test_the_strength_is_told_in_both_senses_and_the_prompt_may_stay_out() -> None:
    params = Params("demo-xl", "secret words", "hidden words", 30, 128, 128, 7, 9, noise(128, 128).tobytes(), Decimal("0.35"))
    png = to_png(params.image or b"", params, 19, with_prompt=False)
    text = Image.open(io.BytesIO(png)).text
    assert "words" not in str(text)
    assert json.loads(text["darkroom"])["control_strength"] == 0.35
    assert json.loads(text["darkroom"])["strength"] == 0.65
    assert "Denoising strength: 0.65" in text["parameters"]


@settings(max_examples=200)
@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x00\x01\x00\x00WEBP", b"GIF89a", b""]), st.binary(max_size=200))
@example(b"\xff\xd8\xff", b"\xc9")
@example(b"\xff\xd8\xff", b"\xff" * 2000)
def test_any_bytes_are_refused_with_a_reason(signature: bytes, rest: bytes) -> None:
    with pytest.raises((Invalid, UnsupportedMedia)) as caught:
        from_upload(signature + rest, CARD, 10**6, 2**20)
    assert caught.value.lines[0].startswith("image must be")


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.data())
def test_a_damaged_picture_is_read_or_refused_never_a_fault(kind: str, data: st.DataObject) -> None:
    whole = bytearray(upload(noise(130, 140), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(Invalid, TooLarge, UnsupportedMedia):
        pixels, width, height = from_upload(bytes(whole[: data.draw(st.integers(1, len(whole)))]), CARD, 10**6, 2**20)
        assert len(pixels) == width * height * 3


def test_pixels_are_counted_before_they_are_decoded() -> None:
    header = bytearray(upload(noise(64, 64)))
    header[16:24] = (100_000).to_bytes(4, "big") * 2  # a header that promises ten gigapixels
    with pytest.raises((TooLarge, Invalid)):
        from_upload(bytes(header), CARD, 10**6, 2**20)
    with pytest.raises(TooLarge, match="at most 10000 pixels, got 120 x 120"):
        from_upload(upload(noise(120, 120)), CARD, 10_000, 2**20)


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(2, 32), st.integers(2**14, 2**22))
def test_a_size_is_on_the_grid_and_within_the_limits(width: int, height: int, grid_sides: int, max_pixels: int) -> None:
    max_side = 64 * grid_sides
    w, h = output_size(width, height, max_side, max_pixels)
    assert w % 64 == h % 64 == 0
    assert min(w, h) >= 128
    assert max(w, h) <= max_side
    assert w * h <= max(max_pixels, 128 * 128)


def test_a_size_on_the_grid_stays_as_it_is() -> None:
    assert output_size(512, 768, 2048, 2048 * 2048) == (512, 768)
    picture = noise(256, 192)
    pixels, *size = from_upload(upload(picture), CARD, 10**6, 2**20)
    assert size == [256, 192]
    assert pixels == picture.tobytes()


def test_loras_stand_in_the_text_as_in_the_web_ui_and_in_ours() -> None:
    params = Params("demo-xl", "a cat", "a dog", 20, 128, 128, 7, 9, loras=(Lora("pixel-art", 0.8), Lora("sketch", -1.0)))
    text = Image.open(io.BytesIO(to_png(noise(128, 128).tobytes(), params, 20))).text
    assert text["parameters"].startswith("a cat <lora:pixel-art:0.8> <lora:sketch:-1>\nNegative prompt: a dog\nSteps: 20, ")
    assert json.loads(text["darkroom"])["loras"] == [{"name": "pixel-art", "scale": 0.8}, {"name": "sketch", "scale": -1.0}]
    text = Image.open(io.BytesIO(to_png(noise(128, 128).tobytes(), params, 20, with_prompt=False))).text
    assert text["parameters"].startswith("<lora:pixel-art:0.8> <lora:sketch:-1>\nSteps: 20, ")


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("RGB", "JPEG"), ("L", "PNG"), ("P", "PNG")])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_picture_is_reduced_on_the_way_and_looks_the_same(mode: str, kind: str, orientation: int) -> None:
    big = noise(16, 8).resize((4096, 2048), Image.Resampling.BICUBIC)
    big.putalpha(128)
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    big.convert(mode).save(out, kind, exif=exif)
    pixels, width, height = from_upload(out.getvalue(), CARD, 10**7, 256 * 512)
    white = Image.new("RGBA", big.size, "white")
    plain = Image.alpha_composite(white, big.convert(mode).convert("RGBA")).convert("RGB").resize((512, 256), Image.Resampling.LANCZOS)
    wanted = plain.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else plain
    assert (width, height) == wanted.size
    assert np.abs(np.frombuffer(pixels, np.uint8).astype(int) - np.asarray(wanted).ravel()).mean() < 2
