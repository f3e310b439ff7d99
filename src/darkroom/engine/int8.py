"""A denoiser's graph in int8, weights and activations, by NNCF's quantization after training (Neural Network Compression Framework,
https://github.com/openvinotoolkit/nncf), with SmoothQuant (Xiao et al. 2023, arXiv 2211.10438). Lossy, so only by setting.

What int8 must hold is seen by drawing a few pictures in eager PyTorch and keeping what the denoiser was given on the way.
"""

from __future__ import annotations

import io
import os
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import openvino as ov
import torch

from darkroom.engine import samplers
from darkroom.engine.family import Family, Text
from darkroom.engine.passes import STEP, Pass
from darkroom.errors import Unsupported
from darkroom.types import ModelCard, Params

# Where a model's card has no examples.
PROMPTS = ("a cat", "a red house under a blue sky", "a small green star on a black background", "portrait of an old man, photograph, film grain")
STEPS = 8  # of each picture: activations differ most by timestep
MOST_SIDE = 512  # pixels
MOST_ERROR = 0.25  # relative, of a pass: up to 0.14 was seen (demo-xl); the pictures of one that is so far off are others
# Modules that stay in fp32: what takes latents in and gives them out, and what takes the timestep. They are a small part of the time;
# with them so, and the model's own examples seen in place of PROMPTS, demo-xl's pictures came 1 to 7 dB nearer to the reference.
EXACT = ("unet.conv_in", "unet.conv_out", "time_embedding", "add_embedding", "pos_embed", "time_text_embed", "norm1.linear", "norm1_context.linear",
         "norm_out.linear", "transformer.proj_out")  # fmt: skip


@dataclass
class Seen:
    """The steps in eager PyTorch. Keeps what the denoiser was given and predicted, as steps whose outcome is just that prediction: coefficients
    that do nothing, and each row a Sample of its own, for guidance would make more of int8's error, or hide it in a mean."""

    one: Pass
    calls: list[tuple[tuple[torch.Tensor, ...], torch.Tensor]]

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        latents, coefficients, _, *conditions = tensors
        predictions: list[torch.Tensor] = []
        hook = self.one.module.get_submodule("denoiser").register_forward_hook(lambda module, given, out: predictions.append(out))
        try:
            out = self.one.module(*tensors)
        finally:
            hook.remove()
        bare, apart = samplers.bare(coefficients), samplers.pairing([1] * len(coefficients))
        self.calls.append((tuple(tensor.contiguous() for tensor in (latents, bare, apart, *conditions)), predictions[0].expand(2, -1, -1, -1, -1)))
        return out


def see(family: Family, card: ModelCard) -> Seen:
    """Draw some of the card's examples, or PROMPTS, at the model's own size, MOST_SIDE at most, and keep every step."""
    seen = Seen(family.passes()[STEP], [])
    through, side = family.through({STEP: seen}), min(card.default_side, MOST_SIDE)
    for seed, prompt in enumerate(card.examples[: 2 * len(PROMPTS) : 2] or PROMPTS):
        _draw(through, Params(card.name, prompt, width=side, height=side, steps=STEPS, cfg=card.default_cfg, seed=seed))
    return seen


@torch.inference_mode()
def _draw(family: Family, params: Params) -> None:
    """The denoising of one guided picture; it is not decoded."""
    text = family.encode_prompt(params.prompt)
    blind = family.encode_prompt("", text)
    both = Text(torch.cat([blind.hidden, text.hidden]), torch.cat([blind.pooled, text.pooled]))
    sides = torch.tensor([[params.height, params.width]] * 2, dtype=torch.float32)
    plan, scale = family.plan(params), family.latent_scale
    shape = (1, family.latent_channels, params.height // scale, params.width // scale)
    generator = torch.Generator().manual_seed(params.seed)
    latents = torch.stack([plan.noise * torch.randn(shape, generator=generator), torch.zeros(shape)]).repeat(1, 2, 1, 1, 1)
    pairs = samplers.pairing([2])
    for row in torch.from_numpy(plan.table).float():
        coefficients = torch.cat([row, torch.tensor([max(1.0, params.cfg)])]).repeat(2, 1)
        latents = family.step(latents, coefficients, pairs, both, sides)
        latents[0] += row[samplers.D] * torch.randn(shape, generator=generator)


def quantized(model: ov.Model, seen: Seen) -> ov.Model:
    """The graph of the pass that was seen, in int8."""
    os.environ["NNCF_CI"] = "1"  # before the import: else each use is reported to its makers
    import nncf

    nncf.set_log_level(40)  # errors
    inputs = [{place: tensor.numpy() for place, tensor in enumerate(tensors)} for tensors, _ in seen.calls]
    kept = nncf.IgnoredScope(patterns=[f".*{re.escape(name)}/.*|.*{re.escape(name)}\\..*" for name in EXACT], validate=False)
    with redirect_stdout(io.StringIO()):  # of its bars
        return nncf.quantize(model, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(inputs), ignored_scope=kept)


def worst_error(graph: Any, seen: Seen) -> float:
    """How far the graph is off at most on the passes seen, relative. Raises Unsupported where that is not int8's rounding."""
    worst = max(((graph(*tensors) - out).norm() / out.norm()).item() for tensors, out in seen.calls)
    if not worst < MOST_ERROR:
        raise Unsupported(f"in int8 the denoiser differs from PyTorch's by {worst:.0%} of its size")
    return worst
