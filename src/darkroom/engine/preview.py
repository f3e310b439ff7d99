"""Small pictures of unfinished Samples without a pass of the VAE: latents to colours by one matrix, fitted to the checkpoint's
own encoder, so that there are no magic numbers and any checkpoint has its previews."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch.nn import functional

from darkroom.engine.family import Family

SIDE = 256  # pixels of the longer side at most
QUALITY = 75  # of the JPEG
PROBE = 256  # side of the picture that the matrix is fitted to: 1,024 latent pixels for about 17 unknowns a colour


@torch.inference_mode()
def fit(family: Family) -> torch.Tensor:
    """The matrix [c + 1, 3], fp32 on the CPU, that brings latents and a 1 closest to the colours (-1..1) they were encoded from."""
    pixels = _probe()
    latents = family.encode_image(pixels, None).float().cpu()
    colours = functional.avg_pool2d(pixels, family.latent_scale)
    return torch.linalg.lstsq(_with_one(latents), colours[0].flatten(1).T).solution


@torch.inference_mode()
def to_jpeg(latents: torch.Tensor, matrix: torch.Tensor, width: int, height: int) -> bytes:
    """Latents [1, c, h, w] of a picture of width x height as a JPEG, enlarged smoothly to at most `SIDE` pixels."""
    colours = _with_one(latents.float().cpu()) @ matrix
    pixels = (colours.nan_to_num() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    image = Image.fromarray(pixels.view(*latents.shape[2:], 3).numpy())
    shrink = min(1.0, SIDE / max(width, height))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    out = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _with_one(latents: torch.Tensor) -> torch.Tensor:
    """[1, c, h, w] to [h * w, c + 1]: a row for each latent pixel, with a 1 for what does not depend on it."""
    rows = latents[0].flatten(1).T
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)


def _probe() -> torch.Tensor:
    """Flat patches of strong, middling and, since plain grounds are often that, white colours; a quarter shades smoothly
    instead: [1, 3, PROBE, PROBE] in -1..1."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([-0.8, 0.0, 0.8])
    patches = levels[torch.randint(3, (1, 3, 8, 8), generator=generator)]
    white = torch.rand(1, 1, 8, 8, generator=generator) < 1 / 3
    picture = functional.interpolate(torch.where(white, 1.0, patches), size=PROBE, mode="nearest")
    smooth = torch.rand(1, 3, 4, 8, generator=generator) * 2 - 1
    picture[:, :, : PROBE // 4] = functional.interpolate(smooth, size=(PROBE // 4, PROBE), mode="bicubic").clamp(-1, 1)
    return picture
