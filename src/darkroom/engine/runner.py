"""Batch -> stacked tensors -> a Family's step -> back to each Sample."""

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
    """What a Sample carries between steps; latents [2, rows, c, h, w], fp32, on the device: where it is, and what it was denoised to, the
    same in each of its rows."""

    plan: Plan
    latents: torch.Tensor
    text: Text
    negative: Text | None
    generator: torch.Generator
    loras: LoraSet

    @property
    def note(self) -> str:
        """What the encoders could not hear of the prompts."""
        negative = self.negative.note if self.negative is not None and self.negative.note != self.text.note else ""
        return "; ".join(filter(None, (self.text.note, negative and f"negative prompt: {negative}")))


@dataclass(frozen=True)
class _Company:
    """What a pass takes that is known from the start for as long as the same Samples step together.

    pairs: as `samplers.pairing` gives them; text and sides [n, 2] (height and width in pixels, fp32) of n rows. Of the steps until the
    first Sample is through, `first` being where samples[0] is in its own: coefficients [steps, n, 9], and, on the host, who wants
    fresh noise, by step and Sample.
    """

    samples: tuple[Sample, ...]
    pairs: torch.Tensor
    text: Text
    sides: torch.Tensor
    first: int
    coefficients: torch.Tensor
    noise: list[list[bool]]

    @classmethod
    def of(cls, samples: tuple[Sample, ...], device: torch.device) -> _Company:
        rows = [sample.rows for sample in samples]
        texts = [text for sample in samples for text in (sample.state.negative, sample.state.text) if text is not None]
        text = Text(torch.cat([text.hidden for text in texts]), torch.cat([text.pooled for text in texts]))
        sides = torch.tensor([[sample.params.height, sample.params.width] for sample in samples], dtype=torch.float32)
        steps = min(sample.remaining for sample in samples)
        table = np.stack([sample.state.plan.table[sample.step : sample.step + steps] for sample in samples], axis=1)
        cfg = np.broadcast_to(np.array([[sample.params.cfg] for sample in samples], table.dtype), (*table.shape[:2], 1))
        coefficients = torch.from_numpy(np.concatenate([table, cfg], axis=2).repeat(rows, axis=1))
        return cls(
            samples, to_device(samplers.pairing(rows), device), text, to_device(sides.repeat_interleave(torch.tensor(rows), 0), device),
            samples[0].step, to_device(coefficients, device), (table[..., samplers.D] != 0).tolist(),
        )  # fmt: skip


class Runner:
    """The only user of the nets. Noise is drawn on the CPU in fp32, a generator for each Sample, so that a seed gives the
    same noise on every device and in any company."""

    def __init__(
        self, family: Family, lora_folder: Path = Path("loras"), max_lora_bytes: int = 0, fast: Fast | None = None,
        threads: int | None = None, decode_room: int | None = None, undecided: bool = False,
    ):  # fmt: skip
        """fast is for Samples without LoRAs, since those are laid over the modules. threads: of PyTorch on the CPU; as many as now
        where None. decode_room: bytes that decoding may take beside the weights; by the device's memory where None.
        undecided: whether a faster backend may come later by `switch`; its weights are counted from now on."""
        self.family = family
        self._fast: Family = fast.family if fast else family
        self._apart = fast is not None and fast.apart
        self.undecided = undecided
        self._threads = threads or torch.get_num_threads()
        self._decode_room = room_for_decodes(family.device) if decode_room is None else decode_room
        self._net_bytes = sum(tensor.nbytes for net in family.nets().values() for tensor in (*net.parameters(), *net.buffers()))
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
        copies = 2 if self._apart or self.undecided else 1
        return copies * self._net_bytes + self._loras.nbytes

    def switch(self, fast: Fast | None) -> None:
        """Run Samples through a faster backend from now on, or stay with PyTorch for good where None.

        No Sample of this model may be under way: its text was encoded for the backend that began it.
        """
        self.undecided = False
        if fast is None:
            return
        self._fast, self._apart = fast.family, fast.apart
        self._texts.clear()
        self._company = None

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
        sample.state = State(plan, self._start(params, plan, generator).repeat(1, sample.rows, 1, 1, 1), text, negative, generator, loras)

    def denoise(self, batch: Batch) -> None:
        """One forward pass and one sampler step for every Sample of the batch."""
        loras = batch.samples[0].state.loras  # one key, so all have the same
        family = self._family(loras)
        self._take_threads(family)
        with torch.inference_mode(), laid(loras.denoiser):
            self._step(family, batch.samples)

    def _step(self, family: Family, samples: tuple[Sample, ...]) -> None:
        company = self._company_of(samples)
        step = samples[0].step - company.first
        states: list[State] = [sample.state for sample in samples]
        latents = states[0].latents if len(states) == 1 else torch.cat([state.latents for state in states], dim=1)
        coefficients = company.coefficients[step]
        latents = family.step(latents, coefficients, company.pairs, company.text, company.sides)
        if any(company.noise[step]):
            noise = self._noise(states, company.noise[step])
            latents[0].addcmul_(noise, coefficients[:, samplers.D, None, None, None])
        for state, its in zip(states, latents.split([sample.rows for sample in samples], dim=1), strict=True):
            state.latents = its

    @torch.inference_mode()
    def decode(self, samples: list[Sample]) -> list[np.ndarray | None]:
        """Pictures [h, w, 3] uint8 of finished Samples of one size, no more together than there is room for; None for one that
        is not finite."""
        most, tile = self._portion(samples[0].params)
        family = self.family if tile else self._fast  # tiles are PyTorch's
        self._take_threads(family)
        latents = [torch.cat([sample.state.latents[0, :1] for sample in samples[i : i + most]]) for i in range(0, len(samples), most)]
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
        return preview.to_jpeg(sample.state.latents[1, :1], self._colours, sample.params.width, sample.params.height)

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
        return torch.stack([latents, torch.zeros_like(latents)])

    def _company_of(self, samples: tuple[Sample, ...]) -> _Company:
        if self._company is None or self._company.samples != samples:
            self._company = _Company.of(samples, self.family.device)
        return self._company

    def _noise(self, states: list[State], wants: list[bool]) -> torch.Tensor:
        """Fresh noise [n, c, h, w] for the rows of ancestral Samples, each Sample's from its own generator; the others draw nothing."""
        shape = states[0].latents.shape[2:]
        drawn = [torch.randn(shape, generator=state.generator) if want else torch.zeros(shape) for state, want in zip(states, wants, strict=True)]
        rows = [noise.expand_as(state.latents[0]) for noise, state in zip(drawn, states, strict=True)]
        return to_device(torch.cat(rows), self.family.device)


def _to_pixels(pictures: torch.Tensor) -> list[np.ndarray | None]:
    """Each of [n, 3, h, w] in -1..1, which is spent, as [h, w, 3] uint8; None for one that is not finite."""
    finite = pictures.sum((1, 2, 3)).isfinite().tolist()  # in one reading: what is not finite stays so in any sum
    pixels = pictures.add_(1).mul_(127.5).clamp_(0, 255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return [picture if ok else None for picture, ok in zip(pixels, finite, strict=True)]


def _pixels(params: Params) -> torch.Tensor:
    """The init picture as [1, 3, h, w] in -1..1."""
    assert params.image is not None
    flat = torch.frombuffer(bytearray(params.image), dtype=torch.uint8)
    return flat.view(1, params.height, params.width, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
