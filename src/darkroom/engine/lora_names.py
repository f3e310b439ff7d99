"""The layers of a LoRA by the names of diffusers' modules, from the two formats and their dialects."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from darkroom.engine.lora_header import DIFFUSERS, KOHYA, Head, Unfit

OLD_LEAVES = {"to_out": "to_out.0"}
OLD_TEXT_LEAVES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
QKV = ("to_q", "to_k", "to_v")
ADDED_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")
SD3_BLOCK = re.compile(r"lora_unet_joint_blocks_(\d+)_(x|context)_block_(\w+)")
# what SD 3.x's authors call a layer of a block -> what diffusers calls it; several names share the rows of one matrix
SD3_LAYERS: dict[str, dict[str, tuple[str, ...]]] = {
    "x": {
        "attn_qkv": tuple(f"attn.{leaf}" for leaf in QKV), "attn_proj": ("attn.to_out.0",), "attn2_qkv": tuple(f"attn2.{leaf}" for leaf in QKV),
        "attn2_proj": ("attn2.to_out.0",), "mlp_fc1": ("ff.net.0.proj",), "mlp_fc2": ("ff.net.2",), "adaLN_modulation_1": ("norm1.linear",),
    },
    "context": {
        "attn_qkv": tuple(f"attn.{leaf}" for leaf in ADDED_QKV), "attn_proj": ("attn.to_add_out",), "mlp_fc1": ("ff_context.net.0.proj",),
        "mlp_fc2": ("ff_context.net.2",), "adaLN_modulation_1": ("norm1_context.linear",),
    },
}  # fmt: skip
SD3_OUTSIDE = {
    "x_embedder_proj": "pos_embed.proj", "context_embedder": "context_embedder", "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": "norm_out.linear", "t_embedder_mlp_0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder_mlp_2": "time_text_embed.timestep_embedder.linear_2", "y_embedder_mlp_0": "time_text_embed.text_embedder.linear_1",
    "y_embedder_mlp_2": "time_text_embed.text_embedder.linear_2",
}  # fmt: skip
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_"}

Nets = Mapping[str, Any]  # by diffusers' names of components


@dataclass(frozen=True)
class Layer:
    """A change of low rank r to one module: up(down(x)) is added to what it gives.

    down is [r, in] or [r, in, kh, kw], up [out, r] or [out, r, 1, 1]; alpha / r is part of up already.
    """

    down: torch.Tensor
    up: torch.Tensor


Layers = dict[str, Layer]


def kohya_layers(weights: Mapping[str, torch.Tensor]) -> Layers:
    """Layers by kohya's names (`lora_unet_...`), each weighed by its alpha / rank; without an alpha that is 1."""
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, weight in weights.items():
        found = KOHYA.fullmatch(name)
        assert found is not None
        parts[found[1]][found[2]] = weight
    out = {}
    for name, part in parts.items():
        down, up = part["lora_down.weight"], part["lora_up.weight"]
        alpha = part["alpha"].item() if "alpha" in part else down.shape[0]
        out[name] = Layer(down, up.float() * (alpha / down.shape[0]))
    return out


def diffusers_layers(weights: Mapping[str, torch.Tensor], head: Head) -> Layers:
    """Layers by `net.module`, each weighed by what PEFT noted beside them; without a note that is 1."""
    parts: dict[str, dict[bool, torch.Tensor]] = defaultdict(dict)
    for name, weight in weights.items():
        found = DIFFUSERS.fullmatch(name)
        assert found is not None
        parts[_today(found[1], found[2] == "_")][found[3] == "up" or found[4] == "B"] = weight
    return {name: Layer(part[False], part[True].float() * _noted_weight(name, part[False].shape[0], head.noted)) for name, part in parts.items()}


def sdxl_from_kohya(layers: Layers, nets: Nets) -> Layers:
    """kohya's names in diffusers' spelling, looked up, or in the original one of SDXL, by diffusers' own converter."""
    from diffusers import StableDiffusionXLPipeline

    known = _flat_names(nets)
    out = {known[name]: layer for name, layer in layers.items() if name in known}
    rest = {name: (layer.down, layer.up) for name, layer in layers.items() if name not in known}
    if rest:
        flat = {f"{name}.lora_{side}.weight": half for name, pair in rest.items() for side, half in zip(("down", "up"), pair, strict=True)}
        state, _ = StableDiffusionXLPipeline.lora_state_dict(flat, unet_config=nets["unet"].config)
        out |= diffusers_layers(state, Head((), "diffusers", 0))
    if len(out) != len(layers):
        raise Unfit("it names one layer twice, in two spellings")
    return out


