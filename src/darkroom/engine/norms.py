"""Group norms of a UNet in the form that OpenVINO runs fastest: sums over each channel, then one scale and one offset for it.

OpenVINO's own form of GroupNorm wants planar tensors between convolutions that want channels last, and turning them over was
a third of a step of nets as small as the demo's at 512 x 512. Sums over a channel are found in either layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


@contextmanager
def channelwise(module: nn.Module) -> Iterator[None]:
    """Within it every GroupNorm of `module`, and every residual block with its time embedding, computes the same by channels."""
    changed: list[tuple[Any, Callable[..., torch.Tensor]]] = []
    for part in module.modules():
        if isinstance(part, nn.GroupNorm):
            changed.append((part, partial(normalise, part)))
        elif isinstance(part, ResnetBlock2D) and _is_plain(part):
            changed.append((part, partial(_forward, part)))
    for part, forward in changed:
        part.forward = forward
    try:
        yield
    finally:
        for part, _ in changed:
            del part.forward


def normalise(norm: nn.GroupNorm, x: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
    """The norm [n, c, h, w] of x + shift, where shift [n, c] is the same all over a channel, so that it need not be added to x.

    A group's variance is the mean over its channels of a channel's own variance and of its mean's distance from the group's,
    squared (the law of total variance): deviations are taken before they are squared, so that no digits cancel.
    """
    groups = norm.num_groups, norm.num_channels // norm.num_groups
    mean = x.mean((2, 3), keepdim=True)
    own = torch.linalg.vector_norm(x - mean, dim=(2, 3)).square() / (x.shape[2] * x.shape[3])
    mean = mean.flatten(1) if shift is None else mean.flatten(1) + shift
    mean, own = mean.unflatten(1, groups), own.unflatten(1, groups)
    centre = mean.mean(2, keepdim=True)
    variance = (own + (mean - centre).square()).mean(2, keepdim=True)
    scale = torch.rsqrt(variance + norm.eps) * norm.weight.unflatten(0, groups)
    offset = (norm.bias.unflatten(0, groups) - centre * scale).flatten(1)
    scale = scale.flatten(1)
    offset = offset if shift is None else offset + scale * shift
    return x * scale[:, :, None, None] + offset[:, :, None, None]


def _is_plain(block: Any) -> bool:
    """Whether the block is SDXL's kind: the time embedding is added before the second norm, and no size is changed within."""
    return (
        block.time_emb_proj is not None and block.time_embedding_norm == "default" and not block.skip_time_act
        and block.upsample is None and block.downsample is None
    )  # fmt: skip


def _forward(block: Any, x: torch.Tensor, temb: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """As diffusers' block, in evaluation, with the time embedding as the second norm's shift."""
    hidden = block.conv1(block.nonlinearity(block.norm1(x)))
    shift = block.time_emb_proj(block.nonlinearity(temb))
    hidden = block.conv2(block.nonlinearity(normalise(block.norm2, hidden, shift)))
    return ((x if block.conv_shortcut is None else block.conv_shortcut(x)) + hidden) / block.output_scale_factor
