"""`python -m darkroom.demo.judge`: how often a demo checkpoint draws what a prompt says, by a judge that does not know the model.

It first judges itself: on true pictures composed by code, and on true pictures with each other's captions.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .compose import compose
from .language import COLOURS
from .scenes import Figure, Scene, draw_scene, place
from .templates import SIDE, View, bounds, colour_name, ground_name, look, nearest, shape_name

CHECKPOINT = Path(__file__).parent / "demo-xl"
EXPLAINED = 0.3  # least part of the foreground's energy that the template of a thing must explain
FILLED = 0.004  # least part of the picture that is foreground
KINDS = ("shape", "thing", "pair")


def is_right(image: Image.Image, scene: Scene) -> bool:
    """Whether the picture shows what `scene` says: background, figures and, of two, their places."""
    view = look(image)
    return ground_name(view) == scene.ground and shows(view, scene)


def shows(view: View, scene: Scene) -> bool:
    """Whether the figures and their places are right, whatever the background."""
    if not scene.relation:
        return is_figure(view, scene.figures[0])
    if scene.relation != "and":
        return _pair(view, scene.figures, axis=1 if scene.relation == "above" else 0)
    return any(_pair(view, pair, axis) for pair in (scene.figures, scene.figures[::-1]) for axis in (0, 1))


def _pair(view: View, figures: tuple[Figure, ...], axis: int) -> bool:
    """Whether the figures stand in this order along x (axis 0) or y (axis 1), parted by the emptiest line about the middle."""
    cover = view.mask.sum(axis)
    middle = range(round(0.35 * SIDE), round(0.65 * SIDE))
    line = min(middle, key=lambda i: (cover[i], abs(i - SIDE // 2)))
    before = np.arange(SIDE) < line
    before = before[None, :] if axis == 0 else before[:, None]
    return all(is_figure(_only(view, part), figure) for figure, part in zip(figures, (before, ~before), strict=True))


def _only(view: View, part: np.ndarray) -> View:
    """The view with everything outside `part` made background."""
    pixels = np.where(part[..., None], view.pixels, view.ground)
    return View(pixels, view.ground, view.mask & part)


def is_figure(view: View, figure: Figure) -> bool:
    """Whether the foreground is this one figure: a thing by its nearest template, a shape by its colour and outline."""
    box = bounds(view.mask)
    if box is None or view.mask.mean() < FILLED:
        return False
    if figure.colour:
        return colour_name(view) == figure.colour and shape_name(view.mask) == figure.name
    found, explained = nearest(view, box)
    return found == figure and explained >= EXPLAINED


def draw_held_out(rng: random.Random, kind: str) -> Scene:
    """A scene of this kind that training never sees."""
    while True:
        scene = draw_scene(rng, "two" if kind == "pair" else "one", {"shape": 1.0, "thing": 0.0, "pair": 0.3}[kind])
        if scene.held_out:
            return scene


def judge_itself(count: int, side: int = 256) -> dict[str, dict[str, float]]:
    """Of `count` true pictures of each kind: the part found right, and the part found right under each other's captions."""
    rng, table = random.Random(11), {}
    for kind in KINDS:
        scenes = [draw_held_out(rng, kind) for _ in range(count)]
        images = [compose(scene, place(rng, scene), side) for scene in scenes]
        true = [is_right(image, scene) for image, scene in zip(images, scenes, strict=True)]
        shuffled = [is_right(image, scene) for image, scene in zip(images, scenes[1:] + scenes[:1], strict=True)]
        table[kind] = {"true": float(np.mean(true)), "shuffled": float(np.mean(shuffled))}
    return table


@dataclass
class Model:
    """A checkpoint folder, opened by diffusers alone."""

    folder: Path

    def __post_init__(self):
        from diffusers import AutoPipelineForImage2Image, DiffusionPipeline
        from diffusers.utils import logging

        logging.set_verbosity_error()  # otherwise a line about force_upcast with every edit
        parts = DiffusionPipeline.load_config(self.folder)
        absent = {name: None for name, part in parts.items() if part == [None, None]}  # as T5 of demo-3.5: diffusers wants it said
        self.pipe: Any = DiffusionPipeline.from_pretrained(self.folder, dtype=torch.float32, **absent)
        self.edit_pipe: Any = AutoPipelineForImage2Image.from_pipe(self.pipe)
        for pipe in (self.pipe, self.edit_pipe):
            pipe.set_progress_bar_config(disable=True)

    def draw(self, prompt: str, side: int, seed: int, cfg: float = 7.0, steps: int = 30) -> Image.Image:
        """Text to image."""
        return self.pipe(prompt, width=side, height=side, num_inference_steps=steps, guidance_scale=cfg,
                         generator=torch.Generator().manual_seed(seed)).images[0]  # fmt: skip

    def edit(self, prompt: str, image: Image.Image, control_strength: float, seed: int, cfg: float = 7.0) -> Image.Image:
        """Image to image; control_strength as in the API, 1 minus diffusers' strength."""
        takes_size = "height" in inspect.signature(self.edit_pipe.__call__).parameters  # else the picture's own decides
        size = {"width": image.width, "height": image.height} if takes_size else {}
        return self.edit_pipe(prompt, image=image, strength=1 - control_strength, num_inference_steps=30, guidance_scale=cfg,
                              generator=torch.Generator().manual_seed(seed), **size).images[0]  # fmt: skip


