"""A denoiser by `torch.compile`, meant for GPUs, where launching kernels one by one is what a small batch waits for.

Each shape is compiled by itself, so a batch is filled up with copies of its last row to one of a few numbers of rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
MOST_SHAPES = 256  # compiled of one net; more run in eager PyTorch. torch's own limit of 8 is for shapes that come by mistake


class Compiled:
    """A module from tensors with rows in front to one such tensor."""

    def __init__(self, module: nn.Module, device: torch.device, backend: str = "inductor"):
        import torch._dynamo.config as limits

        limits.recompile_limit = MOST_SHAPES
        mode: Any = "reduce-overhead" if device.type == "cuda" else None  # CUDA graphs
        self._run = torch.compile(module, dynamic=False, backend=backend, mode=mode)

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        rows = len(tensors[0])
        out = self._run(*(_filled(tensor, filled_rows(rows)) for tensor in tensors))
        return out[:rows].clone()  # a CUDA graph writes its next outcome into the same place


def filled_rows(rows: int) -> int:
    """How many rows a batch of `rows` is filled up to."""
    return next((number for number in ROWS if number >= rows), rows)


def _filled(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Laid out the same however it came, for other strides would be compiled anew."""
    more = rows - len(tensor)
    full = torch.cat([tensor, tensor[-1:].expand(more, *tensor.shape[1:])]) if more else tensor
    return full.contiguous(memory_format=torch.channels_last if full.dim() == 4 else torch.contiguous_format)