def sd3_from_kohya(layers: Layers, nets: Nets) -> Layers:
    """kohya's names of SD 3.x, which are its authors': queries, keys and values are rows of one matrix there."""
    known, blocks = _flat_names(nets), len(nets["transformer"].transformer_blocks)
    parts = [part for name, layer in layers.items() for part in ([(known[name], layer)] if name in known else _sd3(name, layer, blocks))]
    out = dict(parts)
    if len(out) != len(parts):
        raise Unfit("it names one layer twice, in two spellings")
    return out


def _sd3(name: str, layer: Layer, blocks: int) -> Iterator[tuple[str, Layer]]:
    outside = SD3_OUTSIDE.get(name.removeprefix("lora_unet_"))
    found = SD3_BLOCK.fullmatch(name)
    if outside:
        yield f"transformer.{outside}", _swapped(layer) if outside == "norm_out.linear" else layer
    elif found and found[3] in SD3_LAYERS[found[2]]:
        modules = SD3_LAYERS[found[2]][found[3]]
        last = int(found[1]) == blocks - 1  # of whose text nothing goes on, so that its modulation is made like the one at the end
        layer = _swapped(layer) if last and modules == ("norm1_context.linear",) else layer
        if layer.up.shape[0] % len(modules):
            raise Unfit(f"its layer {name[:100]!a} must have rows for {len(modules)} matrices, and has {layer.up.shape[0]}")
        for module, up in zip(modules, layer.up.chunk(len(modules)), strict=True):
            yield f"transformer.transformer_blocks.{found[1]}.{module}", Layer(layer.down, up)
    else:
        raise Unfit(f"this model has no layer {name[:100]!a}")


def _swapped(layer: Layer) -> Layer:
    """(shift, scale) in the original, (scale, shift) in diffusers."""
    return Layer(layer.down, torch.cat(layer.up.chunk(2)[::-1]))


def _flat_names(nets: Nets) -> dict[str, str]:
    """What kohya's scripts call the modules of diffusers' and transformers' nets: underscores alone, and CLIP's in `text_model`,
    which it had in every version of transformers until lately."""
    out: dict[str, str] = {}
    for net, prefix in PREFIXES.items():
        for name, _ in nets[net].named_modules() if net in nets else ():
            flat = name.replace(".", "_").removeprefix("text_model_")
            out |= dict.fromkeys((f"{prefix}{flat}", f"{prefix}text_model_{flat}"), f"{net}.{name}")
    return out


def _today(name: str, old: bool) -> str:
    """The name of a module as PEFT writes it, from diffusers' older names (`attn1.processor.to_q_lora`)."""
    name = name.replace(".processor.", ".")
    stem, _, leaf = name.rpartition(".")
    leaves = OLD_TEXT_LEAVES if name.startswith("text_encoder") else OLD_LEAVES
    return f"{stem}.{leaves.get(leaf, leaf)}" if old else name


def _noted_weight(name: str, rank: int, noted: Mapping[str, Any]) -> float:
    """alpha / rank, or with rank-stabilised LoRA (arXiv 2312.03732) alpha / sqrt(rank), as PEFT noted them for a net."""
    net, _, module = name.partition(".")
    alpha = noted.get(f"{net}.lora_alpha")
    if alpha is None:
        return 1.0
    for pattern, other in (noted.get(f"{net}.alpha_pattern") or {}).items():
        if _means(pattern, module):
            alpha = other
            break
    return float(alpha) / (math.sqrt(rank) if noted.get(f"{net}.use_rslora") else rank)


def _means(pattern: str, module: str) -> bool:
    """Whether PEFT's pattern names this module: whole with `^` before it, else its end. Expressions are not run: they come
    from a file. Raises Unfit for one."""
    plain = pattern.removeprefix("^")
    if not re.fullmatch(r"[\w.]+", plain):
        raise Unfit(f"its note has {pattern[:60]!a} for the name of a layer")
    return module == plain or (plain == pattern and module.endswith(f".{plain}"))
