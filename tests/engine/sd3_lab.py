"""Small checkpoints of the real SD 3.x classes with random weights, as a diffusers folder and as one file in the original layout."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import torch

from darkroom.engine.sd3 import SD3
from darkroom.models.catalogue import resolve
from darkroom.types import Params

from .conftest import Lab

STATIC = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
DYNAMIC = STATIC | {"shift": 1.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
SD3_MEDIUM: dict[str, Any] = {}
SD35_MEDIUM = {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}
SD35_LARGE = {"qk_norm": "rms_norm"}
WORDS = ["red", "apple", "blue", "background", "green", "circle", "star", "small", "cat", "dog"]


def make_sd3(folder: Path, scheduler: dict = STATIC, t5: bool = True, vae: dict[str, Any] | None = None, **transformer: Any) -> Path:
    """A diffusers folder: a transformer of 0.1 M parameters, two CLIP encoders of different widths, T5 or none, the VAE with 16 channels."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTokenizer, T5Config, T5EncoderModel

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(Path(str(resolve("demo-xl", folder).path)) / "tokenizer")
    net = SD3Transformer2DModel(**{
        "sample_size": 32, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 64, "caption_projection_dim": 32, "pooled_projection_dim": 56, "pos_embed_max_size": 64, **transformer,
    })  # fmt: skip
    autoencoder = AutoencoderKL(**{
        "block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 16, "force_upcast": True,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False, **(vae or {}),
    })  # fmt: skip
    t5_tokenizer = _t5_tokenizer()
    config = T5Config(
        vocab_size=len(t5_tokenizer), d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", is_encoder_decoder=False
    )
    pipe = StableDiffusion3Pipeline(
        transformer=net, vae=autoencoder, scheduler=FlowMatchEulerDiscreteScheduler.from_config(scheduler),
        text_encoder=_clip(tokenizer, 32), text_encoder_2=_clip(tokenizer, 24), tokenizer=tokenizer, tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(config) if t5 else None, tokenizer_3=t5_tokenizer if t5 else None,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def _clip(tokenizer: Any, width: int) -> Any:
    """Its projection is the identity, as that of SD 3.x's first encoder is in the original layout."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    net = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, projection_dim=width,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip
    torch.nn.init.eye_(net.text_projection.weight)
    return net


def _t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(letter, -6.0) for letter in string.ascii_lowercase] + [(f"▁{word}", -2.0) for word in WORDS]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


class SD3Lab(Lab):
    """One SD 3.x checkpoint, opened by diffusers and by us."""

    def open(self, folder: Path) -> tuple[Any, Any, Any]:
        from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline

        without_t5 = {} if (folder / "text_encoder_3").exists() else {"text_encoder_3": None, "tokenizer_3": None}
        pipe = StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32, **without_t5)
        return SD3.load(folder, torch.device("cpu"), torch.float32), pipe, StableDiffusion3Img2ImgPipeline(**pipe.components)

    def image_arguments(self, params: Params) -> dict[str, Any]:
        return super().image_arguments(params) | {"height": params.height, "width": params.width}


def original_layout(pipe: Any, encoders: bool = True) -> dict[str, torch.Tensor]:
    """The weights of a pipeline by the names that SD 3.x's authors publish them under; without `encoders` as SD 3.5's files are."""
    weights = {f"model.diffusion_model.{k}": v for k, v in _transformer(pipe.transformer).items()}
    weights |= {f"first_stage_model.{_vae_name(k)}": _as_convolution(k, v) for k, v in pipe.vae.state_dict().items()}
    if encoders:
        named = {"clip_l": pipe.text_encoder, "clip_g": pipe.text_encoder_2, "t5xxl": pipe.text_encoder_3}
        weights |= {f"text_encoders.{name}.transformer.{k}": v for name, net in named.items() if net is not None for k, v in net.state_dict().items()}
    return {k: v.clone().contiguous() for k, v in weights.items()}


RENAMED = [
    (r"^pos_embed\.pos_embed$", "pos_embed"),
    (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
    (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
    (r"^proj_out", "final_layer.linear"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^transformer_blocks\.(\d+)\.norm1_context\.linear", r"joint_blocks.\1.context_block.adaLN_modulation.1"),
    (r"^transformer_blocks\.(\d+)\.norm1\.linear", r"joint_blocks.\1.x_block.adaLN_modulation.1"),
    (r"^transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj", r"joint_blocks.\1.context_block.mlp.fc1"),
    (r"^transformer_blocks\.(\d+)\.ff_context\.net\.2", r"joint_blocks.\1.context_block.mlp.fc2"),
    (r"^transformer_blocks\.(\d+)\.ff\.net\.0\.proj", r"joint_blocks.\1.x_block.mlp.fc1"),
    (r"^transformer_blocks\.(\d+)\.ff\.net\.2", r"joint_blocks.\1.x_block.mlp.fc2"),
    (r"^transformer_blocks\.(\d+)\.attn\.norm_added_([qk])", r"joint_blocks.\1.context_block.attn.ln_\2"),
    (r"^transformer_blocks\.(\d+)\.(attn2?)\.norm_([qk])", r"joint_blocks.\1.x_block.\2.ln_\3"),
    (r"^transformer_blocks\.(\d+)\.attn\.to_add_out", r"joint_blocks.\1.context_block.attn.proj"),
    (r"^transformer_blocks\.(\d+)\.(attn2?)\.to_out\.0", r"joint_blocks.\1.x_block.\2.proj"),
]
QUERIES = [
    (r"^transformer_blocks\.(\d+)\.attn\.add_q_proj", r"joint_blocks.\1.context_block.attn.qkv", ("add_q_proj", "add_k_proj", "add_v_proj")),
    (r"^transformer_blocks\.(\d+)\.(attn2?)\.to_q", r"joint_blocks.\1.x_block.\2.qkv", ("to_q", "to_k", "to_v")),
]


def _transformer(net: Any) -> dict[str, torch.Tensor]:
    state, last = net.state_dict(), len(net.transformer_blocks) - 1
    out = {}
    for name, weight in state.items():
        for pattern, new, parts in QUERIES:
            if re.search(pattern, name):
                out[re.sub(pattern, new, name)] = torch.cat([state[name.replace(parts[0], part)] for part in parts])
        if not re.search(r"\.(to_[qkv]|add_[qkv]_proj)\.", name):
            # these two are (shift, scale) in the original and (scale, shift) in diffusers
            swap = name.startswith(("norm_out.linear", f"transformer_blocks.{last}.norm1_context."))
            out[renamed(name, RENAMED)] = torch.cat(weight.chunk(2)[::-1]) if swap else weight
    return out


VAE_RENAMED = [
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.mid_block\.attentions\.0\.group_norm", ".mid.attn_1.norm"),
    (r"\.mid_block\.attentions\.0\.to_([qkv])", r".mid.attn_1.\1"),
    (r"\.mid_block\.attentions\.0\.to_out\.0", ".mid.attn_1.proj_out"),
    (r"\.mid_block\.resnets\.0", ".mid.block_1"),
    (r"\.mid_block\.resnets\.1", ".mid.block_2"),
    (r"\.down_blocks\.(\d)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d)\.resnets\.", lambda found: f".up.{3 - int(found[1])}.block."),
    (r"\.up_blocks\.(\d)\.upsamplers\.0\.", lambda found: f".up.{3 - int(found[1])}.upsample."),
    (r"conv_shortcut", "nin_shortcut"),
]


def _vae_name(name: str) -> str:
    for pattern, new in VAE_RENAMED:
        name = re.sub(pattern, new, name)
    return name


def _as_convolution(name: str, weight: torch.Tensor) -> torch.Tensor:
    """The original's attention is made of 1 x 1 convolutions."""
    return weight[:, :, None, None] if "attentions" in name and weight.dim() == 2 else weight


def renamed(name: str, table: list[tuple[str, str]]) -> str:
    for pattern, new in table:
        if re.search(pattern, name):
            return re.sub(pattern, new, name)
    return name
