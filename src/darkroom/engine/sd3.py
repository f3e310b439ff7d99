"""SD 3.x (Esser et al. 2024, arXiv 2403.03206): SD3Transformer2DModel, two CLIP text encoders and T5, AutoencoderKL with
16 channels, flow matching. SD 3 medium, 3.5 medium, 3.5 large and its turbo differ in their configs alone.

Skip-layer guidance is not offered: it is a third pass in some of the steps, with other layers than the rows beside it.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from darkroom.engine import samplers
from darkroom.engine.family import Plan, Text
from darkroom.engine.lora_names import Layers, sd3_from_kohya
from darkroom.engine.passes import STEP, Decode, Encode, Pass, Run, StepPass, Transformer
from darkroom.engine.prompts import cut_note, cut_word, token_ids
from darkroom.engine.sigmas import FlowSchedule
from darkroom.engine.weights import SD3_BLOCKS, here, how_to_open, names_in, open_nets, open_single_file, refuse_gaps, refuse_unknown
from darkroom.errors import Unsupported
from darkroom.types import Params

T5 = "text_encoder_3"
NETS: dict[str, Any] = {
    "transformer": SD3Transformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModelWithProjection,
    "text_encoder_2": CLIPTextModelWithProjection,
    T5: T5EncoderModel,
}
TOKENIZERS: dict[str, Any] = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer, "tokenizer_3": T5Tokenizer}
IN_SINGLE_FILE = {"text_encoder": "text_encoders.clip_l.", "text_encoder_2": "text_encoders.clip_g.", T5: "text_encoders.t5xxl."}
T5_TOKENS = 256  # diffusers' max_sequence_length: another number gives other pictures
SIDES = 64  # pictures have sides in multiples of this


class SD3:
    """The nets of one SD 3.x checkpoint, run by eager PyTorch, the reference, unless `through` is told another way. Without T5
    its place is filled with zeros."""

    name = "sd3"

    def __init__(self, nets: dict[str, Any], tokenizers: list[Any], schedule: FlowSchedule, device: torch.device, dtype: torch.dtype):
        _refuse(nets)
        self.dtype, self.device, self.schedule = dtype, device, schedule
        self.transformer, self.vae = nets["transformer"], nets["vae"]
        self._encoders = [nets["text_encoder"], nets["text_encoder_2"]]
        self._nets = nets
        self._t5 = nets.get(T5)
        self._clip_tokenizers, self._t5_tokenizer = tokenizers[:2], tokenizers[2] if self._t5 else None
        self._clip_tokens = tokenizers[0].model_max_length
        for net in nets.values():
            net.to(device).eval().requires_grad_(False)
        self.vae.to(memory_format=torch.channels_last)
        self.latent_channels = self.transformer.config.in_channels
        self.latent_scale = _latent_scale(self.vae)
        self._patch = self.latent_scale * self.transformer.config.patch_size  # in pixels
        self._decoder = Decode(self.vae)
        self._modules = {"transformer": Transformer(self.transformer), "encode": Encode(self.vae), "decode": self._decoder}
        self._runs: dict[str, Run] = dict(self._modules)

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype, tell: Callable[[float], None] = lambda part: None) -> SD3:
        """From a diffusers folder, weights by memory map. Raises Unsupported for what cannot be honoured."""
        index = json.loads((folder / "model_index.json").read_text())
        schedule = FlowSchedule.read(folder)
        _refuse_unknown(folder)
        present = {name: kind for name, kind in NETS.items() if name != T5 or _has_t5(index, folder)}
        nets, reports = open_nets(folder, present, dtype, tell)
        for name, report in reports.items():
            refuse_gaps(name, report["missing_keys"])
            refuse_unknown(name, report["unexpected_keys"])
        tokenizers = [kind.from_pretrained(folder / name) for name, kind in TOKENIZERS.items() if T5 in nets or kind is CLIPTokenizer]
        return cls(nets, tokenizers, schedule, device, dtype)

    @staticmethod
    def check_single_file(file: Path) -> None:
        """Refuse by its header alone what is no file of SD 3.x."""
        if not any(name.startswith(SD3_BLOCKS) for name in names_in(file)):
            raise Unsupported(f"{file.name} is not an SD 3.x checkpoint in the original layout: it has no {SD3_BLOCKS[0]}")

    @classmethod
    def load_single_file(cls, file: Path, config: Path, device: torch.device, dtype: torch.dtype) -> SD3:
        """From one .safetensors file in SD 3.x's original layout; `config` is a folder with the configs and tokenizers. Text
        encoders that the file lacks (SD 3.5's own files hold none) come from that folder. Asks nothing of the hub."""
        from diffusers import StableDiffusion3Pipeline

        _refuse_unknown(config)
        schedule = FlowSchedule.read(config)
        pipe, nets = open_single_file(StableDiffusion3Pipeline, NETS, file, config, dtype, **_beside(file, config, dtype))
        return cls(nets, [getattr(pipe, name) for name in TOKENIZERS], schedule, device, dtype)

    def nets(self) -> dict[str, torch.nn.Module]:
        return self._nets

    def passes(self) -> dict[str, Pass]:
        net, modules = self.transformer.config, self._modules
        rows, tokens = -1, self._clip_tokens
        text = (rows, tokens + T5_TOKENS, net.joint_attention_dim)
        return {
            STEP: StepPass.around(modules["transformer"], net.in_channels, net.patch_size, text, (rows, net.pooled_projection_dim)),
            "decode": Pass(modules["decode"], ((rows, self.latent_channels, -1, -1),)),
            "encode": Pass(modules["encode"], ((1, 3, -1, -1),), self.latent_scale),
        }

    def denoiser(self) -> tuple[str, torch.nn.Module]:
        return "transformer", self._modules["transformer"]

    def through(self, runs: Mapping[str, Run]) -> SD3:
        other = copy.copy(self)
        other._runs = {**self._runs, **runs}
        return other

    def plan(self, params: Params) -> Plan:
        """SD 3.x leaves out floor(steps * control_strength) of the steps, computed in decimal: it runs one more than SDXL
        where the product is not whole, and at least one."""
        steps, control = params.steps, params.control_strength
        tokens = (params.height // self._patch) * (params.width // self._patch)
        if control is None or control == 0:
            return Plan(self.schedule.plan(steps, tokens), None, 1.0)
        if control == 1:
            return Plan(self.schedule.plan(steps, tokens)[:0], 1.0, 0.0)
        start = min(int(steps * control), steps - 1)
        sigma = self.schedule.start_sigma(steps, tokens, start)
        return Plan(self.schedule.plan(steps, tokens, start), 1 - sigma, sigma)

    def encode_prompt(self, prompt: str, like: Text | None = None) -> Text:
        """CLIP's two hidden states side by side, padded to T5's width, then T5's below them: [1, 77 + 256, d]. The empty
        prompt is encoded like any other."""
        hidden, pooled = [], []
        for tokenizer, encoder in zip(self._clip_tokenizers, self._encoders, strict=True):
            out = encoder(token_ids(tokenizer, self._clip_tokens, prompt, self.device), output_hidden_states=True)
            hidden.append(out.hidden_states[-2])
            pooled.append(out.text_embeds)
        clip, t5 = torch.cat(hidden, dim=-1), self._encode_t5(prompt)
        clip = torch.nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return Text(torch.cat([clip.to(self.dtype), t5], dim=-2), torch.cat(pooled, dim=-1).to(self.dtype), self._note(prompt))

    def encode_image(self, pixels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        pixels = pixels.to(self.device, self.vae.dtype, memory_format=torch.channels_last)
        posterior = DiagonalGaussianDistribution(self._runs["encode"](pixels))
        z = posterior.sample(generator) if generator is not None else posterior.mode()
        return (z.float() - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    def denoise(self, x: torch.Tensor, t: torch.Tensor, text: Text, sides: torch.Tensor) -> torch.Tensor:
        return self._runs["transformer"](x.to(self.dtype), t, text.hidden, text.pooled).float()

    def step(self, latents: torch.Tensor, coefficients: torch.Tensor, pairs: torch.Tensor, text: Text, sides: torch.Tensor) -> torch.Tensor:
        if STEP in self._runs:
            return self._runs[STEP](latents, coefficients, pairs, text.hidden, text.pooled)
        return samplers.step(lambda x, t: self.denoise(x, t, text, sides), latents, coefficients, pairs)

    def decode(self, latents: torch.Tensor, tile: int = 0) -> torch.Tensor:
        config = self.vae.config  # its force_upcast is SDXL's inheritance: SD 3.x's autoencoder does not overflow in fp16
        z = latents / config.scaling_factor + config.shift_factor
        z = z.to(self.vae.dtype, memory_format=torch.channels_last)
        return (self._decoder.tiled(z, tile) if tile else self._runs["decode"](z)).float()

    def decode_bytes(self) -> int:
        return self._decoder.pixel_bytes()

    def from_kohya(self, layers: Layers) -> Layers:
        return sd3_from_kohya(layers, self._nets)

    def _encode_t5(self, prompt: str) -> torch.Tensor:
        if self._t5 is None:
            return torch.zeros(1, T5_TOKENS, self.transformer.config.joint_attention_dim, dtype=self.dtype, device=self.device)
        return self._t5(token_ids(self._t5_tokenizer, T5_TOKENS, prompt, self.device))[0].to(self.dtype)  # without a mask, as trained

    def _note(self, prompt: str) -> str:
        tokenizer = self._clip_tokenizers[0]
        if self._t5 is None:
            missing = "this model came without its T5 text encoder, so only the CLIP encoders read the prompt"
            return "; ".join(filter(None, (missing, cut_note(tokenizer, self._clip_tokens, prompt))))
        word = cut_word(tokenizer, self._clip_tokens, prompt)
        rest = word and f"from {word!r} on, after {self._clip_tokens} tokens, only the T5 text encoder reads the prompt"
        return "; ".join(filter(None, (rest, cut_note(self._t5_tokenizer, T5_TOKENS, prompt))))


def _latent_scale(vae: Any) -> int:
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _has_t5(index: dict[str, Any], folder: Path) -> bool:
    """Whether T5 is among the components; [null, null] in model_index.json stands for one that was left out on purpose."""
    listed = bool((index.get(T5) or [None])[0])
    if listed and not here(folder / T5):
        raise Unsupported(f"model_index.json: {T5} is listed, but its weights are not in the folder; [null, null] there means to go without T5")
    return listed


def _beside(file: Path, config: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The text encoders that a single file lacks, from the folder with its configs; None for T5 where it is in neither."""
    keys = names_in(file)
    found: dict[str, Any] = {}
    for name in (name for name, prefix in IN_SINGLE_FILE.items() if not any(key.startswith(prefix) for key in keys)):
        folder = config / name
        if here(folder):
            found[name] = NETS[name].from_pretrained(folder, dtype=dtype, **how_to_open(folder))
        elif name == T5:
            found |= {T5: None, "tokenizer_3": None}
        else:
            raise Unsupported(f"{file.name} holds no {name}: its config and weights must lie in {config.name}/{name} beside the file")
    return found


def _refuse_unknown(folder: Path) -> None:
    """diffusers drops fields that it does not know with a line in its log; here they are refused."""
    for name in ("transformer", "vae"):
        known = inspect.signature(NETS[name].__init__).parameters
        for field, value in json.loads((folder / name / "config.json").read_text()).items():
            if not field.startswith("_") and field not in known:
                raise Unsupported(f"{name}/config.json: {field} = {value!r} means nothing to {NETS[name].__name__}, so it cannot be honoured")


def _refuse(nets: dict[str, Any]) -> None:
    transformer, vae = nets["transformer"].config, nets["vae"].config
    clips = [nets["text_encoder"].config, nets["text_encoder_2"].config]
    _demand("transformer", transformer, "in_channels", transformer.in_channels == vae.latent_channels, f"vae latent_channels = {vae.latent_channels}")
    _demand("transformer", transformer, "out_channels", transformer.out_channels in (vae.latent_channels, None), "the same as in_channels")
    _demand("transformer", transformer, "patch_size", SIDES % (_latent_scale(nets["vae"]) * transformer.patch_size) == 0, f"a divisor of {SIDES} in pixels")
    _demand("transformer", transformer, "qk_norm", transformer.qk_norm in (None, "rms_norm"), "null or 'rms_norm'")
    pooled, width = sum(clip.projection_dim for clip in clips), sum(clip.hidden_size for clip in clips)
    _demand("transformer", transformer, "pooled_projection_dim", transformer.pooled_projection_dim == pooled, f"the text encoders' projection_dim, {pooled}")
    _demand("transformer", transformer, "joint_attention_dim", transformer.joint_attention_dim >= width, f"at least the text encoders' hidden_size, {width}")
    if T5 in nets:
        _demand(T5, nets[T5].config, "d_model", nets[T5].config.d_model == transformer.joint_attention_dim, "the transformer's joint_attention_dim")
    for field in ("shift_factor", "scaling_factor"):
        _demand("vae", vae, field, isinstance(vae.get(field), Real), "a number")
    for field in ("latents_mean", "latents_std"):  # diffusers' SD 3.x pipelines do not read them
        _demand("vae", vae, field, vae.get(field) is None, "null")


def _demand(name: str, config: Any, field: str, kept: bool, rule: str) -> None:
    if not kept:
        raise Unsupported(f"{name}/config.json: {field} must be {rule}, got {getattr(config, field)!r}")
