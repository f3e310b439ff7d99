"""A diffusers folder in the layout that OpenVINO GenAI's Text2ImagePipeline reads: `python benchmarks/genai.py FOLDER TARGET`.

optimum-intel does this too, but not beside our versions (2.2 wants transformers below 5.6 and huggingface-hub below 1.22), so
`openvino.convert_model` is called on the torch modules, with the names and the order of outputs that its exporter gives. All
weights stay f32.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import openvino as ov
import torch
from diffusers import DiffusionPipeline
from openvino_tokenizers import convert_tokenizer
from pipelines import load

CLIP_TOKENS, T5_TOKENS = 77, 256


class Text(torch.nn.Module):
    """Token ids [B, 77] -> the encoder's own two outputs, then the hidden states of every layer."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.encoder(input_ids, output_hidden_states=True)
        own = (out.text_embeds, out.last_hidden_state) if "text_embeds" in out else (out.last_hidden_state, out.pooler_output)
        return (*own, *out.hidden_states)


class UNet(torch.nn.Module):
    """SDXL's denoiser with flat arguments."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, sample, timestep, encoder_hidden_states, text_embeds, time_ids):  # type: ignore[no-untyped-def]
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.net(sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]


class Transformer(torch.nn.Module):
    """SD 3.x's denoiser. Where T5 is absent GenAI puts 77 zero tokens in its place and diffusers 256, which is another picture and more
    work, so the missing ones are added here."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, hidden_states, timestep, encoder_hidden_states, pooled_projections):  # type: ignore[no-untyped-def]
        text = torch.nn.functional.pad(encoder_hidden_states, (0, 0, 0, T5_TOKENS - CLIP_TOKENS))
        return self.net(hidden_states, text, pooled_projections, timestep, return_dict=False)[0]


class Decoder(torch.nn.Module):
    """Latents [B, C, h, w] -> pixels from -1 to 1."""

    def __init__(self, vae: torch.nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latent_sample, return_dict=False)[0]


def convert(source: Path, target: Path) -> None:
    """Writes the converted nets, tokenizers and configs of a diffusers folder (SDXL or SD 3.x without T5) into target."""
    pipe = load(source)
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        copy(source / name, target / name)
    ids = {"input_ids": torch.ones(2, CLIP_TOKENS, dtype=torch.long)}
    for end in ("", "_2"):
        encoder = f"text_encoder{end}"
        write(Text(getattr(pipe, encoder)), ids, shapes(ids), source / encoder, target / encoder)
        ov.save_model(convert_tokenizer(getattr(pipe, f"tokenizer{end}"), with_detokenizer=False), target / f"tokenizer{end}" / "openvino_tokenizer.xml")
    latent = torch.randn(2, pipe.vae.config.latent_channels, 32, 32)
    shape = [-1, latent.shape[1], -1, -1]
    write(Decoder(pipe.vae), {"latent_sample": latent}, {"latent_sample": shape}, source / "vae", target / "vae_decoder")
    if hasattr(pipe, "unet"):
        given = unet_inputs(pipe, latent)
        write(UNet(pipe.unet), given, shapes(given) | {"sample": shape}, source / "unet", target / "unet")
    else:
        given = transformer_inputs(pipe, latent)
        write(Transformer(pipe.transformer), given, shapes(given) | {"hidden_states": shape}, source / "transformer", target / "transformer")


def unet_inputs(pipe: DiffusionPipeline, latent: torch.Tensor) -> dict[str, torch.Tensor]:
    hidden, pooled = pipe.unet.config.cross_attention_dim, pipe.text_encoder_2.config.projection_dim
    return {
        "sample": latent, "timestep": torch.tensor([500]), "encoder_hidden_states": torch.randn(2, CLIP_TOKENS, hidden),
        "text_embeds": torch.randn(2, pooled), "time_ids": torch.tensor([[256.0, 256, 0, 0, 256, 256]] * 2),
    }  # fmt: skip


def transformer_inputs(pipe: DiffusionPipeline, latent: torch.Tensor) -> dict[str, torch.Tensor]:
    config = pipe.transformer.config
    text, pooled = torch.randn(2, 2 * CLIP_TOKENS, config.joint_attention_dim), torch.randn(2, config.pooled_projection_dim)
    return {"hidden_states": latent, "timestep": torch.tensor([500.0]), "encoder_hidden_states": text, "pooled_projections": pooled}


def shapes(given: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    """Any number of rows, the rest as it is."""
    return {name: [-1, *tensor.shape[1:]] for name, tensor in given.items()}


def write(module: torch.nn.Module, given: dict[str, torch.Tensor], loose: dict[str, list[int]], source: Path, target: Path) -> None:
    with torch.no_grad():
        model = ov.convert_model(module.eval(), example_input=given)
    model.reshape(loose)
    ov.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
    copy(source / "config.json", target / "config.json")


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
