"""`POST /v1/images/control`, line by line of the contract."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from darkroom.picture import output_size
from tests.conftest import Server
from tests.http.test_generate import errors, pixels


def picture(width: int = 128, height: int = 128, kind: str = "PNG", mode: str = "RGB", **save: Any) -> bytes:
    """A picture whose left half is blue and right half yellow."""
    image = Image.new("RGB", (width, height), (245, 210, 40))
    image.paste((45, 80, 220), (0, 0, width // 2, height))
    out = io.BytesIO()
    image.convert(mode).save(out, kind, **save)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_kind_is_told_by_content(server: Server, kind: str) -> None:
    assert pixels(server.control(picture(kind=kind), control_strength="0.9")).shape == (128, 128, 3)


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("P", "PNG"), ("1", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("CMYK", "JPEG")])
def test_every_mode_is_read(server: Server, mode: str, kind: str) -> None:
    assert pixels(server.control(picture(mode=mode, kind=kind), control_strength="1")).shape == (128, 128, 3)


def test_16_bits_of_grey_are_read(server: Server) -> None:
    out = io.BytesIO()
    Image.fromarray(np.repeat(np.array([[0, 60000]], np.uint16), 64, 1).repeat(128, 0)).save(out, "PNG")
    got = pixels(server.control(out.getvalue(), control_strength="1"))
    assert got[:, :48].mean() < 40
    assert got[:, 80:].mean() > 200


def test_one_side_given_wins_and_the_other_follows_the_picture(server: Server) -> None:
    assert pixels(server.control(picture(256, 128), width="384", control_strength="1")).shape == (192, 384, 3)
    assert pixels(server.control(picture(256, 128), height="192", control_strength="1")).shape == (192, 384, 3)


def test_what_does_not_fit_is_cropped_from_the_middle(server: Server) -> None:
    got = pixels(server.control(picture(256, 128), width="128", height="128", control_strength="1"))
    assert np.abs(got[:, :48].mean((0, 1)) - [45, 80, 220]).max() < 30
    assert np.abs(got[:, 80:].mean((0, 1)) - [245, 210, 40]).max() < 30


def test_a_picture_beyond_the_outputs_limit_is_scaled_down(server: Server) -> None:
    assert pixels(server.control(picture(2400, 1200), control_strength="1")).shape == (512, 1024, 3)


def test_two_different_pictures_and_an_unknown_field_are_named(server: Server) -> None:
    url = f"{server.service_id}/v1/images/control"
    files = [("image", ("a.png", picture(), "image/png")), ("image", ("b.png", picture(192), "image/png"))]
    answer = errors(requests.post(url, files=files, data={"prompt": "a", "strength": "1"}, headers=server.headers(), timeout=60), 422)
    assert any('"image" must be given once' in line for line in answer["errors"])
    assert any('"strength" is not a field' in line and "control_strength" in line for line in answer["errors"])
    answer = errors(server.control(picture(), steps="5", cfg_scale="1e400", seed="true"), 422)
    assert len(answer["errors"]) == 3


def test_control_strength_1_keeps_the_picture_and_runs_no_step(server: Server) -> None:
    reply = server.control(picture(256, 192), control_strength="1")
    got = pixels(reply)
    assert reply.headers["X-Steps-Run"] == "0"
    assert got.shape == (192, 256, 3)
    assert np.abs(got[:, :96].mean((0, 1)) - [45, 80, 220]).max() < 30
    assert np.abs(got[:, 160:].mean((0, 1)) - [245, 210, 40]).max() < 30


def test_control_strength_0_is_text_to_image_at_the_pictures_size(server: Server) -> None:
    reply = server.control(picture(192, 128), control_strength="0", seed="5", prompt="a cat")
    assert reply.headers["X-Steps-Run"] == "10"
    assert np.abs(pixels(reply) - pixels(server.generate(prompt="a cat", seed=5, width=192, height=128))).max() <= 2


@pytest.mark.parametrize(("steps", "strength", "run"), [("30", "0.35", "19"), ("30", None, "19"), ("10", "0.95", "1"), ("10", "0.1", "9")])
def test_steps_run_are_stated(server: Server, steps: str, strength: str | None, run: str) -> None:
    assert server.control(picture(), steps=steps, control_strength=strength).headers["X-Steps-Run"] == run


def test_form_text_is_taken_as_numbers_and_an_empty_negative_prompt_is_none(server: Server) -> None:
    pixels(server.control(picture(), steps="10.0", seed="12", cfg_scale="10", negative_prompt=""))
    body = errors(server.control(picture(), steps="ten", cfg_scale="nan", seed="1_0"), 422)
    assert len(body["errors"]) == 3


def test_the_same_value_twice_is_fine_and_as_a_file_too(server: Server) -> None:
    url = f"{server.service_id}/v1/images/control"
    common: dict[str, Any] = {"headers": server.headers(), "timeout": 120}
    twice = [("image", ("a.png", picture(), "application/octet-stream")), ("model", ("model", server.model))]
    data = {"model": server.model, "prompt": "a cat", "steps": "10", "control_strength": "0.9"}
    pixels(requests.post(url, files=twice, data=data, **common))
    errors(requests.post(url, files=twice, data=data | {"model": "other"}, **common), 422)


def test_the_image_must_be_there_and_a_file(server: Server) -> None:
    assert errors(server.control(None), 422)["name"] == "invalid_image"
    url = f"{server.service_id}/v1/images/control"
    as_text = requests.post(url, files={"image": (None, "hello"), "prompt": (None, "a cat")}, headers=server.headers(), timeout=30)
    assert "as a file" in errors(as_text, 422)["errors"][0]
    assert len(errors(server.control(None, steps="5"), 422)["errors"]) == 2


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0miafavif", "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp41", "video"),
        (b"GIF89a\1\0\1\0", "GIF"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"BM\x46\0\0\0", "BMP"),
        (b"%PDF-1.7", "PDF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"iVBORw0KGgoAAAANSUhEUgAA", "base64"),
        (b"<!DOCTYPE html><title>Not found</title>", "HTML"),
    ],
)
def test_a_415_names_the_format_that_came(server: Server, content: bytes, name: str) -> None:
    line = errors(server.control(content), 415)["errors"][0]
    assert re.search(rf"image must be PNG, JPEG or WebP by its content, got .*{name}", line)


def test_a_picture_under_another_name_is_told_to_be_the_image(server: Server) -> None:
    url = f"{server.service_id}/v1/images/control"
    files = {"file": ("a.png", picture(), "image/png")}
    reply = requests.post(url, files=files, data={"prompt": "a"}, headers=server.headers(), timeout=60)
    told = next(line for line in errors(reply, 422)["errors"] if '"file" is not a field' in line)
    assert "the nearest is image;" in told


def test_what_is_no_picture_is_a_415(server: Server) -> None:
    for content in (b"hello", b"GIF89a" + b"\0" * 50, b"%PDF-1.7", b"RIFF\0\0\0\0WAVE"):
        errors(server.control(content), 415)


def test_a_broken_or_cut_off_picture_is_a_422(server: Server) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = picture(256, 256, kind)
        assert errors(server.control(whole[: len(whole) // 2]), 422)["name"] == "invalid_image"
    errors(server.control(b"\x89PNG\r\n\x1a\n"), 422)


def test_an_animation_is_a_422(server: Server) -> None:
    frames = [Image.new("RGB", (128, 128), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP"):
        out = io.BytesIO()
        frames[0].save(out, kind, save_all=True, append_images=frames[1:])
        assert "animation" in errors(server.control(out.getvalue()), 422)["errors"][0]


def test_too_many_pixels_are_a_413_by_the_header_alone(server: Server) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    huge = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    assert "60000 x 60000" in errors(server.control(huge), 413)["errors"][0]


@pytest.mark.parametrize("declared", ["image/gif", "text/plain", "image/jpeg"])
def test_what_a_file_is_called_plays_no_part(server: Server, declared: str) -> None:
    files = {"image": ("picture.jpg", picture(), declared)}
    data = {"prompt": "a cat", "steps": "10", "control_strength": "1"}
    pixels(requests.post(f"{server.service_id}/v1/images/control", files=files, data=data, headers=server.headers(), timeout=60))


def test_too_many_bytes_in_chunks_are_a_413(server: Server) -> None:
    head = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    chunks = (part for part in [head, *[b"x" * 2**20] * 21])
    kind = {"Content-Type": "multipart/form-data; boundary=edge"}
    errors(requests.post(f"{server.service_id}/v1/images/control", data=chunks, headers=server.headers() | kind, timeout=60), 413)


def test_too_many_bytes_are_a_413(server: Server) -> None:
    errors(server.control(picture() + b"\0" * (21 * 2**20)), 413)


def test_exif_turns_the_picture(server: Server) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: the left half comes to the top
    got = pixels(server.control(picture(256, 128, "JPEG", exif=exif), control_strength="1"))
    assert got.shape == (256, 128, 3)
    assert got[:96, :, 2].mean() > got[160:, :, 2].mean() + 60


def test_transparency_is_flattened_onto_white(server: Server) -> None:
    out = io.BytesIO()
    Image.new("RGBA", (128, 128), (0, 0, 0, 0)).save(out, "PNG")
    assert pixels(server.control(out.getvalue(), control_strength="1")).mean() > 220


def test_width_and_height_win_where_they_are_sent(server: Server) -> None:
    assert pixels(server.control(picture(), width="192", height="128", control_strength="1")).shape == (128, 192, 3)
    assert pixels(server.control(picture(100, 210), control_strength="1")).shape == (192, 128, 3)


def test_a_body_that_is_not_multipart(server: Server) -> None:
    url = f"{server.service_id}/v1/images/control"
    errors(requests.post(url, json={"prompt": "a"}, headers=server.headers(), timeout=30), 415)
    broken = server.headers() | {"Content-Type": "multipart/form-data; boundary=x"}
    errors(requests.post(url, data=b"no boundary here", headers=broken, timeout=30), 400)
    errors(requests.post(url, data=b"", headers=server.headers() | {"Content-Type": "multipart/form-data"}, timeout=30), 400)


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([512 * 512, 1024 * 1024, 2048 * 2048]))
def test_sizes_stay_on_the_grid_within_the_limits(width: int, height: int, limit: int) -> None:
    w, h = output_size(width, height, 1024, limit)
    assert w % 64 == h % 64 == 0
    assert min(w, h) >= 128
    assert max(w, h) <= 1024
    assert w * h <= limit
    if max(width, height) <= 1024 and width * height <= limit and min(width, height) >= 128:
        assert abs(w - width) <= 32 or w * h + 64 * max(w, h) > limit
        assert abs(h - height) <= 32 or w * h + 64 * max(w, h) > limit
