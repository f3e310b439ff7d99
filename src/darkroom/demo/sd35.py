"""demo-3.5: SD 3.5's nets, and what its denoiser learns from (rectified flow; Esser et al. 2024, arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from .nets import Nets, Sizes, make_encoder, make_vae
from .noise import UNCONDITIONAL, draw_noise, guide, mislead
from .pool import Batch
from .vocabulary import LENGTH

T5_TOKENS = 256  # zeros that stand for T5's, as diffusers and the engine lay them below CLIP's
STRIDE = 8  # tokens of padding that one stands for in training
PATCH = 4  # latents: 32 pixels, so that a picture of 512 is planned on a grid of 16
GRID = 32  # patches a side at most
LATE = 0.3  # sigma; image to image at control_strength 0.9 begins at 0.25
SHIFT = 3.0  # of the sigmas when sampling


class SD35(Nets):
    """SD3Transformer2DModel with RMS norms on queries and keys, as 3.5 has them; no T5. The unconditional is an encoded ""."""

    name, family, cfg = "demo-3.5", "sd3", 4.0

    @classmethod
    def make(cls, sizes: Sizes, tokenizer: CLIPTokenizer) -> SD35:
        text, text_2 = (make_encoder(CLIPTextModelWithProjection, sizes, tokenizer) for _ in range(2))
        vae = make_vae(sizes)
        vae.register_to_config(shift_factor=0.0)
        return cls(vae, make_transformer(sizes), text, text_2, tokenizer)

    @classmethod
    def load(cls, folder: Path) -> SD35:
        pipe: Any = StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32, text_encoder_3=None, tokenizer_3=None)
        return cls(pipe.vae, pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, pipe.tokenizer)

    def pipeline(self) -> Any:
        return StableDiffusion3Pipeline(
            vae=self.vae, text_encoder=self.text, text_encoder_2=self.text_2, text_encoder_3=None, tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer, tokenizer_3=None, transformer=self.denoiser,
            scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT),
        )  # fmt: skip

    def loss(self, batch: Batch, generator: torch.Generator, guidance: float = 1.0) -> torch.Tensor:
        n, side = len(batch.captions), batch.side
        sigma, noise = draw_sigmas(n, side, generator), draw_noise(batch.latents, side, generator)
        captions = mislead(batch.captions, sigma < LATE, generator)
        keep = torch.rand(n, generator=generator) > UNCONDITIONAL
        captions = [caption if kept else "" for caption, kept in zip(captions, keep.tolist(), strict=True)]
        part = sigma.view(-1, 1, 1, 1)
        noisy = (1 - part) * batch.latents + part * noise
        found = self._velocity(noisy, sigma, captions, generator)
        if guidance != 1:
            with torch.no_grad():
                blind = self._velocity(noisy, sigma, [""] * n, generator)
            found = guide(found, blind, keep, guidance)
        return ((found - (noise - batch.latents)) ** 2).mean()

    def _velocity(self, noisy: torch.Tensor, sigma: torch.Tensor, captions: list[str], generator: torch.Generator) -> torch.Tensor:
        hidden, *pooled = self.encode(captions)
        words = 2 + max(len(ids) for ids in self.tokenizer(captions, add_special_tokens=False).input_ids)
        chosen, counts = choose_tokens(min(words, LENGTH), generator)
        hidden = torch.cat([hidden[:, chosen], torch.zeros_like(hidden[:, :1])], 1)
        with collapsed(self.denoiser, torch.cat([counts, torch.tensor([T5_TOKENS])])):
            return self.denoiser(noisy, hidden, torch.cat(pooled, -1), sigma * 1000, return_dict=False)[0]


def make_transformer(sizes: Sizes) -> Any:
    """A patch of 4 latents a side keeps a picture of 512 pixels at 256 tokens."""
    width = sizes.block_heads * sizes.head
    return SD3Transformer2DModel(
        sample_size=64, patch_size=PATCH, in_channels=4, out_channels=4, num_layers=sizes.blocks, attention_head_dim=sizes.head,
        num_attention_heads=sizes.block_heads, joint_attention_dim=2 * sizes.text, caption_projection_dim=width,
        pooled_projection_dim=2 * sizes.text, pos_embed_max_size=GRID, qk_norm="rms_norm",
    )  # fmt: skip


def draw_sigmas(n: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """n sigmas, shifted towards noise for large pictures as the paper shifts them (its equation 23). Half are logit-normal as
    the paper's; half uniform, since a logit-normal hardly visits the noisiest, where the caption alone decides."""
    normal, uniform = torch.randn(n, generator=generator).sigmoid(), torch.rand(n, generator=generator)
    sigma = torch.where(torch.rand(n, generator=generator) < 0.5, normal, uniform)
    shift = max(1.0, side / 170)
    return shift * sigma / (1 + (shift - 1) * sigma)


def choose_tokens(words: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of CLIP's 77 tokens a training step takes, and for how many each stands: the first `words` all, and of the padding,
    which is most of them and says little, one drawn from every STRIDE."""
    starts = torch.arange(words, LENGTH, STRIDE)
    counts = (LENGTH - starts).clamp(max=STRIDE)
    drawn = starts + (torch.rand(len(starts), generator=generator) * counts).long()
    return torch.cat([torch.arange(words), drawn]), torch.cat([torch.ones(words), counts])


@contextmanager
def collapsed(transformer: Any, counts: torch.Tensor) -> Iterator[None]:
    """Within it each text token j counts for counts[j] like it: the logarithm of their number on its attention logits gives
    what all would give together. Exact for T5's tokens, zeros without a position and so alike in every layer."""
    before = transformer.attn_processors
    transformer.set_attn_processor(_Counted(counts.log()))
    try:
        yield
    finally:
        transformer.set_attn_processor(before)


class _Counted:
    """diffusers' joint attention (image tokens, then text tokens) with a bias [text tokens] on the logits of the text tokens."""

    def __init__(self, bias: torch.Tensor):
        self.bias = bias

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        image = self._heads(attn, hidden_states, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k))
        added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text = self._heads(attn, encoder_hidden_states, added, (attn.norm_added_q, attn.norm_added_k))
        query, key, value = (torch.cat(pair, 2) for pair in zip(image, text, strict=True))
        bias = torch.cat([torch.zeros(image[1].shape[2]), self.bias]).view(1, 1, 1, -1)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out = out.transpose(1, 2).flatten(2)
        picture, words = out[:, : hidden_states.shape[1]], out[:, hidden_states.shape[1] :]
        return attn.to_out[0](picture), words if attn.context_pre_only else attn.to_add_out(words)

    @staticmethod
    def _heads(attn: Any, x: torch.Tensor, projections: tuple[Any, ...], norms: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
        query, key, value = (project(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for project in projections)
        return norms[0](query), norms[1](key), value
