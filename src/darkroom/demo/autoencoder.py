"""Training of the autoencoder, and of its decoder alone, which may be bettered without moving the latents."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .compose import as_array, compose
from .scenes import draw_training_scene, place

# (side of the picture, side of the crop, pictures in a step): the one norm group spans the picture, so whole ones matter
CUTS = ((128, 96, 10), (256, 96, 10), (128, 128, 6), (256, 256, 2), (512, 512, 1))
STATE_EVERY = 200  # steps
LATENT_NOISE = 0.12  # of the latents' deviation: what the denoiser leaves unsure, the decoder must bear
Loss = Callable[[Any, torch.Tensor, torch.Generator], torch.Tensor]


def train_autoencoder(vae: Any, folder: Path, steps: int, seed: int) -> None:
    """Encoder and decoder from nothing; sets the scaling factor so that the latents' deviation is 1."""
    _train(vae, list(vae.parameters()), folder / "autoencoder.pt", steps, seed, whole_loss)
    vae.register_to_config(scaling_factor=measure_scale(vae, seed))


def train_decoder(vae: Any, folder: Path, steps: int, seed: int) -> None:
    """The decoder alone, on slightly noisy latents of the encoder as it is."""
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    _train(vae, parameters, folder / "decoder.pt", steps, seed + 1, decoder_loss)


def whole_loss(vae: Any, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Distance of the round trip, and a weak pull of the latents towards a normal distribution."""
    posterior = vae.encode(pictures).latent_dist
    latents = posterior.sample(generator)
    return distance(pictures, vae.decode(latents).sample) + 1e-4 * posterior.kl().mean() / latents[0].numel()


def decoder_loss(vae: Any, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Distance of the round trip over noisy latents."""
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mode()
    amount = LATENT_NOISE / vae.config.scaling_factor * torch.rand(len(latents), 1, 1, 1, generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    return distance(pictures, vae.decode(latents + amount * noise).sample)


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Absolute, squared and edge error of pictures [n, 3, h, w] in -1..1."""
    d = a - b
    edges = (d[:, :, 1:] - d[:, :, :-1]).abs().mean() + (d[:, :, :, 1:] - d[:, :, :, :-1]).abs().mean()
    return d.abs().mean() + d.pow(2).mean() + edges


def draw_pictures(rng: random.Random) -> torch.Tensor:
    """[n, 3, side, side] in -1..1: whole pictures or crops of them."""
    side, crop, rows = rng.choice(CUTS)
    scenes = [draw_training_scene(rng) for _ in range(rows)]
    pictures = torch.from_numpy(as_array([compose(scene, place(rng, scene), side) for scene in scenes]))
    i, j = rng.randint(0, side - crop), rng.randint(0, side - crop)
    return pictures[:, :, i : i + crop, j : j + crop].contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def measure_scale(vae: Any, seed: int) -> float:
    """1 / deviation of the latents."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    latents = [vae.encode(draw_pictures(rng)).latent_dist.sample(generator).flatten() for _ in range(20)]
    return float(1 / torch.cat(latents).std())


def _train(vae: Any, parameters: list, file: Path, steps: int, seed: int, loss_of: Loss) -> None:
    """AdamW with a rate that falls to nothing; resumes from `file`, and every step depends on the seed and its number only."""
    vae.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(parameters, weight_decay=0, betas=(0.9, 0.99), fused=True)
    for step in range(_resume(file, parameters, optimizer), steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 - step / steps) + 1e-5
        pictures = draw_pictures(random.Random(f"{seed} {step}"))
        loss = loss_of(vae, pictures, torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % STATE_EVERY == 0 or step + 1 == steps:
            _save(file, step + 1, parameters, optimizer)
            print(json.dumps({"part": file.stem, "step": step + 1, "loss": round(loss.item(), 5)}), flush=True)
    vae.eval()


def _save(file: Path, step: int, parameters: list, optimizer: torch.optim.Optimizer) -> None:
    partial = file.with_suffix(".partial")
    torch.save({"step": step, "weights": [p.detach() for p in parameters], "optimizer": optimizer.state_dict()}, partial)
    os.replace(partial, file)


@torch.no_grad()
def _resume(file: Path, parameters: list, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on from."""
    if not file.exists():
        return 0
    state = torch.load(file)
    for p, saved in zip(parameters, state["weights"], strict=True):
        p.copy_(saved)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
