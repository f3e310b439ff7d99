"""What the Runner asks of a family of nets: SDXL, and whatever follows, behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch

from darkroom.engine.lora_names import Layers
from darkroom.engine.passes import Pass, Run
from darkroom.types import Params


@dataclass(frozen=True)
class Text:
    """Encoded prompts as the denoiser's pass takes them: hidden [n, tokens, d], pooled [n, p]; `note` says what the encoders
    could not hear of the one, or is empty."""

    hidden: torch.Tensor
    pooled: torch.Tensor
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """The way of one Sample: coefficients [steps, 8] (`samplers.py`), and how it starts.

    A start is signal * latents of the init image + noise * unit noise. Without an image signal is None; with one it may
    be 0 (flow matching from the first step on), and then the image still takes its draw from the generator.
    """

    table: np.ndarray
    signal: float | None
    noise: float


class Family(Protocol):
    """The nets of one checkpoint. One thread owns them; every call belongs to it."""

    name: str
    dtype: torch.dtype
    device: torch.device
    latent_channels: int
    latent_scale: int

    def nets(self) -> dict[str, torch.nn.Module]:
        """All of them by diffusers' names of components, for who counts their memory, and for LoRAs."""

    def passes(self) -> dict[str, Pass]:
        """The passes as graphs are made of them, by name."""

    def denoiser(self) -> tuple[str, torch.nn.Module]:
        """The name of the denoiser's pass in eager PyTorch, and its module."""

    def through(self, runs: Mapping[str, Run]) -> Self:
        """The same nets with these in the place of their passes. Text that one encoded is not for the other."""

    def plan(self, params: Params) -> Plan:
        """Which steps to run and from where. A control_strength of 1 plans no step."""

    def encode_prompt(self, prompt: str, like: Text | None = None) -> Text:
        """Encode a prompt; an empty one with `like` given is the unconditional of that text."""

    def encode_image(self, pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """[1, 3, h, w] in -1..1 to scaled latents [1, c, h/8, w/8], fp32; the posterior's mode without a generator."""

    def step(self, latents: torch.Tensor, coefficients: torch.Tensor, pairs: torch.Tensor, text: Text, sides: torch.Tensor) -> torch.Tensor:
        """One step as `samplers.step` has it, around one forward pass with the text and the sides [n, 2] (height and width in pixels, fp32)
        of its n rows."""

    def decode(self, latents: torch.Tensor, tile: int = 0) -> torch.Tensor:
        """Latents [n, c, h, w] to pictures [n, 3, 8h, 8w] in -1..1, fp32, not clamped; in tiles of so many pixels where not 0."""

    def decode_bytes(self) -> int:
        """About what decoding takes beside the weights, for each pixel."""

    def from_kohya(self, layers: Layers) -> Layers:
        """A LoRA's layers by kohya's names to `net.module` of `nets`. Raises Unfit (`lora_header.py`) or what diffusers' converter raises."""
