"""Pixels to PNG with their parameters in it, and uploads to pixels, checked before they are decoded. No torch."""

from __future__ import annotations

import io
import json
import math
import re
import struct
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageMath, ImageOps, PngImagePlugin

from darkroom import __version__
from darkroom.errors import Invalid, TooLarge, UnsupportedMedia
from darkroom.icc import to_srgb
from darkroom.jpeg import check_cost
from darkroom.png import SIGNATURE, essentials
from darkroom.types import ModelCard, Params

GRID = 64  # sides are multiples of it
MIN_SIDE = 128
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # by a quarter or three, of EXIF 2.3
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
SIGNATURES = {SIGNATURE: "PNG", b"\xff\xd8\xff": "JPEG"}
# What EXIF's orientations ask of a decoder (EXIF 2.3, tag 274).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_COMMENT = 60_000  # bytes of EXIF's UserComment: all EXIF of a JPEG has 65,533
# formats that people try, by how their files begin
FOREIGN = {
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"%PDF": "PDF",
    b"8BPS": "PSD",
    b"\0\0\1\0": "ICO",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
}
HEIC = re.compile(rb"hei[cmsx]|hev[cx]|mif1|msf1")
Image.MAX_IMAGE_PIXELS = None  # our own limit is checked on the header, before anything is decoded


def to_png(pixels: bytes, params: Params, steps_run: int, with_prompt: bool = True) -> bytes:
    """Raw RGB to PNG with two text chunks: `parameters`, which other tools read, and `darkroom`, JSON of ours."""
    info = PngImagePlugin.PngInfo()
    shown = described(params, steps_run, with_prompt)
    info.add_text("parameters", _parameters_text(params, with_prompt))
    info.add_text("darkroom", json.dumps(shown))
    out = io.BytesIO()
    # level 1 takes less than half the time of the default for a tenth more bytes
    Image.frombytes("RGB", (params.width, params.height), pixels).save(out, "PNG", compress_level=1, pnginfo=info)
    return out.getvalue()


