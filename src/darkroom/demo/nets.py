"""The nets of a demo checkpoint: Stable Diffusion's own classes with small sizes. What the families share; `xl.py` and
`sd35.py` have the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTokenizer

from .pool import Batch
from .vocabulary import LENGTH

PREFIX = "text_model."  # before the names of a text encoder's weights where it has a projection, and not where it has none
PROJECTION = "text_projection.weight"


@dataclass(frozen=True)
class Sizes:
    """How large the nets are. TINY is for tests of the training program."""

    text: int = 64
    text_layers: int = 3
    unet: tuple[int, ...] = (48, 64, 96, 160, 160)
    unet_heads: tuple[int, ...] = (2, 2, 3, 5, 5)
    time: int = 256
    blocks: int = 8
    block_heads: int = 6
    head: int = 32
    vae: tuple[int, ...] = (8, 16, 32, 64)


FULL = Sizes()
TINY = Sizes(
    text=16, text_layers=2, unet=(8, 8, 16, 16, 16), unet_heads=(1, 1, 2, 2, 2), time=32, blocks=2, block_heads=2, head=8, vae=(4, 4, 8, 8)
)  # fmt: skip


@dataclass
class Nets(ABC):
    """What a pipeline is made of: AutoencoderKL, the denoiser, two CLIP text encoders and their CLIPTokenizer. (Any, since a
    type checker does not see through diffusers' lazy modules.)"""

    vae: Any
    denoiser: Any
    text: Any
    text_2: Any
    tokenizer: Any

    name: ClassVar[str]
    family: ClassVar[str]
    cfg: ClassVar[float] = 7.0  # with which it draws best, by the judge

    @classmethod
    @abstractmethod
    def make(cls, sizes: Sizes, tokenizer: CLIPTokenizer) -> Nets:
        """Untrained nets, drawn from torch's global generator."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Nets:
        """The nets of a diffusers folder, as fp32."""

    @abstractmethod
    def pipeline(self) -> Any:
        """Diffusers' own pipeline around these very nets."""

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator, guidance: float = 1.0) -> torch.Tensor:
        """How far the denoiser is off on a batch, under this guidance (1: by itself): a scalar."""

    def trained(self) -> list[torch.nn.Parameter]:
        """What the denoiser's training moves: it and the text encoders, in a fixed order."""
        return [p for net in (self.denoiser, self.text, self.text_2) for p in net.parameters()]

    def take_text(self, folder: Path) -> None:
        """Take the text encoders' weights from another checkpoint of this language. (SDXL's first has no projection: ours stays.)"""
        for encoder, part in ((self.text, "text_encoder"), (self.text_2, "text_encoder_2")):
            theirs = {name.removeprefix(PREFIX): weight for name, weight in load_file(folder / part / "model.safetensors").items()}
            ours = encoder.state_dict()
            assert {name.removeprefix(PREFIX) for name in ours} - theirs.keys() <= {PROJECTION}
            encoder.load_state_dict({name: theirs.get(name.removeprefix(PREFIX), weight) for name, weight in ours.items()})

    def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hidden states [n, 77, 2 x text width] and each encoder's pooled [n, text width]."""
        words = self.tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        a, b = (encoder(words.input_ids, output_hidden_states=True) for encoder in (self.text, self.text_2))
        return torch.cat([a.hidden_states[-2], b.hidden_states[-2]], -1), a[0], b[0]


def make_vae(sizes: Sizes) -> Any:
    """[n, 3, h, w] <-> [n, 4, h/8, w/8]. One norm group: smaller groups would normalise absolute colour away."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=sizes.vae, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=1,
        mid_block_add_attention=False,
    )  # fmt: skip


def make_encoder(kind: Any, sizes: Sizes, tokenizer: CLIPTokenizer) -> Any:
    """A text encoder of this class: narrow and shallow, with CLIP's 77 positions."""
    encoder = kind(make_text_config(sizes, tokenizer))
    widen_embeddings(encoder, sizes.text)
    return encoder


def make_text_config(sizes: Sizes, tokenizer: CLIPTokenizer) -> Any:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=sizes.text, intermediate_size=4 * sizes.text,
        num_hidden_layers=sizes.text_layers, num_attention_heads=4, max_position_embeddings=LENGTH,
        projection_dim=sizes.text, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def widen_embeddings(encoder: torch.nn.Module, width: int) -> None:
    """Both families read penultimate hidden states without a norm: with CLIP's 0.02 the denoiser would hardly hear them."""
    deviations = {"token_embedding": 1.0, "position_embedding": 0.3, "text_projection": width**-0.5}
    for name, p in encoder.named_parameters():
        for part, deviation in deviations.items():
            if part in name:
                torch.nn.init.normal_(p, std=deviation)


@torch.no_grad()
def retokenize(nets: Nets, tokenizer: CLIPTokenizer) -> None:
    """Give `nets` another vocabulary: what both have keeps its embedding, what is new begins untrained."""
    old, new = nets.tokenizer.get_vocab(), tokenizer.get_vocab()
    nets.tokenizer = tokenizer  # also where the words are the same: one read from a folder carries marks of how it was read
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
