"""What training adds to latents [n, c, h, w], whichever way the denoiser is taught."""

from __future__ import annotations

import torch

UNCONDITIONAL = 0.2  # part of the rows that are taught without their caption
GUIDANCE = 8.0  # the cfg for which a checkpoint is made: between the API's default, 7, and the manual's own 10


def guided_error(found: torch.Tensor, blind: torch.Tensor, true: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Squared error, [n, c, h, w], of what sampling will use: with the caption (rows of `keep`, [n]) that is not what the net
    finds but blind + GUIDANCE (found - blind), where `blind` is what it finds without. A net whose conditional answer is right
    by itself overshoots GUIDANCE times at high noise, where the blind one knows nothing; taught this way, it lands.
    Divided by GUIDANCE, so that rows with and without a caption move the net alike."""
    keep = keep.view(-1, 1, 1, 1)
    guided = torch.where(keep, blind + GUIDANCE * (found - blind), found)
    return (guided - true) ** 2 * torch.where(keep, 1 / GUIDANCE, 1.0)


def draw_noise(latents: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """Noise like `latents`. In a large picture its mean would betray the background's colour even at the last timestep,
    and the net would trust it more than the caption: so some is added that is the same at every place."""
    n, c = latents.shape[:2]
    noise = torch.randn(latents.shape, generator=generator)
    offset = torch.randn(n, c, 1, 1, generator=generator)
    return noise + (0.1 if side >= 192 else 0.03) * offset


def draw_faults(latents: torch.Tensor, signal_to_noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What sampling gets wrong on its way, as further noise for half of the rows: another picture shining through, and a cast
    of colour. Guidance drives a picture off what training showed; a net that saw such faults under the right caption mends
    them where it would otherwise copy them (exposure bias; Ning et al. 2023 perturb the input likewise, with noise alone).

    signal_to_noise [n, 1, 1, 1]: how much of the picture there is for each unit of noise.
    """
    n, c = latents.shape[:2]
    chosen, ghost, cast = torch.rand(3, n, 1, 1, 1, generator=generator)
    share = ghost * (0.5 * signal_to_noise).clamp(max=0.35)  # of the other picture, counted in deviations of the noise
    colour = 0.4 * cast * torch.randn(n, c, 1, 1, generator=generator)
    return (chosen < 0.5) * (share * (latents.roll(1, 0) - latents) + colour)
