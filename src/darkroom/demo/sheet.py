"""Sample sheets: prompts in columns, sizes in rows."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from .nets import Nets

PROMPTS = (
    "a puppy dog", "a house on a green background", "an apple on a blue background", "a rocket on a black background",
    "a car to the left of a tree on a white background", "a sun above a rabbit on a purple background",
    "a small red star on a black background", "a cat and a birthday cake on a blue background",
)  # fmt: skip


@torch.no_grad()
def write_sheet(nets: Nets, file: Path, sides: tuple[int, ...] = (128, 256, 512), shown: int = 160) -> None:
    """One picture for each prompt and side, 30 steps, seeds fixed; each shown at `shown` pixels."""
    pipe = nets.pipeline()
    pipe.set_progress_bar_config(disable=True)
    nets.denoiser.eval()
    sheet = Image.new("RGB", (shown * len(PROMPTS), shown * len(sides)))
    for row, side in enumerate(sides):
        for column, prompt in enumerate(PROMPTS):
            generator = torch.Generator().manual_seed(1000 * row + column)
            picture = pipe(prompt, width=side, height=side, num_inference_steps=30, guidance_scale=nets.cfg, generator=generator).images[0]
            sheet.paste(picture.resize((shown, shown), Image.Resampling.LANCZOS), (column * shown, row * shown))
    sheet.save(file)
    nets.denoiser.train()