def converted(png: bytes, kind: str, quality: int) -> bytes:
    """A PNG of ours as JPEG or WEBP; its text goes along where other tools look for it, in EXIF's UserComment."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        text = image.text.get("parameters", "")  # type: ignore[attr-defined]
        exif = Image.Exif()
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + _within(text, MAX_COMMENT).encode("utf-16-be")
        out = io.BytesIO()
        image.save(out, kind, quality=quality, exif=exif)
    return out.getvalue()


def _within(text: str, most: int) -> str:
    """The parameters' text in at most so many bytes of UTF-16: prompts are cut, the last line with the settings stays."""
    packed = text.encode("utf-16-be")
    if len(packed) <= most:
        return text
    prompts, _, last = text.rpartition("\n")
    room = max(0, most - 2 * len(f"…\n{last}"))
    kept = prompts.encode("utf-16-be")[: room // 2 * 2].decode("utf-16-be", "ignore")  # half a character goes
    return f"{kept}…\n{last}"


def thumbnail(png: bytes, side: int) -> bytes:
    """A picture of ours as a small WebP, its longer side at most `side` pixels."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "WEBP", quality=80)
    return out.getvalue()


def described(params: Params, steps_run: int | None, with_prompt: bool = True) -> dict[str, Any]:
    """The parameters of a picture as JSON; strength in both senses, ours and diffusers'."""
    text = {"prompt": params.prompt, "negative_prompt": params.negative_prompt} if with_prompt else {}
    control = params.control_strength
    strength = {} if control is None else {"control_strength": float(control), "strength": float(1 - control)}
    loras = {"loras": [{"name": lora.name, "scale": lora.scale} for lora in params.loras]} if params.loras else {}
    return {
        "schema": 1, "model": params.model, **text, "seed": params.seed, "width": params.width, "height": params.height,
        "steps": params.steps, "steps_run": steps_run, "cfg_scale": params.cfg, **strength, **loras, "versions": {"darkroom": __version__},
    }  # fmt: skip


def _parameters_text(params: Params, with_prompt: bool) -> str:
    """The text that AUTOMATIC1111's web UI introduced and most viewers read; LoRAs stand at the prompt's end, as there."""
    pairs = {"Steps": params.steps, "CFG scale": params.cfg, "Seed": params.seed, "Size": f"{params.width}x{params.height}"}
    pairs["Model"] = json.dumps(params.model) if set(params.model) & set(",:\n") else params.model
    if params.control_strength is not None:
        pairs["Denoising strength"] = float(1 - params.control_strength)
    tags = [f"<lora:{lora.name}:{lora.scale:.10g}>" for lora in params.loras]
    first = " ".join([params.prompt, *tags] if with_prompt else tags)
    lines = [first] if first else []
    if with_prompt and params.negative_prompt:
        lines.append(f"Negative prompt: {params.negative_prompt}")
    lines.append(", ".join(f"{k}: {v}" for k, v in {**pairs, "Version": f"darkroom {__version__}"}.items()))
    return "\n".join(lines)


def from_upload(
    content: bytes, card: ModelCard, max_input: int, max_output: int, width: int | None = None, height: int | None = None
) -> tuple[bytes, int, int]:
    """An uploaded PNG, JPEG or WebP as raw RGB with its width and height: turned by EXIF, flattened onto white, scaled to
    cover a size on the grid and centre-cropped. width and height win where they are given.

    Raises UnsupportedMedia, TooLarge (before decoding) or Invalid (broken, animated).
    """
    kind = _kind(content)
    try:
        content, profile = essentials(content) if kind == "PNG" else (content, b"")
        if kind == "JPEG":
            check_cost(content)
        with Image.open(io.BytesIO(content), formats=(kind,)) as image:
            _check_header(image, kind, max_input)
            profile = profile or image.info.get("icc_profile") or b""
            picture = _fitted(image, profile, lambda w, h: output_size(w, h, card.max_side, max_output, width, height))
    except (TooLarge, Invalid):
        raise
    except Exception as error:  # Pillow raises a dozen kinds for broken files
        line = f"image must be a whole {kind} picture, but it is broken or cut off ({type(error).__name__})"
        raise Invalid(line, name="invalid_image") from error
    return picture.tobytes(), *picture.size


def _fitted(image: Image.Image, profile: bytes, size_of: Callable[[int, int], tuple[int, int]]) -> Image.Image:
    """An opened picture as sRGB of the size that `size_of` gives for its own. It is made small before it is turned, converted and
    flattened, each of which takes copies of it: a large one would take a GB."""
    whole, turn = image.size, _turn(image)
    size = size_of(*(whole[::-1] if turn in TURNED else whole))
    if image.format in ("JPEG", "MPO"):  # of a large one fewer pixels need be decoded
        spare = _spare(whole, size)
        image.draft(None, (whole[0] // spare, whole[1] // spare))
    image.load()
    small = to_srgb(_plain(image, _spare(image.size, size)), profile)
    if turn in TURNS:
        small = small.transpose(TURNS[turn])
    return _flat(ImageOps.fit(small, size, Image.Resampling.LANCZOS))


def _turn(image: Image.Image) -> int:
    """EXIF's orientation; 1 if there is none, or none that can be read: the pixels are whole nevertheless."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except (SyntaxError, struct.error, ValueError, TypeError, KeyError, EOFError):  # of Pillow's parser of TIFF
        return 1


def _spare(have: tuple[int, int], want: tuple[int, int]) -> int:
    """By how much a picture can be reduced and still have twice the pixels a side that it is to have, however it is turned; 1: not at all."""
    return max(1, min(min(have) // (2 * min(want)), max(have) // (2 * max(want))))


def output_size(width: int, height: int, max_side: int, max_pixels: int, want_width: int | None = None, want_height: int | None = None) -> tuple[int, int]:
    """The size on the grid nearest to a picture's own, within the limits, its aspect kept as well as the grid allows. Raises
    Invalid where a side that was asked for leaves too little for the other."""
    for name, side in (("width", want_width), ("height", want_height)):
        if side and not (want_width and want_height) and side * MIN_SIDE > max_pixels:
            raise Invalid(f"{name} must be at most {max_pixels // MIN_SIDE} where the picture may have {max_pixels} pixels, got {side}", name=f"invalid_{name}")
    if want_width and want_height:
        return want_width, want_height
    if want_width:
        return want_width, _snap(want_width * height / width, max_side, max_pixels // want_width)
    if want_height:
        return _snap(want_height * width / height, max_side, max_pixels // want_height), want_height
    shrink = min(1.0, math.sqrt(max_pixels / (width * height)), max_side / max(width, height))
    out = [_snap(side * shrink, max_side, max_side) for side in (width, height)]
    while out[0] * out[1] > max_pixels and max(out) > MIN_SIDE:  # rounding up may pass the limit by a little
        out[out.index(max(out))] -= GRID
    return out[0], out[1]


def _snap(side: float, *limits: int) -> int:
    most = max(MIN_SIDE, min(limits) // GRID * GRID)
    return min(most, max(MIN_SIDE, int(side / GRID + 0.5) * GRID))


def _kind(content: bytes) -> str:
    for signature, kind in SIGNATURES.items():
        if content.startswith(signature):
            return kind
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    named = foreign(content)
    got = f"{named} ({len(content)} bytes)"
    if not named:
        got = f"{len(content)} bytes that begin with {content[:8].hex() or 'nothing'}"
    raise UnsupportedMedia(f"image must be PNG, JPEG or WebP by its content, got {got}")


def foreign(content: bytes) -> str:
    """What a file is that is none of ours, by its first bytes; "" where that is not known."""
    if content[4:8] == b"ftyp":
        brands = content[8:64]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        return "HEIC" if HEIC.search(brands) else "a video, or another file of the MP4 family"
    named = next((name for start, name in FOREIGN.items() if content.startswith(start)), "")
    if named:
        return named
    head = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "SVG"
    if head.startswith((b"<!doctype html", b"<html")):
        return "a page in HTML"
    is_base64 = head.startswith((b"data:image/", b"ivborw0kggo", b"/9j/", b"uklgr"))
    return "text in base64, which must be decoded first" if is_base64 else ""


def _check_header(image: Image.Image, kind: str, max_input: int) -> None:
    if image.width * image.height > max_input:
        raise TooLarge(f"image must have at most {max_input} pixels, got {image.width} x {image.height}")
    # a JPEG with several pictures is a phone's photo with its preview, not an animation
    if kind != "JPEG" and (frames := getattr(image, "n_frames", 1)) > 1:
        raise Invalid(f"image must be a single picture, got an animation of {frames} frames", name="invalid_image")


def _plain(image: Image.Image, spare: int) -> Image.Image:
    """Any mode to L, RGB, RGBA or CMYK, reduced by `spare`; 16-bit grey scaled."""
    if image.mode.startswith("I"):
        plain = _grey_of_16_bits(image)
    elif image.mode in ("L", "RGB", "RGBA", "CMYK") and "transparency" not in image.info:
        plain = image
    else:
        plain = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
    return plain.reduce(spare) if spare > 1 else plain


def _grey_of_16_bits(image: Image.Image) -> Image.Image:
    """As L, or as RGBA if a level is transparent, which Pillow's own conversion forgets."""
    levels, clear = image.convert("I"), image.info.get("transparency")
    grey = levels.point(lambda level: level * (1 / 257)).convert("L")
    if not isinstance(clear, int):
        return grey
    plain = grey.convert("RGBA")
    plain.putalpha(ImageMath.lambda_eval(lambda a: a["convert"]((a["level"] != clear) * 255, "L"), level=levels))
    return plain


def _flat(image: Image.Image) -> Image.Image:
    """Transparency flattened onto white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
