"""The checkpoints that are measured: the two in the box, and SDXL's UNet with random weights at half and at full width."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

DEMO = Path(__file__).parent.parent / "src" / "darkroom" / "demo"
# SDXL's own text encoders: width, layers, heads, activation
ENCODERS = {"text_encoder": (768, 12, 12, "quick_gelu"), "text_encoder_2": (1280, 32, 20, "gelu")}

PREFIXES = {
    "unet": "unet.", "vae": "vae.", "text_encoder": "cond_stage_model.transformer.", "text_encoder_2": "cond_stage_model.1.transformer.",
}  # fmt: skip
# SDXL's own autoencoder
VAE = {
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "scaling_factor": 0.13025, "sample_size": 1024,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip


def unet_config(part: int) -> dict:
    """stable-diffusion-xl-base-1.0's, with a `part`-th of its channels and heads."""
    return {
        "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "transformer_layers_per_block": [1, 2, 10],
        "block_out_channels": [320 // part, 640 // part, 1280 // part], "attention_head_dim": [5, 10 // part, 20 // part], "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip


def at(name: str, work: Path) -> Path:
    """The folder of `demo-xl`, `demo-3.5`, `half-xl` or `full-xl`; the last two are written into `work` where they are not there yet."""
    if name.startswith("demo"):
        return DEMO / name
    folder = work / name
    if not (folder / "darkroom.json").exists():
        write(folder, 2 if name == "half-xl" else 1)
    return folder


def write(folder: Path, part: int) -> None:
    """fp16, seed 0. Tokenizers and scheduler are demo-xl's. At half width so is the autoencoder, and the text encoders have two layers; at full
    width all is of SDXL's size. Fewer steps than ten may be asked for."""
    shutil.copytree(DEMO / "demo-xl", folder, ignore=shutil.ignore_patterns("unet", "text_encoder*", "darkroom.json"), dirs_exist_ok=True)
    torch.manual_seed(0)
    save(UNet2DConditionModel.from_config(unet_config(part)), folder / "unet")
    own = json.loads((DEMO / "demo-xl" / "text_encoder" / "config.json").read_text())
    for name, (width, layers, heads, act) in ENCODERS.items():
        config = CLIPTextConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers if part == 1 else 2, num_attention_heads=heads, hidden_act=act,
            projection_dim=width, vocab_size=49408, bos_token_id=own["bos_token_id"], eos_token_id=own["eos_token_id"], pad_token_id=own["pad_token_id"],
        )  # fmt: skip
        save((CLIPTextModel if name == "text_encoder" else CLIPTextModelWithProjection)(config), folder / name)
    if part == 1:
        shutil.rmtree(folder / "vae")
        save(AutoencoderKL.from_config(VAE), folder / "vae")
    (folder / "darkroom.json").write_text(json.dumps({"name": folder.name, "family": "sdxl", "min_steps": 1, "license": "Apache-2.0"}))


def renamed(name: str) -> str:
    """transformers 5 leaves `text_model.` out of CLIPTextModel's names."""
    return f"text_model.{name}" if name.startswith(("embeddings.", "encoder.layers.", "final_layer_norm.")) else name


def single_file(folder: Path) -> Path:
    """A folder's weights in one .safetensors beside it, by names that stable-diffusion.cpp knows (of a folder it misses the second encoder)."""
    file = folder.with_suffix(".safetensors")
    if not file.exists():
        tensors = {}
        for part, prefix in PREFIXES.items():
            for path in (folder / part).glob("*.safetensors"):
                tensors |= {prefix + renamed(name): tensor for name, tensor in load_file(path).items()}
        save_file(tensors, file)
    return file


def save(module: torch.nn.Module, folder: Path) -> None:
    module.half().save_pretrained(folder)