def judge_kind(model: Model, kind: str, side: int, count: int, cfg: float = 7.0, keep: Path | None = None) -> dict:
    """Right answers among `count` held-out prompts, each with its own seed, and the prompts that failed."""
    rng, failed = random.Random(f"{kind} held out"), []
    for i in range(count):
        scene = draw_held_out(rng, kind)
        image = model.draw(scene.caption, side, seed=5000 + i, cfg=cfg)
        right = is_right(image, scene)
        if not right:
            failed.append(scene.caption)
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            image.save(keep / f"{kind}-{side}-{i:03}-{'right' if right else 'wrong'}.png")
    return {"kind": kind, "side": side, "cfg": cfg, "count": count, "right": count - len(failed), "failed": failed}


def judge_edits(model: Model, side: int, count: int, cfg: float = 7.0) -> dict[str, int]:
    """Another colour over the picture of a shape: at control_strength 0.35 the place must stay and the colour change; at 0.9
    the picture must stay."""
    rng = random.Random(21)
    table = {"side": side, "count": count, "place kept": 0, "colour changed": 0, "both": 0, "kept at 0.9": 0}
    for i in range(count):
        old = draw_held_out(rng, "shape")
        (figure,) = old.figures
        colour = rng.choice([c for c in COLOURS if c not in (figure.colour, old.ground)])
        image = compose(old, place(rng, old), side)
        prompt = Scene((Figure(figure.name, colour),), old.ground, old.size).caption
        before = look(image)
        edited, near = (look(model.edit(prompt, image, strength, 7000 + i, cfg)) for strength in (0.35, 0.9))
        stays = overlap(before.mask, edited.mask) > 0.6
        changes = bool(edited.mask.any()) and colour_name(edited) == colour
        kept = float(np.abs(near.pixels - before.pixels).mean()) < 10 and is_figure(near, figure)
        for name, hit in (("place kept", stays), ("colour changed", changes), ("both", stays and changes), ("kept at 0.9", kept)):
            table[name] += hit
    return table


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def judge_manual(model: Model, seeds: int) -> dict[str, int]:
    """The manual's own bodies (512x512, cfg 10), for several seeds: the thing is there, and only it."""
    dog, cat, apple = Figure("puppy dog"), Figure("cat"), Figure("apple")
    right = {"puppy dog": 0, "a cat ": 0, "Put glassed on the dog": 0, "add an apple": 0}
    for seed in range(seeds):
        right["puppy dog"] += is_figure(look(model.draw("puppy dog", 512, seed, 10)), dog)
        right["a cat "] += is_figure(look(model.draw("a cat ", 512, seed, 10, 20)), cat)
        plain = Scene((dog,), "white")
        image = compose(plain, place(random.Random(seed), plain), 512)
        edited = look(model.edit("Put glassed on the dog", image, 0.35, seed, 10))
        right["Put glassed on the dog"] += wears_glasses(edited)
        right["add an apple"] += has_apple(look(model.edit("add an apple", image, 0.35, seed, 10)), apple)
    return right


def wears_glasses(view: View) -> bool:
    """Whether a dog with glasses explains the foreground better than the dog alone, and better than anything else."""
    box = bounds(view.mask)
    if box is None:
        return False
    figure, explained = nearest(view, box, extra=True)
    return figure.name == "puppy dog with glasses" and explained >= EXPLAINED


def has_apple(view: View, apple: Figure) -> bool:
    """Whether the whole foreground, or what is in one half of the picture, is an apple."""
    before = np.arange(SIDE)[None, :] < SIDE // 2
    return any(is_figure(v, apple) for v in (view, _only(view, before), _only(view, ~before)))


def report(model: Model, sides: list[int], count: int, cfg: float, keep: Path | None) -> list[dict]:
    """Judge everything, printing as it goes."""
    results: list[dict] = []
    for side in sides if count else []:
        for kind in KINDS:
            began = time.time()
            result = judge_kind(model, kind, side, count, cfg, keep)
            print(f"{kind:6} {side} px cfg {cfg:g}: {result['right']}/{count} = {result['right'] / count:.1%}"
                  f"  ({time.time() - began:.0f} s)  wrong: {'; '.join(result['failed'][:12])}", flush=True)  # fmt: skip
            results.append(result)
    return results


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m darkroom.demo.judge", description=__doc__)
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="checkpoint folder")
    parser.add_argument("--count", type=int, default=100, help="held-out prompts of each kind and size")
    parser.add_argument("--edits", type=int, default=30, help="pictures for image to image")
    parser.add_argument("--manual", type=int, default=5, help="seeds for the manual's bodies")
    parser.add_argument("--sides", type=int, nargs="*", default=[256, 512])
    parser.add_argument("--cfg", type=float, help="guidance of text to image and edits (the checkpoint's own default_cfg)")
    parser.add_argument("--keep", type=Path, help="folder for the judged pictures")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    itself = judge_itself(300)
    print("the judge itself:", {k: {n: f"{x:.1%}" for n, x in v.items()} for k, v in itself.items()}, flush=True)
    model = Model(args.model)
    cfg = args.cfg if args.cfg is not None else json.loads((args.model / "darkroom.json").read_text())["default_cfg"]
    results = {"itself": itself, "held out": report(model, args.sides, args.count, cfg, args.keep)}
    if args.edits:
        results["edits"] = [judge_edits(model, side, args.edits, cfg) for side in args.sides]
        print(*results["edits"], sep="\n", flush=True)
    if args.manual:
        results["manual"] = judge_manual(model, args.manual)
        results["manual_seeds"] = args.manual
        print(f"the manual's bodies, of {args.manual}:", results["manual"], flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
