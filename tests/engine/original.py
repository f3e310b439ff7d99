"""Writes a diffusers folder of SDXL as one .safetensors file in the original layout, under the names that Stability's own code gives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def write_original(folder: Path, file: Path) -> Path:
    """The weights of a diffusers folder as one file."""
    unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae"))
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _weights(folder / "unet").items():
        tensors[f"model.diffusion_model.{unet_name(name, unet)}"] = tensor
    for name, tensor in _weights(folder / "vae").items():
        original = vae_name(name, len(vae["block_out_channels"]))
        # the original's attention is made of 1x1 convolutions
        is_conv = ".attn_1." in original and ".norm." not in original and tensor.ndim == 2
        tensors[f"first_stage_model.{original}"] = tensor[:, :, None, None] if is_conv else tensor
    first = _weights(folder / "text_encoder")
    tensors |= {f"conditioner.embedders.0.transformer.text_model.{name}": tensor for name, tensor in first.items()}
    tensors["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in open_clip(_weights(folder / "text_encoder_2")).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def unet_name(name: str, config: dict) -> str:
    """The original numbers all layers in a row: a block's resnets and its downsampler or upsampler."""
    per_block = config["layers_per_block"] + 1
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name):
        way, kind, rest = found[1], found[3], found[5]
        block, layer = int(found[2]), int(found[4])
        side = "input_blocks" if way == "down" else "output_blocks"
        index = (1 if way == "down" else 0) + block * per_block + (per_block - 1 if kind.endswith("samplers") else layer)
        if kind == "downsamplers":
            return f"{side}.{index}.0.{rest.replace('conv.', 'op.')}"
        if kind == "upsamplers":
            return f"{side}.{index}.{2 if 'Attn' in config['up_block_types'][block] else 1}.{rest}"
        return f"{side}.{index}.0.{_renamed(rest, RESNET)}" if kind == "resnets" else f"{side}.{index}.1.{rest}"
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        return f"middle_block.1.{found[3]}" if found[1] == "attentions" else f"middle_block.{2 * int(found[2])}.{_renamed(found[3], RESNET)}"
    return _renamed(name, UNET)


def vae_name(name: str, blocks: int) -> str:
    """The original counts the decoder's blocks from the picture's side."""
    if found := re.match(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)", name):
        coder, way, kind, layer, rest = found[1], found[2], found[4], found[5], found[6].replace("conv_shortcut", "nin_shortcut")
        block = int(found[3]) if way == "down" else blocks - 1 - int(found[3])
        return f"{coder}.{way}.{block}.block.{layer}.{rest}" if kind == "resnets" else f"{coder}.{way}.{block}.{way}sample.{rest}"
    if found := re.match(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        if found[2] == "attentions":
            return f"{found[1]}.mid.attn_1.{_renamed(found[4], VAE_ATTENTION)}"
        return f"{found[1]}.mid.block_{int(found[3]) + 1}.{found[4]}"
    return name.replace("conv_norm_out", "norm_out")


def open_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenCLIP keeps queries, keys and values in one matrix, and the projection as [width, out]."""
    out = {
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "ln_final.weight": weights["final_layer_norm.weight"],
        "ln_final.bias": weights["final_layer_norm.bias"],
        "text_projection": weights["text_projection.weight"].T,
        "logit_scale": torch.tensor(4.6),
    }
    for layer in range(1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layers."))):
        old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for part in ("weight", "bias"):
            out[f"{new}attn.in_proj_{part}"] = torch.cat([weights[f"{old}self_attn.{x}_proj.{part}"] for x in "qkv"])
            for ours, theirs in OPEN_CLIP.items():
                out[f"{new}{theirs}.{part}"] = weights[f"{old}{ours}.{part}"]
    return out


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """One component's tensors, without the prefix that some versions of transformers give a text model."""
    (file,) = folder.glob("*.safetensors")
    return {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}


def _renamed(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    return name
