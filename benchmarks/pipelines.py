"""diffusers' pipeline of a folder, as every peer that is made of it loads it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image


def load(folder: Path) -> DiffusionPipeline:
    """fp32, on the CPU; parts that model_index.json has as null are given as None, which SD 3.x asks for."""
    parts = json.loads((folder / "model_index.json").read_text()).items()
    absent = {name: None for name, value in parts if value == [None, None]}
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, **absent)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: DiffusionPipeline, body: dict) -> Image.Image:
    """One picture of a request as `loads.body` makes it."""
    return pipe(
        body["prompt"], num_inference_steps=body["steps"], width=body["width"], height=body["height"], guidance_scale=body["cfg_scale"],
        generator=torch.Generator().manual_seed(body["seed"]),
    ).images[0]  # fmt: skip
