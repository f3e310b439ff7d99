"""Random LoRAs as both formats write them, and diffusers' own way to lay them over a pipeline."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from darkroom.types import Lora

from .original import unet_name
from .sd3_lab import QUERIES, RENAMED, renamed

Change = tuple[torch.Tensor, torch.Tensor, float]  # down, up, alpha
ATTENTION = r".*\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out|q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


def changes(pipe: Any, nets: tuple[str, ...], seed: int, alpha: float, wanted: str = ATTENTION, rank: int = 4, size: float = 0.3) -> dict[str, Change]:
    """Random layers for the modules of these nets whose names match, by `net.module`."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for net in nets:
        for name, module in getattr(pipe, net).named_modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and re.fullmatch(wanted, name):
                shape = module.weight.shape
                down, up = (torch.randn(sides, generator=generator) * size for sides in ((rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2))))
                out[f"{net}.{name}"] = (down, up, alpha)
    return out


def write_diffusers(pipe: Any, layers: dict[str, Change], file: Path, noted: bool = True) -> Path:
    """By `save_lora_weights`, with PEFT's note of alpha; without a note the weight of alpha is in the layers themselves."""
    state: dict[str, dict[str, torch.Tensor]] = {}
    notes = {}
    for name, (down, up, alpha) in layers.items():
        net, _, module = name.partition(".")
        weight = 1 if noted else alpha / len(down)
        state.setdefault(net, {}).update({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up * weight})
        notes[f"{net}_lora_adapter_metadata"] = {"r": len(down), "lora_alpha": alpha, "target_modules": sorted(m for m in _modules(layers, net))}
    named = {f"{net}_lora_layers": part for net, part in state.items()}
    pipe.save_lora_weights(file.parent, **named, weight_name=file.name, **(notes if noted else {}))
    return file


def _modules(layers: dict[str, Change], net: str) -> list[str]:
    return [name.removeprefix(f"{net}.") for name in layers if name.startswith(f"{net}.")]


def write_kohya(layers: dict[str, Change], file: Path, spelling: Callable[[str], str], alphas: bool = True) -> Path:
    """As sd-scripts write it: flat names, and an alpha for each layer."""
    state = {}
    for name, (down, up, alpha) in layers.items():
        flat = spelling(name)
        state |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        if alphas:
            state[f"{flat}.alpha"] = torch.tensor(float(alpha))
    save_file({key: weight.clone().contiguous() for key, weight in state.items()}, file)
    return file


def diffusers_spelling(name: str) -> str:
    """`lora_unet_down_blocks_...`, as kohya's scripts call the layers of diffusers' nets."""
    net, _, module = name.partition(".")
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_"}[net]
    if net in ("text_encoder", "text_encoder_2") and not module.startswith("text_"):
        module = f"text_model.{module}"
    return prefix + module.replace(".", "_")


def original_spelling(config: Any) -> Callable[[str], str]:
    """`lora_unet_input_blocks_...`, as they call those of SDXL's own."""
    def spelling(name: str) -> str:
        if not name.startswith("unet."):
            return diffusers_spelling(name)
        return "lora_unet_" + unet_name(f"{name.removeprefix('unet.')}.weight", config).removesuffix(".weight").replace(".", "_")

    return spelling


def sd3_original(layers: dict[str, Change], blocks: int) -> dict[str, Change]:
    """The same change by the names of SD 3.x's authors, whose matrices hold queries, keys and values: the ranks of the three stand
    side by side in one layer."""
    out: dict[str, Change] = {}
    for name, (down, up, alpha) in layers.items():
        net, _, module = name.partition(".")
        if net != "transformer":
            out[diffusers_spelling(name)] = (down, up, alpha)
            continue
        group = next(((pattern, new, leaves) for pattern, new, leaves in QUERIES if re.search(pattern, module)), None)
        if group:
            pattern, new, leaves = group
            three = [layers[f"transformer.{module.replace(leaves[0], leaf)}"] for leaf in leaves]
            down, up = torch.cat([one[0] for one in three]), torch.block_diag(*[one[1] for one in three])
            out[_flat(re.sub(pattern, new, module))] = (down, up, 3 * alpha)
        elif not re.search(r"\.(to_[qkv]|add_[qkv]_proj)$", module):
            swap = module in ("norm_out.linear", f"transformer_blocks.{blocks - 1}.norm1_context.linear")
            out[_flat(renamed(module, RENAMED))] = (down, torch.cat(up.chunk(2)[::-1]) if swap else up, alpha)
    return out


def _flat(name: str) -> str:
    return "lora_unet_" + name.replace(".", "_")


@contextmanager
def laid_by_diffusers(pipe: Any, loras: tuple[Lora, ...], files: dict[str, Path]) -> Iterator[None]:
    """`load_lora_weights` and `set_adapters`."""
    for lora in loras:
        pipe.load_lora_weights(str(files[lora.name]), adapter_name=lora.name)
    pipe.set_adapters([lora.name for lora in loras], [lora.scale for lora in loras])
    try:
        yield
    finally:
        pipe.unload_lora_weights()
