"""One forward pass of each net as a module from tensors to tensors, the denoiser's also with the step around it. A faster backend makes
of each what it likes (`graphs.py`), and a Family runs that or the module; in eager PyTorch the step is its own (`samplers.step`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

from darkroom.engine import samplers

Run = Callable[..., Any]  # takes the tensors of a pass and gives its tensor or tensors
STEP = "step"  # the name of the pass that every step is

Shape = tuple[int, ...]  # -1 for what differs between calls: rows and sides


@dataclass(frozen=True)
class Pass:
    """A module to make a graph of, and the shapes of its tensors; their sides are latent ones times `scale`."""

    module: nn.Module
    shapes: tuple[Shape, ...]
    scale: int = 1

    def example(self, rows: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
        """Tensors like those it will get, uniform in 0..1; height and width in latent pixels."""
        return tuple(_uniform(shape, rows, height * self.scale, width * self.scale) for shape in self.shapes)


@dataclass(frozen=True)
class StepPass(Pass):
    """That of a Step, whose sides are whole patches of so many latent pixels."""

    patch: int = 1

    @classmethod
    def around(cls, denoiser: nn.Module, channels: int, patch: int, *conditions: Shape) -> StepPass:
        """The denoiser has so many channels and takes conditions of these shapes."""
        return cls(Step(denoiser), ((2, -1, channels, -1, -1), (-1, samplers.WIDTH), (2, -1), *conditions), patch=patch)

    def example(self, rows: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
        """Sides up to a whole patch; every coefficient counts, and as many of the Samples as may be are guided, beyond the conditional."""
        height, width = (math.ceil(side / self.patch) * self.patch for side in (height, width))
        latents, coefficients, _, *conditions = (_uniform(shape, rows, height, width) for shape in self.shapes)
        return latents, coefficients + 1, samplers.pairing([*[2] * (rows // 2), *[1] * (rows % 2)]), *conditions


def _uniform(shape: Shape, rows: int, height: int, width: int) -> torch.Tensor:
    sides = {len(shape) - 2: height, len(shape) - 1: width} if len(shape) > 3 else {}
    return torch.rand([sides.get(i, rows) if side == -1 else side for i, side in enumerate(shape)])


class Encode(nn.Module):
    """Pixels [n, 3, h, w] in -1..1 to mean and log variance of their latents [n, 2c, h/8, w/8]."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(pixels).latent_dist.parameters


class Decode(nn.Module):
    """Unscaled latents [n, c, h, w] to pixels [n, 3, 8h, 8w]."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae

    def pixel_bytes(self) -> int:
        """About what a pixel takes beside the weights: the last level holds three tensors of the width of the one before it
        (measured with SDXL's autoencoder, 3.0 kB a pixel in fp32)."""
        widths = self.vae.config.block_out_channels
        return 3 * widths[min(1, len(widths) - 1)] * self.vae.dtype.itemsize

    def tiled(self, z: torch.Tensor, side: int) -> torch.Tensor:
        """The same in square tiles of `side` pixels, a multiple of 64, which overlap by a quarter and are blended there: norms
        see one tile each, so colours may differ a little."""
        self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = side, side // (2 ** (len(self.vae.config.block_out_channels) - 1))
        return self.vae.tiled_decode(z, return_dict=False)[0]

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(z, return_dict=False)[0]


class UNet(nn.Module):
    """SDXL's UNet: x [n, c, h, w], t [n], text [n, tokens, d], pooled [n, p], sides [n, 2] (height and width in pixels) to what it
    predicts [n, c, h, w]."""

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, pooled: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
        # original size, crop, target size; the size asked for stands for both, as in diffusers' own defaults
        added = {"text_embeds": pooled, "time_ids": torch.cat([sides, torch.zeros_like(sides), sides], dim=1)}
        x = x.contiguous(memory_format=torch.channels_last)
        return self.unet(x, t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]


class KeyedUNet(UNet):
    """The same with text as the keys and values of every cross attention side by side [n, tokens, w]. They do not depend on
    the step, so they are computed once a prompt instead of once a step."""

    def __init__(self, unet: Any):
        super().__init__(unet)
        self._layers = [module for name, module in unet.named_modules() if name.rsplit(".")[-1] == "attn2"]

    def keys(self, text: torch.Tensor) -> torch.Tensor:
        """text [n, tokens, d] to its keys and values [n, tokens, w]."""
        return torch.cat([project(text) for layer in self._layers for project in (layer.to_k, layer.to_v)], dim=-1)

    @property
    def width(self) -> int:
        return sum(layer.to_k.out_features + layer.to_v.out_features for layer in self._layers)

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, pooled: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
        before = [layer.processor for layer in self._layers]
        try:
            start = 0
            for layer in self._layers:
                keys, values = (text[..., start + i * layer.inner_kv_dim : start + (i + 1) * layer.inner_kv_dim] for i in (0, 1))
                layer.processor = _KeysGiven(keys, values)
                start += 2 * layer.inner_kv_dim
            return super().forward(x, t, text, pooled, sides)
        finally:
            for layer, processor in zip(self._layers, before, strict=True):
                layer.processor = processor


class _KeysGiven:
    """In the place of diffusers' AttnProcessor2_0, for an attention whose keys and values [n, tokens, heads * d] are there."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        self._keys, self._values = keys, values

    def __call__(self, layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        query, keys, values = (_by_head(part, layer.heads) for part in (layer.to_q(hidden_states), self._keys, self._values))
        out = nn.functional.scaled_dot_product_attention(query, keys, values)
        return layer.to_out[0](out.transpose(1, 2).flatten(2))


def _by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[n, tokens, heads * d] to [n, heads, tokens, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Transformer(nn.Module):
    """SD 3.x's transformer: x [n, c, h, w], t [n], text [n, tokens, d], pooled [n, p] to the velocity [n, c, h, w]."""

    def __init__(self, transformer: Any):
        super().__init__()
        self.transformer = transformer

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        return self.transformer(x, encoder_hidden_states=text, pooled_projections=pooled, timestep=t, return_dict=False)[0]


class Step(nn.Module):
    """A denoising step around a denoiser in fp32: what `samplers.step` takes, and the denoiser's conditions of each row."""

    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, latents: torch.Tensor, coefficients: torch.Tensor, pairs: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        return samplers.step(lambda x, t: self.denoiser(x, t, *conditions), latents, coefficients, pairs)


def keyable(unet: Any) -> bool:
    """Whether keys and values may be computed apart: where no layer but the projection stands between them and the text, and
    zeros (the unconditional text) stay zeros."""
    layers = [module for name, module in unet.named_modules() if name.rsplit(".")[-1] == "attn2"]
    return bool(layers) and all(
        type(layer.processor) is AttnProcessor2_0 and not layer.use_bias and layer.norm_q is None and layer.norm_k is None and layer.norm_cross is None
        for layer in layers
    )
