"""Colours of a picture with an ICC profile, as sRGB."""

from __future__ import annotations

import io

from PIL import Image, ImageCms

SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's colour space, and the mode of pixels that it speaks of
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
MAX_BYTES = 4 * 2**20  # of a profile; a printer's has about 2 MB


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """An L, RGB, RGBA or CMYK picture with its colours converted by the profile, as RGB or RGBA; alpha stays as it is.

    A profile that cannot be read, or that speaks of other pixels than these, counts as sRGB, as it does in browsers.
    """
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    colours = _converted(image if alpha is None else image.convert("RGB"), profile)
    if alpha is not None:
        colours.putalpha(alpha)
    return colours


def _converted(image: Image.Image, profile: bytes) -> Image.Image:
    plain = image.convert("RGB")
    if not profile or len(profile) > MAX_BYTES:
        return plain
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = SPACES.get(source.profile.xcolor_space)
        if mode in ("RGB", "L") and (pixels := plain.convert(mode)).convert("RGB") == plain:
            image = pixels  # grey pixels may have a profile of three colours, and lie in three channels
        if mode != image.mode:
            return plain
        transform = ImageCms.buildTransform(source, SRGB, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        return ImageCms.applyTransform(image, transform) or plain
    except (OSError, ValueError, ImageCms.PyCMSError):
        return plain
