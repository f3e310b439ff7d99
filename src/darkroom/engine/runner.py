"""Batch -> stacked tensors -> Family -> sampler step -> back to each Sample."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from darkroom.engine import preview, samplers
from darkroom.engine.backend import Fast
from darkroom.engine.family import Family, Plan, Text
from darkroom.engine.hardware import empty_cache, room_for_decodes, to_device, use_threads
from darkroom.engine.loras import Loras, LoraSet, laid
from darkroom.engine.sample import Batch, LoraKey, Sample
from darkroom.types import Lora, Params

PROMPT_BYTES = 320e6  # of encoded prompts kept; in fp32 an SDXL one takes 0.6 MB (as keys and values 51 MB), an SD 3.x one 5.5 MB
LEAST_TILE = 256  # pixels a side; tiles are in multiples of it


@dataclass
class State:
    """What a Sample carries between steps: latents and denoised [1, c, h, w], fp32, on the device."""

    plan: Plan
    latents: torch.Tensor
    text: Text
    negative: Text | None
    generator: torch.Generator
    loras: LoraSet
    denoised: torch.Tensor | None = None

    @property
    def note(self) -> str:
        """What the encoders could not hear of the prompts."""
        negative = self.negative.note if self.negative is not None and self.negative.note != self.text.note else ""
        return "; ".join(filter(None, (self.text.note, negative and f"negative prompt: {negative}")))


@dataclass(frozen=True)
class _Company:
    """What a pass takes that is known from the start for as long as the same Samples step together.

    ONE index list gathers latents, timesteps, texts and sizes alike: the unconditional rows of the guided Samples, then a
    conditional row of every Sample. rows [n]: which Sample each row is of; the first `guided` are unconditional. cfg [guided, 1, 1, 1];
    text: of each row; sides [n, 2]: height and width of each row, fp32. Of the steps until the first Sample is through, `first` being
    where samples[0] is in its own: t [steps, n] of each row; coefficients [steps, samples, 8]; and, on the host, who wants what
    (by step and Sample): the denoised of the step before, fresh noise.
    """

    samples: tuple[Sample, ...]
    rows: torch.Tensor
    guided: int
    cfg: torch.Tensor
    text: Text
    sides: torch.Tensor
    first: int
    t: torch.Tensor
    coefficients: torch.Tensor
    before: list[list[bool]]
    noise: list[list[bool]]

    @classmethod
    def of(cls, samples: tuple[Sample, ...], device: torch.device) -> _Company:
        guided = [i for i, sample in enumerate(samples) if sample.rows == 2]
        index = [*guided, *range(len(samples))]
        cfg = torch.tensor([samples[i].params.cfg for i in guided]).view(-1, 1, 1, 1)
        texts = [samples[i].state.negative for i in guided] + [sample.state.text for sample in samples]
        text = Text(torch.cat([text.hidden for text in texts]), torch.cat([text.pooled for text in texts]))
        sides = torch.tensor([[samples[i].params.height, samples[i].params.width] for i in index], dtype=torch.float32)
        steps = min(sample.remaining for sample in samples)
        table = np.stack([sample.state.plan.table[sample.step : sample.step + steps] for sample in samples], axis=1)
        return cls(
            samples, to_device(torch.tensor(index), device), len(guided), to_device(cfg, device), text, to_device(sides, device),
            samples[0].step, to_device(torch.from_numpy(table[:, index, samplers.T]), device), to_device(torch.from_numpy(table), device),
            (table[..., samplers.C] != 0).tolist(), (table[..., samplers.D] != 0).tolist(),
        )  # fmt: skip


class Runner:
    """The only user of the nets. Noise is drawn on the CPU in fp32, a generator for each Sample, so that a seed gives the
    same noise on every device and in any company."""

    def __init__(
        self, family: Family, lora_folder: Path = Path("loras"), max_lora_bytes: int = 0, fast: Fast | None = None,
        threads: int | None = None, decode_room: int | None = None,
    ):  # fmt: skip
        """fast is for Samples without LoRAs, since those are laid over the modules. threads: of PyTorch on the CPU; as many as now
        where None. decode_room: bytes that decoding may take beside the weights; by the device's memory where None."""
        self.family = family
        self._fast: Family = fast.family if fast else family
        self._apart = fast is not None and fast.apart
        self._threads = threads or torch.get_num_threads()
        self._decode_room = room_for_decodes(family.device) if decode_room is None else decode_room
        copies = 2 if self._apart else 1
        self._net_bytes = copies * sum(tensor.nbytes for net in family.nets().values() for tensor in (*net.parameters(), *net.buffers()))
        self._loras = Loras(family, lora_folder, max_lora_bytes)
        self._texts: OrderedDict[tuple[str, tuple[LoraKey, ...], bool], Text] = OrderedDict()
        self._company: _Company | None = None  # of the last step
        self._colours: torch.Tensor | None = None  # the matrix of previews, once one was asked for

    def lora_keys(self, loras: Sequence[Lora]) -> tuple[LoraKey, ...]:
        """Which files these LoRAs are now. Raises Invalid for one that is gone."""
        return self._loras.keys(loras)

    @property
    def nbytes(self) -> int:
        """Bytes of the nets' weights, those of a faster backend too, and of the LoRAs that are kept for them."""
        return self._net_bytes + self._loras.nbytes

    def release(self) -> None:
        """Give the device's cached memory back; call it once nobody else holds the Runner."""
        device = self.family.device
        del self.family, self._fast, self._loras, self._company
        empty_cache(device)

    @torch.inference_mode()
    def prepare(self, sample: Sample, plan: Plan) -> None:
        """Load the LoRAs of a Sample, encode its text and image, draw its start. Raises Invalid or Unavailable for a LoRA."""
        params, loras = sample.params, self._loras.fetch(sample.key.loras)
        use_threads(self._threads)  # text encoders are PyTorch's
        with laid(loras.encoders):
            text = self._encode(params.prompt, loras)
            negative = self._encode(params.negative_prompt, loras, like=text) if sample.rows == 2 else None
        generator = torch.Generator("cpu").manual_seed(params.seed)
        sample.state = State(plan, self._start(params, plan, generator), text, negative, generator, loras)

    @torch.inference_mode()
    def denoise(self, batch: Batch) -> None:
        """One forward pass and one sampler step for every Sample of the batch."""
        loras = batch.samples[0].state.loras  # one key, so all have the same
        self._take_threads(self._family(loras))
        with laid(loras.denoiser):
            self._step(batch.samples)

    def _step(self, samples: tuple[Sample, ...]) -> None:
        states: list[State] = [sample.state for sample in samples]
        company = self._company_of(samples)
        step = samples[0].step - company.first
        coefficients = samplers.columns(company.coefficients[step])
        x = torch.cat([state.latents for state in states])
        out = self._guided(company, x * coefficients[samplers.C_IN], company.t[step])
        before = _before(states) if any(company.before[step]) else None
        noise = self._noise(states, company.noise[step]) if any(company.noise[step]) else None
        x, denoised = samplers.advance(x, out, coefficients, before, noise)
        for state, latents, clean in zip(states, x.chunk(len(states)), denoised.chunk(len(states)), strict=True):
            state.latents, state.denoised = latents, clean

    @torch.inference_mode()
    def decode(self, samples: list[Sample]) -> list[np.ndarray | None]:
        """Pictures [h, w, 3] uint8 of finished Samples of one size, no more together than there is room for; None for one that
        is not finite."""
        most, tile = self._portion(samples[0].params)
        family = self.family if tile else self._fast  # tiles are PyTorch's
        self._take_threads(family)
        latents = [torch.cat([sample.state.latents for sample in samples[i : i + most]]) for i in range(0, len(samples), most)]
        return [picture for part in latents for picture in _to_pixels(family.decode(part, tile))]

    def _portion(self, params: Params) -> tuple[int, int]:
        """How many pictures of this size may be decoded together; and, where there is no room for one, in tiles of what side."""
        pixels = self._decode_room // self.family.decode_bytes()
        tile = 0 if params.width * params.height <= pixels else max(LEAST_TILE, math.isqrt(pixels) // LEAST_TILE * LEAST_TILE)
        return max(1, pixels // (params.width * params.height)), tile

    def preview(self, sample: Sample) -> bytes:
        """A JPEG of what the picture of a Sample that has stepped would be by now."""
        if self._colours is None:
            self._colours = preview.fit(self.family)
        return preview.to_jpeg(sample.state.denoised, self._colours, sample.params.width, sample.params.height)

    def _encode(self, prompt: str, loras: LoraSet, like: Text | None = None) -> Text:
        """Encoded, or from the cache; an empty prompt is the unconditional of `like`."""
        family = self._family(loras)
        key = (prompt, loras.heard, family is self._fast)
        if key not in self._texts:
            self._texts[key] = text = family.encode_prompt(prompt, like)
            if len(self._texts) * text.hidden.nbytes > PROMPT_BYTES:  # all have one shape
                self._texts.popitem(last=False)
        self._texts.move_to_end(key)
        return self._texts[key]

    def _family(self, loras: LoraSet) -> Family:
        """What runs Samples with these LoRAs."""
        return self.family if loras.denoiser else self._fast

    def _take_threads(self, family: Family) -> None:
        """PyTorch's threads spin for a while after each operation, and would slow down the threads of graphs: beside these it
        takes one."""
        use_threads(1 if self._apart and family is self._fast else self._threads)

    def _start(self, params: Params, plan: Plan, generator: torch.Generator) -> torch.Tensor:
        scale = self.family.latent_scale
        shape = (1, self.family.latent_channels, params.height // scale, params.width // scale)
        latents = torch.zeros(shape, device=self.family.device)
        if plan.signal is not None:
            assert params.image is not None
            # the posterior is drawn before the noise, from the same generator, as diffusers does; without a step nothing is drawn
            latents = plan.signal * self._fast.encode_image(_pixels(params), generator if plan.noise else None)
        if plan.noise:
            noise = torch.randn(shape, generator=generator).to(self.family.device)
            latents = latents + plan.noise * noise
        return latents

    def _guided(self, company: _Company, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): unconditional + cfg * (conditional - unconditional)."""
        rows, guided, samples = company.rows, company.guided, company.samples
        family = self._family(samples[0].state.loras)
        out = family.denoise(x.index_select(0, rows).to(family.dtype), t, company.text, company.sides)
        if not guided:
            return out
        if guided == len(samples):
            unconditional, conditional = out.chunk(2)
            return torch.lerp(unconditional, conditional, company.cfg)
        unconditional, conditional = out[:guided], out[guided:]
        which = rows[:guided]
        return conditional.index_copy_(0, which, torch.lerp(unconditional, conditional.index_select(0, which), company.cfg))

    def _company_of(self, samples: tuple[Sample, ...]) -> _Company:
        if self._company is None or self._company.samples != samples:
            self._company = _Company.of(samples, self.family.device)
        return self._company

    def _noise(self, states: list[State], wants: list[bool]) -> torch.Tensor:
        """Fresh noise of the ancestral rows, each from its own generator; the other rows draw nothing."""
        rows = [torch.randn(state.latents.shape, generator=state.generator) if want else torch.zeros(state.latents.shape)
                for state, want in zip(states, wants, strict=True)]  # fmt: skip
        return to_device(torch.cat(rows), self.family.device)


def _before(states: list[State]) -> torch.Tensor:
    """The denoised of the step before, where a multistep method wants it (a row without one weighs it by 0)."""
    return torch.cat([state.latents if state.denoised is None else state.denoised for state in states])


def _to_pixels(pictures: torch.Tensor) -> list[np.ndarray | None]:
    """Each of [n, 3, h, w] in -1..1, which is spent, as [h, w, 3] uint8; None for one that is not finite."""
    finite = pictures.sum((1, 2, 3)).isfinite().tolist()  # in one reading: what is not finite stays so in any sum
    pixels = pictures.add_(1).mul_(127.5).clamp_(0, 255).round_().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [np.ascontiguousarray(p) if ok else None for p, ok in zip(pixels, finite, strict=True)]


def _pixels(params: Params) -> torch.Tensor:
    """The init picture as [1, 3, h, w] in -1..1."""
    assert params.image is not None
    flat = torch.frombuffer(bytearray(params.image), dtype=torch.uint8)
    return flat.view(1, params.height, params.width, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
