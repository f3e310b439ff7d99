"""The four nets of demo-xl and its scheduler: Stable Diffusion XL's own classes with small sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .vocabulary import LENGTH


@dataclass(frozen=True)
class Sizes:
    """How large the nets are. TINY is for tests of the training program."""

    text: int = 64
    text_layers: int = 3
    unet: tuple[int, ...] = (64, 96, 160, 160)
    heads: tuple[int, ...] = (2, 3, 5, 5)
    vae: tuple[int, ...] = (8, 16, 32, 64)


FULL = Sizes()
TINY = Sizes(text=16, text_layers=2, unet=(8, 16, 16, 16), heads=(1, 2, 2, 2), vae=(4, 4, 8, 8))


@dataclass
class Nets:
    """What a pipeline is made of: AutoencoderKL, UNet2DConditionModel, CLIPTextModel, CLIPTextModelWithProjection and their
    CLIPTokenizer. (Any, since a type checker does not see through diffusers' lazy modules.)"""

    vae: Any
    unet: Any
    text: Any
    text_2: Any
    tokenizer: Any

    def trained(self) -> list[torch.nn.Parameter]:
        """What the denoiser's training moves: UNet and text encoders, in a fixed order."""
        return [p for net in (self.unet, self.text, self.text_2) for p in net.parameters()]

    def pipeline(self) -> Any:
        """Diffusers' own pipeline around these very nets."""
        return StableDiffusionXLPipeline(
            vae=self.vae, text_encoder=self.text, text_encoder_2=self.text_2, tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer, unet=self.unet, scheduler=make_scheduler(),
            force_zeros_for_empty_prompt=True, add_watermarker=False,
        )  # fmt: skip


def make_scheduler() -> Any:
    """SDXL's noise: scaled-linear betas, epsilon, leading spacing."""
    return EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="leading", steps_offset=1)


def make_vae(sizes: Sizes) -> Any:
    """[n, 3, h, w] <-> [n, 4, h/8, w/8]. One norm group: smaller groups would normalise absolute colour away."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=sizes.vae, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=1,
        mid_block_add_attention=False,
    )  # fmt: skip


def make_unet(sizes: Sizes) -> Any:
    """Four levels, so that the lowest sees a whole thing also at 512 pixels; attention on the middle two and at the bottom;
    SDXL's text_time conditioning."""
    return UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, block_out_channels=sizes.unet, layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=1, attention_head_dim=list(sizes.heads), cross_attention_dim=2 * sizes.text,
        addition_embed_type="text_time", addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=sizes.text + 6 * 32, use_linear_projection=True,
    )  # fmt: skip


def make_text_config(sizes: Sizes, tokenizer: CLIPTokenizer) -> Any:
    """Both encoders': narrow and shallow, with CLIP's 77 positions."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=sizes.text, intermediate_size=4 * sizes.text,
        num_hidden_layers=sizes.text_layers, num_attention_heads=4, max_position_embeddings=LENGTH,
        projection_dim=sizes.text, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def make_nets(sizes: Sizes, tokenizer: CLIPTokenizer) -> Nets:
    """Untrained nets, drawn from torch's global generator."""
    config = make_text_config(sizes, tokenizer)
    text, text_2 = CLIPTextModel(config), CLIPTextModelWithProjection(config)
    for encoder in (text, text_2):
        widen_embeddings(encoder, sizes.text)
    return Nets(make_vae(sizes), make_unet(sizes), text, text_2, tokenizer)


def widen_embeddings(encoder: torch.nn.Module, width: int) -> None:
    """SDXL reads penultimate hidden states without a norm: with CLIP's 0.02 the UNet would hardly hear them."""
    deviations = {"token_embedding": 1.0, "position_embedding": 0.3, "text_projection": width**-0.5}
    for name, p in encoder.named_parameters():
        for part, deviation in deviations.items():
            if part in name:
                torch.nn.init.normal_(p, std=deviation)


def load_nets(folder: Path) -> Nets:
    """The nets of a diffusers folder, as fp32."""
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
    return Nets(pipe.vae, pipe.unet, pipe.text_encoder, pipe.text_encoder_2, pipe.tokenizer)


@torch.no_grad()
def retokenize(nets: Nets, tokenizer: CLIPTokenizer) -> None:
    """Give `nets` another vocabulary: what both have keeps its embedding, what is new begins untrained."""
    old, new = nets.tokenizer.get_vocab(), tokenizer.get_vocab()
    if old == new:
        return
    pieces = sorted(new, key=lambda piece: new[piece])
    for encoder in (nets.text, nets.text_2):
        table = encoder.get_input_embeddings().weight
        rows = [table[old[piece]] if piece in old else torch.randn(table.shape[1]) for piece in pieces]
        embedding = torch.nn.Embedding(len(new), table.shape[1])
        embedding.weight.copy_(torch.stack(rows))
        encoder.set_input_embeddings(embedding)
        for name, value in make_text_config(FULL, tokenizer).to_dict().items():
            if name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"):
                setattr(encoder.config, name, value)
    nets.tokenizer = tokenizer
