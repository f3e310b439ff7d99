"""demo-xl: SDXL's nets, and what its denoiser learns from (noise prediction)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .nets import Nets, Sizes, make_encoder, make_vae
from .noise import UNCONDITIONAL, draw_noise, guide, mislead
from .pool import Batch


class XL(Nets):
    """UNet2DConditionModel with text_time conditioning; the unconditional is zeros, not an encoded ""."""

    name, family = "demo-xl", "sdxl"

    @classmethod
    def make(cls, sizes: Sizes, tokenizer: CLIPTokenizer) -> XL:
        text, text_2 = (make_encoder(kind, sizes, tokenizer) for kind in (CLIPTextModel, CLIPTextModelWithProjection))
        return cls(make_vae(sizes), make_unet(sizes), text, text_2, tokenizer)

    @classmethod
    def load(cls, folder: Path) -> XL:
        pipe: Any = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
        return cls(pipe.vae, pipe.unet, pipe.text_encoder, pipe.text_encoder_2, pipe.tokenizer)

    def pipeline(self) -> Any:
        return StableDiffusionXLPipeline(
            vae=self.vae, text_encoder=self.text, text_encoder_2=self.text_2, tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer, unet=self.denoiser, scheduler=make_scheduler(),
            force_zeros_for_empty_prompt=True, add_watermarker=False,
        )  # fmt: skip

    def loss(self, batch: Batch, generator: torch.Generator, guidance: float = 1.0) -> torch.Tensor:
        n, side = len(batch.captions), batch.side
        t, noise = draw_times(n, side, generator), draw_noise(batch.latents, side, generator)
        alpha = ALPHAS[t].view(-1, 1, 1, 1)
        hidden, _, pooled = self.encode(mislead(batch.captions, t < LATE, generator))
        keep = torch.rand(n, generator=generator) > UNCONDITIONAL
        noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * noise
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        found = self._noise(noisy, t, hidden, pooled, keep, side)
        if guidance != 1:
            with torch.no_grad():
                blind = self._noise(noisy, t, hidden, pooled, torch.zeros_like(keep), side)
            found = guide(found, blind, keep, guidance)
        return ((found - noise) ** 2 * weigh(alpha)).mean()

    def _noise(self, noisy: torch.Tensor, t: torch.Tensor, hidden: torch.Tensor, pooled: torch.Tensor, keep: torch.Tensor, side: int) -> torch.Tensor:
        """What the denoiser finds, with the words in the rows where `keep` [n] is true."""
        conditions = {
            "text_embeds": pooled * keep.view(-1, 1),
            "time_ids": torch.tensor([[side, side, 0, 0, side, side]] * len(t), dtype=torch.float32),
        }
        return self.denoiser(noisy, t, hidden * keep.view(-1, 1, 1), added_cond_kwargs=conditions).sample


def make_scheduler() -> Any:
    """SDXL's noise: scaled-linear betas, epsilon, leading spacing."""
    return EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="leading", steps_offset=1)


LATE = 200  # of 1000 timesteps; image to image at control_strength 0.9 begins at 100
ALPHAS = make_scheduler().alphas_cumprod


def make_unet(sizes: Sizes) -> Any:
    """Five levels: the first only sharpens, so that a picture of 512 pixels is planned on a grid of 32, and the lowest sees it
    whole. Attention where a thing spans few cells; SDXL's text_time conditioning."""
    return UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, block_out_channels=sizes.unet, layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        time_embedding_dim=sizes.time, transformer_layers_per_block=1, attention_head_dim=list(sizes.unet_heads),
        cross_attention_dim=2 * sizes.text, addition_embed_type="text_time", addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=sizes.text + 6 * 32, use_linear_projection=True,
    )  # fmt: skip


def draw_times(n: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """n of the 1000 timesteps. Large pictures lean to the noisy ones: detail is shared with smaller sizes, layout is not."""
    lean = 0.55 if side >= 512 else 0.7 if side >= 256 else 1.0
    return (1000 * torch.rand(n, generator=generator) ** lean).long().clamp(max=999)


def weigh(alpha: torch.Tensor) -> torch.Tensor:
    """Weight of the noise's squared error: min-SNR-5 (Hang et al. 2023), and more where nearly all is noise (SNR < 0.04),
    since there the caption alone decides and a small error in the noise is a large one in the picture."""
    snr = alpha / (1 - alpha)
    return snr.clamp(0.04, 5.0) / snr
