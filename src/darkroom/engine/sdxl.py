"""SDXL: UNet2DConditionModel with text_time conditioning, two CLIP text encoders, AutoencoderKL."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from darkroom.engine import samplers
from darkroom.engine.family import Plan, Text
from darkroom.engine.lora_names import Layers, sdxl_from_kohya
from darkroom.engine.passes import STEP, Decode, Encode, KeyedUNet, Pass, Run, StepPass, UNet, keyable
from darkroom.engine.prompts import cut_note, token_ids
from darkroom.engine.sigmas import SigmaSchedule
from darkroom.engine.weights import names_in, open_nets, open_single_file, prediction_in, refuse_gaps, refuse_unknown
from darkroom.errors import Unsupported
from darkroom.types import Params

NETS: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}

# A name from each net of a file in the original layout, and the one of the size conditioning that SD 1 and 2 lack.
ORIGINAL_KEYS = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "model.diffusion_model.label_emb.0.0.weight",
    "first_stage_model.decoder.conv_in.weight",
    "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
    "conditioner.embedders.1.model.token_embedding.weight",
)


class SDXL:
    """The nets of one SDXL checkpoint, run by eager PyTorch, the reference, unless `through` is told another way."""

    name = "sdxl"

    def __init__(
        self, nets: dict[str, Any], tokenizers: list[Any], schedule: SigmaSchedule, device: torch.device, dtype: torch.dtype,
        zeros_for_empty: bool = True,
    ):  # fmt: skip
        self.dtype, self.device, self.schedule = dtype, device, schedule
        self._zeros_for_empty = zeros_for_empty
        self._tokenizers = tokenizers
        self.unet, self.vae = nets["unet"], nets["vae"]
        self._encoders = [nets["text_encoder"], nets["text_encoder_2"]]
        self._nets = nets
        _refuse(self.unet.config, self.vae.config)
        # fp16 overflows in SDXL's autoencoder: NaN, a black picture
        self._vae_dtype = torch.float32 if self.vae.config.force_upcast else dtype
        if self.vae.dtype != self._vae_dtype:
            self.vae.to(self._vae_dtype)
        for net in nets.values():
            net.to(device).eval().requires_grad_(False)
        for net in (self.unet, self.vae):
            net.to(memory_format=torch.channels_last)
        self.latent_channels = self.unet.config.in_channels
        self.latent_scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._shift, self._scale = _latent_statistics(self.vae.config, device)
        self._keyed = KeyedUNet(self.unet) if keyable(self.unet) else None
        self._decoder = Decode(self.vae)
        self._modules = {"unet": UNet(self.unet), "encode": Encode(self.vae), "decode": self._decoder}
        self._runs: dict[str, Run] = dict(self._modules)

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype, tell: Callable[[float], None] = lambda part: None) -> SDXL:
        """From a diffusers folder, weights by memory map. Raises Unsupported for what cannot be honoured."""
        index, schedule, tokenizers = _read_configs(folder)
        nets, reports = open_nets(folder, NETS, dtype, tell)
        _refuse(nets["unet"].config, nets["vae"].config)  # first: a config that cannot be honoured may be why weights are missing
        for name, report in reports.items():
            refuse_gaps(name, report["missing_keys"])
            refuse_unknown(name, report["unexpected_keys"])
        return cls(nets, tokenizers, schedule, device, dtype, index.get("force_zeros_for_empty_prompt", True))

    @staticmethod
    def check_single_file(file: Path) -> None:
        """Refuse by its header alone what is no whole file of SDXL, before gigabytes are read or configs are brought for it."""
        names = names_in(file)
        lacking = [key for key in ORIGINAL_KEYS if key not in names]
        if lacking:
            raise Unsupported(f"{file.name} is not an SDXL checkpoint in the original layout: it has no {lacking[0]}")

    @classmethod
    def load_single_file(cls, file: Path, config: Path, device: torch.device, dtype: torch.dtype) -> SDXL:
        """From one .safetensors file in SDXL's original layout; `config` is a folder with the configs and tokenizers.

        Raises Unsupported for what cannot be honoured. Asks nothing of the hub.
        """
        from diffusers import StableDiffusionXLPipeline

        index, schedule, tokenizers = _read_configs(config, prediction_in(file))
        known = {"tokenizer": tokenizers[0], "tokenizer_2": tokenizers[1], "add_watermarker": False}
        _, nets = open_single_file(StableDiffusionXLPipeline, NETS, file, config, dtype, **known)
        return cls(nets, tokenizers, schedule, device, dtype, index.get("force_zeros_for_empty_prompt", True))

    def nets(self) -> dict[str, torch.nn.Module]:
        return self._nets

    def passes(self) -> dict[str, Pass]:
        unet, modules = self.unet.config, self._modules
        text = self._keyed.width if self._keyed else unet.cross_attention_dim
        pooled = unet.projection_class_embeddings_input_dim - 6 * unet.addition_time_embed_dim
        rows, tokens = -1, self._tokenizers[0].model_max_length
        return {
            STEP: StepPass.around(self._keyed or modules["unet"], unet.in_channels, 1, (rows, tokens, text), (rows, pooled), (rows, 2)),
            "decode": Pass(modules["decode"], ((rows, self.latent_channels, -1, -1),)),
            "encode": Pass(modules["encode"], ((1, 3, -1, -1),), self.latent_scale),
        }  # fmt: skip

    def through(self, runs: Mapping[str, Run]) -> SDXL:
        other = copy.copy(self)
        other._runs = {**self._runs, **runs}
        return other

    def denoiser(self) -> tuple[str, torch.nn.Module]:
        return "unet", self._modules["unet"]

    def plan(self, params: Params) -> Plan:
        """SDXL runs floor(steps * strength) of the steps, computed in decimal (a float makes 28 of 100 * 0.29), at least one."""
        steps, control = params.steps, params.control_strength
        if control is None or control == 0:
            table, scale = self.schedule.plan(steps)
            return Plan(table, None, scale)
        run = max(1, int(steps * (1 - Decimal(control)))) if control < 1 else 0
        start = steps - run
        if run == 0:
            return Plan(self.schedule.plan(steps, steps - 1)[0][:0], 1.0, 0.0)
        return Plan(self.schedule.plan(steps, start)[0], 1.0, self.schedule.start_sigma(steps, start))

    def encode_prompt(self, prompt: str, like: Text | None = None) -> Text:
        if not prompt and like is not None and self._zeros_for_empty:
            return Text(torch.zeros_like(like.hidden), torch.zeros_like(like.pooled))
        hidden, pooled = [], None
        for tokenizer, encoder in zip(self._tokenizers, self._encoders, strict=True):
            out = encoder(token_ids(tokenizer, tokenizer.model_max_length, prompt, self.device), output_hidden_states=True)
            hidden.append(out.hidden_states[-2])
            pooled = out[0]
        assert pooled is not None
        first = self._tokenizers[0]
        text = torch.cat(hidden, dim=-1).to(self.dtype)
        if self._keyed and STEP in self._runs:
            text = self._keyed.keys(text)
        return Text(text, pooled.to(self.dtype), cut_note(first, first.model_max_length, prompt))

    def encode_image(self, pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        pixels = pixels.to(self.device, self._vae_dtype, memory_format=torch.channels_last)
        posterior = DiagonalGaussianDistribution(self._runs["encode"](pixels))
        z = posterior.sample(generator) if generator is not None else posterior.mode()
        return (z.float() - self._shift) * self._scale

    def denoise(self, x: torch.Tensor, t: torch.Tensor, text: Text, sides: torch.Tensor) -> torch.Tensor:
        return self._runs["unet"](x.to(self.dtype), t, text.hidden, text.pooled, sides.to(self.dtype)).float()

    def step(self, latents: torch.Tensor, coefficients: torch.Tensor, pairs: torch.Tensor, text: Text, sides: torch.Tensor) -> torch.Tensor:
        if STEP in self._runs:
            return self._runs[STEP](latents, coefficients, pairs, text.hidden, text.pooled, sides)
        return samplers.step(lambda x, t: self.denoise(x, t, text, sides), latents, coefficients, pairs)

    def decode(self, latents: torch.Tensor, tile: int = 0) -> torch.Tensor:
        z = (latents / self._scale + self._shift).to(self._vae_dtype, memory_format=torch.channels_last)
        return (self._decoder.tiled(z, tile) if tile else self._runs["decode"](z)).float()

    def decode_bytes(self) -> int:
        return self._decoder.pixel_bytes()

    def from_kohya(self, layers: Layers) -> Layers:
        return sdxl_from_kohya(layers, self._nets)


def _read_configs(folder: Path, said: Mapping[str, Any] = MappingProxyType({})) -> tuple[dict[str, Any], SigmaSchedule, list[Any]]:
    """What a checkpoint says beside its weights: model_index.json, the noise schedule, the tokenizers. `said` is what a single file
    says of its prediction. Raises Unsupported for what cannot be honoured."""
    index = json.loads((folder / "model_index.json").read_text())
    if index.get("requires_aesthetics_score"):
        raise Unsupported("model_index.json: requires_aesthetics_score = True (a refiner) cannot be honoured")
    schedule = SigmaSchedule.read(folder, said)
    return index, schedule, [CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")]


def _latent_statistics(config: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift and scale such that scaled latents are (z - shift) * scale, [1, c or 1, 1, 1]."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        return torch.zeros(1, 1, 1, 1, device=device), torch.full((1, 1, 1, 1), config.scaling_factor, device=device)
    deviation = torch.tensor(std, device=device).view(1, -1, 1, 1)
    return torch.tensor(mean, device=device).view(1, -1, 1, 1), config.scaling_factor / deviation


def _refuse(unet: Any, vae: Any) -> None:
    wanted = {"addition_embed_type": ("text_time",), "time_cond_proj_dim": (None,), "class_embed_type": (None,), "encoder_hid_dim_type": (None,)}
    for field, values in wanted.items():
        if unet.get(field) not in values:
            raise Unsupported(f"unet/config.json: {field} must be one of {values}, got {unet.get(field)!r}")
    if unet.in_channels != vae.latent_channels or unet.out_channels != vae.latent_channels:
        raise Unsupported(f"unet/config.json: in_channels = {unet.in_channels} does not fit vae latent_channels = {vae.latent_channels}")
