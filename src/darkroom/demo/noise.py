"""What training does to latents, captions and answers, whichever way the denoiser is taught."""

from __future__ import annotations

import torch

UNCONDITIONAL = 0.2  # part of the rows that are taught without their caption


def draw_noise(latents: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """Noise like `latents` [n, c, h, w]. In a large picture its mean would betray the background's colour even at the last timestep,
    and the net would trust it more than the caption: so some is added that is the same at every place."""
    n, c = latents.shape[:2]
    noise = torch.randn(latents.shape, generator=generator)
    offset = torch.randn(n, c, 1, 1, generator=generator)
    return noise + (0.1 if side >= 192 else 0.03) * offset


def mislead(captions: list[str], late: torch.Tensor, generator: torch.Generator) -> list[str]:
    """The captions, in half of the rows that are `late` [n] another row's: there the picture is all but done, and what it shows
    must count, not what is said of it. Image to image at a high control_strength keeps its picture by this, and guidance has
    nothing left to drive."""
    wrong = late & (torch.rand(len(captions), generator=generator) < 0.5)
    return [captions[i - 1] if misled else caption for i, (caption, misled) in enumerate(zip(captions, wrong.tolist(), strict=True))]


def guide(found: torch.Tensor, blind: torch.Tensor, keep: torch.Tensor, guidance: float) -> torch.Tensor:
    """The answers [n, c, h, w] found with a caption (where `keep` [n] is true) as classifier-free guidance takes them beyond the blind
    ones. To teach these to be right leaves a sampler's guidance of g to drive no farther than g / guidance does otherwise."""
    return torch.where(keep.view(-1, 1, 1, 1), blind + guidance * (found - blind), found)
