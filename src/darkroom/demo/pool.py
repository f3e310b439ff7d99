"""Batches of encoded training pictures, kept on disk: composing and encoding one costs a quarter of a training step.

Batch k of a given seed is always the same, so that a resumed run sees what an unbroken one would have seen.
"""

from __future__ import annotations

import os
import random
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch

from .compose import as_array, compose
from .scenes import TAUGHT_SHAPES, caption, draw_training_scene, place

KEPT_IN_MEMORY = 3000  # batches, about 0.1 MB each


@dataclass(frozen=True)
class Batch:
    """latents [n, 4, side/8, side/8], scaled as the UNet sees them, and n captions."""

    latents: torch.Tensor
    captions: list[str]
    side: int


class Pool:
    """The batches of one training run: pool[k] makes batch k or reads it back."""

    def __init__(self, vae, folder: Path, rows: dict[int, int], shares: dict[int, float], seed: int, shapes: float = TAUGHT_SHAPES):
        """rows: side in pixels -> pictures in a batch; shares: side -> part of the batches; shapes: part of the figures."""
        self.vae, self.folder, self.rows, self.shares, self.seed, self.shapes = vae, folder, rows, shares, seed, shapes
        self.memory: OrderedDict[int, Batch] = OrderedDict()
        folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, k: int) -> Batch:
        if k not in self.memory:
            self.memory[k] = self._read(k) or self._make(k)
            if len(self.memory) > KEPT_IN_MEMORY:
                self.memory.popitem(last=False)
        return self.memory[k]

    def _read(self, k: int) -> Batch | None:
        file = self.folder / f"{k}.pt"
        return Batch(**torch.load(file)) if file.exists() else None

    def _make(self, k: int) -> Batch:
        rng = random.Random(f"{self.seed} {k}")
        side = rng.choices(list(self.shares), list(self.shares.values()))[0]
        scenes = [draw_training_scene(rng, self.shapes) for _ in range(self.rows[side])]
        pictures = as_array([compose(scene, place(rng, scene), side) for scene in scenes])
        batch = Batch(self._encode(torch.from_numpy(pictures), rng), [caption(rng, scene) for scene in scenes], side)
        partial = self.folder / f"{k}.partial"
        torch.save(vars(batch), partial)
        os.replace(partial, self.folder / f"{k}.pt")
        return batch

    @torch.no_grad()
    def _encode(self, pictures: torch.Tensor, rng: random.Random) -> torch.Tensor:
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        return self.vae.encode(pictures).latent_dist.sample(generator) * self.vae.config.scaling_factor
