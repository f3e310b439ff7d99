"""`python -m darkroom.demo.train`: makes a demo checkpoint again, from nothing or from the weights of a folder.

Seeded and resumable: stopped at any moment and started with the same words it goes on from its last state file, and
what it then computes is what it would have computed unbroken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from .autoencoder import measure_scale, train_autoencoder, train_decoder
from .folder import save_folder
from .nets import FULL, TINY, Nets, retokenize
from .pool import Batch, Pool
from .scenes import TAUGHT_SHAPES
from .sd35 import SD35
from .sheet import write_sheet
from .vocabulary import make_tokenizer
from .xl import XL

KINDS: dict[str, type[Nets]] = {kind.name: kind for kind in (XL, SD35)}

ROWS = {64: 96, 128: 40, 192: 20, 256: 14, 384: 6, 512: 4}  # pictures in a step by side: each step costs about alike
SMALL_FIRST = {64: 0.1, 128: 0.8, 192: 0.1}  # words bind to pictures in minutes at these sizes, in hours at larger ones
ALL_SIZES = {64: 0.02, 128: 0.13, 192: 0.1, 256: 0.35, 384: 0.1, 512: 0.3}
LARGE_LAST = {128: 0.05, 192: 0.05, 256: 0.45, 384: 0.05, 512: 0.4}  # detail that does not repeat, at the sizes asked for
STAGES = {"small": SMALL_FIRST, "all": ALL_SIZES, "large": LARGE_LAST}


@dataclass(frozen=True)
class Plan:
    """How to train the denoiser. Everything that decides the outcome, beside the code."""

    steps: int = 12000
    seed: int = 1
    rate: float = 1e-3  # AdamW's, after the warm-up
    warm_up: int = 150  # steps
    cool_down: float = 0.5  # last part of the steps, in which the rate falls to nothing
    small_first: float = 0.4  # part of the steps by which the stage at small sizes ends
    large_last: float = 0.7  # part of the steps at which the stage at large sizes begins
    reuse: int = 3  # steps for each batch made
    window: int = 1500  # newest batches a step draws from
    decay: float = 0.999  # of the averaged weights
    guidance: float = 1.0  # under which answers with a caption are taught to be right
    shapes: float = TAUGHT_SHAPES  # part of the figures that are shapes
    start_part: float = 0.0  # of the weights that training began with, in the outcome
    rows: dict[int, int] = field(default_factory=lambda: dict(ROWS))

    def rate_at(self, step: int) -> float:
        """The learning rate of step `step`."""
        left = (self.steps - step) / (self.cool_down * self.steps)
        return self.rate * min(1.0, (step + 1) / self.warm_up, max(left, 0.01))

    def stage_at(self, step: int) -> tuple[str, int]:
        """The stage of step `step`, and the step at which it begins."""
        begins = {"small": 0, "all": int(self.small_first * self.steps), "large": int(self.large_last * self.steps)}
        return [(name, begin) for name, begin in begins.items() if begin <= step][-1]


class Trainer:
    """Denoiser and both text encoders against a frozen autoencoder."""

    def __init__(self, nets: Nets, plan: Plan, folder: Path):
        self.nets, self.plan, self.folder, self.step = nets, plan, folder, 0
        nets.denoiser.to(memory_format=torch.channels_last).train()
        self.weights = nets.trained()
        self.start = [p.detach().clone() for p in self.weights] if plan.start_part else []
        self.average = [p.detach().clone() for p in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
        self.pools = {name: self._pool(name, shares) for name, shares in STAGES.items()}

    def _pool(self, name: str, shares: dict[int, float]) -> Pool:
        known = {side: share for side, share in shares.items() if side in self.plan.rows} or dict.fromkeys(self.plan.rows, 1.0)
        return Pool(self.nets.vae, self.folder / f"pool-{name}", self.plan.rows, known, self.plan.seed, self.plan.shapes)

    def advance(self) -> float:
        """One step of training; the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate_at(self.step)
        loss = self.nets.loss(self._batch(), torch.Generator().manual_seed(self.plan.seed * 1_000_003 + self.step), self.plan.guidance)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.step += 1
        self._follow()
        return loss.item()

    def _batch(self) -> Batch:
        stage, begin = self.plan.stage_at(self.step)
        newest = (self.step - begin) // self.plan.reuse
        rng = random.Random(f"{self.plan.seed} step {self.step}")
        # Ahead by some, since a stage's first steps would otherwise see the same few batches over and over.
        return self.pools[stage][rng.randint(max(0, newest - self.plan.window), newest + 40)]

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.plan.decay, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.weights], 1 - decay)

    def save(self) -> None:
        """Write the state, replacing the last one in a single move."""
        state = {"step": self.step, "weights": [p.detach() for p in self.weights], "average": self.average,
                 "optimizer": self.optimizer.state_dict()}  # fmt: skip
        torch.save(state, self.folder / "state.partial")
        os.replace(self.folder / "state.partial", self.folder / "state.pt")

    @torch.no_grad()
    def load(self) -> bool:
        """Go on from the state file, if there is one."""
        if not (self.folder / "state.pt").exists():
            return False
        state = torch.load(self.folder / "state.pt")
        self.step, self.average = state["step"], state["average"]
        for p, saved in zip(self.weights, state["weights"], strict=True):
            p.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        return True

    @torch.no_grad()
    def lean_back(self) -> None:
        """Move the averaged weights towards those of the start, after the last state was saved: what further training lost of what was
        known before comes back, and what it gained mostly stays (Wortsman et al. 2022, arXiv 2109.01903)."""
        if self.start:
            torch._foreach_lerp_(self.average, self.start, self.plan.start_part)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averaged weights: before a sheet or a save of the checkpoint, and after it."""
        for p, average in zip(self.weights, self.average, strict=True):
            held = p.clone()
            p.copy_(average)
            average.copy_(held)


def run(trainer: Trainer, out: Path, every: int, sheet_every: int, cpu_seconds: float | None = None) -> None:
    """Train to the end of the plan (or of the CPU time), with a log, states, checkpoints and sample sheets on the way."""
    spent, losses, began = time.process_time(), [], time.time()
    while trainer.step < trainer.plan.steps and (cpu_seconds is None or time.process_time() - spent < cpu_seconds):
        losses.append(trainer.advance())
        if trainer.step % every == 0 or trainer.step == trainer.plan.steps:
            trainer.save()
            keep(trainer, trainer.folder / "checkpoint", bool(sheet_every) and trainer.step % sheet_every == 0)
            line = {"step": trainer.step, "loss": round(sum(losses) / len(losses), 5), "seconds": round(time.time() - began)}
            with open(trainer.folder / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
            losses, began = [], time.time()
    trainer.save()
    trainer.lean_back()
    keep(trainer, out, with_sheet=bool(sheet_every))


def keep(trainer: Trainer, folder: Path, with_sheet: bool) -> None:
    """Write the averaged weights as a checkpoint folder and, if asked, a sheet of samples."""
    trainer.swap()
    save_folder(trainer.nets, folder)
    if with_sheet:
        write_sheet(trainer.nets, trainer.folder / f"sheet-{trainer.step}.png")
    trainer.swap()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m darkroom.demo.train", description=__doc__)
    parser.add_argument("--model", choices=KINDS, default=XL.name, help="which of the two to train")
    parser.add_argument("--state", type=Path, default=Path(".training/run"), help="folder of state, log and sheets")
    parser.add_argument("--out", type=Path, default=Path(".training/checkpoint"), help="folder of the finished checkpoint")
    parser.add_argument("--init", type=Path, help="start from the weights of this checkpoint folder")
    parser.add_argument("--vae", type=Path, help="take the autoencoder of this folder instead of training one")
    parser.add_argument("--text", type=Path, help="start from the text encoders of this folder, of either family")
    parser.add_argument("--steps", type=int, default=Plan.steps, help="training steps of the denoiser in all")
    parser.add_argument("--vae-steps", type=int, default=12000, help="training steps of the autoencoder (none with --init)")
    parser.add_argument("--decoder-steps", type=int, default=0, help="further training steps of the decoder alone")
    parser.add_argument("--rate", type=float, default=Plan.rate, help="learning rate")
    parser.add_argument("--small-first", type=float, help="first part of the steps at small sizes (0.4; with --init 0)")
    parser.add_argument("--large-last", type=float, default=Plan.large_last, help="part of the steps from which on large sizes prevail")
    parser.add_argument("--guidance", type=float, default=Plan.guidance, help="under which answers with a caption are taught to be right (1: by themselves)")
    parser.add_argument("--shapes", type=float, default=Plan.shapes, help="part of the figures taught that are shapes, not things")
    parser.add_argument("--start-part", type=float, default=Plan.start_part, help="part of the weights of --init in the outcome")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes of CPU time on two cores")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; pictures differ in the last bits by their number")
    parser.add_argument("--every", type=int, default=250, help="steps between states")
    parser.add_argument("--sheet-every", type=int, default=2000, help="steps between sample sheets (0: none)")
    parser.add_argument("--tiny", action="store_true", help="nets too small to draw anything: to test the program")
    args = parser.parse_args()
    if args.start_part and not args.init:
        parser.error("--start-part is a part of the weights of --init")
    return args


def main() -> None:
    """Autoencoder first (unless given), then the denoiser."""
    args = parse()
    torch.set_flush_denormal(True)  # before any other thread starts, which inherits it: denormals cost a third of the time
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.state.mkdir(parents=True, exist_ok=True)
    kind = KINDS[args.model]
    nets = kind.load(args.init) if args.init else kind.make(TINY if args.tiny else FULL, make_tokenizer())
    retokenize(nets, make_tokenizer())
    if args.vae:
        nets.vae.load_state_dict(AutoencoderKL.from_pretrained(args.vae).state_dict())
        nets.vae.register_to_config(scaling_factor=measure_scale(nets.vae, args.seed))
    elif not args.init:
        train_autoencoder(nets.vae, args.state, args.vae_steps, args.seed)
    if args.text:
        nets.take_text(args.text)
    if args.decoder_steps:
        train_decoder(nets.vae, args.state, args.decoder_steps, args.seed)
    small_first = args.small_first if args.small_first is not None else (0.0 if args.init else Plan.small_first)
    plan = Plan(steps=args.steps, seed=args.seed, rate=args.rate, small_first=small_first, large_last=args.large_last, guidance=args.guidance,
                shapes=args.shapes, start_part=args.start_part)  # fmt: skip
    trainer = Trainer(nets, plan, args.state)
    print("goes on from step" if trainer.load() else "starts at step", trainer.step, flush=True)
    run(trainer, args.out, args.every, args.sheet_every, args.minutes and args.minutes * 120)


if __name__ == "__main__":
    main()
