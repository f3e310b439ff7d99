"""`python benchmarks/outside.py`: what the engine takes outside the nets, as a part of a step and of all of a picture's time. In process:
no HTTP, no other process to talk to, pictures as pixels.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints

from darkroom.engine.backend import Fast
from darkroom.engine.cost import CostModel
from darkroom.engine.engine import Engine
from darkroom.engine.graphs import open_graphs
from darkroom.engine.hardware import use_threads
from darkroom.engine.load import load_family
from darkroom.engine.messages import Submit
from darkroom.engine.passes import STEP
from darkroom.engine.residents import Residents
from darkroom.engine.runner import Runner
from darkroom.models.cards import card_at
from darkroom.types import Params

SIDES = (256, 512)
STEPS = 30
WARM = 4  # pictures, until shapes have graphs of their own
PICTURES = 8


@dataclass
class Timed:
    """A pass, and the seconds in it so far."""

    run: Any
    seconds: float = 0.0

    def __call__(self, *tensors: Any) -> Any:
        start = time.perf_counter()
        try:
            return self.run(*tensors)
        finally:
            self.seconds += time.perf_counter() - start


@dataclass(frozen=True)
class Outside:
    """Seconds, and those of them that were not the nets'; medians."""

    step: float  # a turn of the engine in the middle of a picture
    step_outside: float
    picture: float  # all of a picture's time, a step's share
    picture_outside: float


def measure(folder: Path, side: int, threads: int) -> Outside:
    """Of pictures of demo-xl one after the other."""
    use_threads(threads)
    family = load_family(card_at(checkpoints.at("demo-xl", folder)), "cpu", "float32")
    graphs = open_graphs(family.passes(), folder / "graphs-outside", threads)
    graphs[STEP].halved = graphs[STEP].can_be_halved  # as it is chosen on two equal cores
    passes = {name: Timed(graph) for name, graph in graphs.items()}
    engine = Engine(Residents.of({"demo-xl": Runner(family, fast=Fast(family.through(passes), apart=True))}), CostModel())
    turns: list[tuple[float, float]] = []
    pictures: list[tuple[float, float]] = []
    for seed in range(WARM + PICTURES):
        engine.put(Submit(str(seed), Params("demo-xl", "a cat", width=side, height=side, steps=STEPS, cfg=7.0, seed=seed)))
        its = [_turn(engine, passes.values()) for _ in range(STEPS)]
        assert not engine.busy, "the picture took more turns than it has steps"
        if seed >= WARM:
            turns += its[1:-1]
            pictures.append((sum(seconds for seconds, _ in its) / STEPS, sum(outside for _, outside in its) / STEPS))
    return Outside(*_medians(turns), *_medians(pictures))


def _turn(engine: Engine, passes: Collection[Timed]) -> tuple[float, float]:
    """Seconds of a turn, and those of them that were not the nets'."""
    before, start = sum(one.seconds for one in passes), time.perf_counter()
    engine.step()
    seconds = time.perf_counter() - start
    return seconds, seconds - (sum(one.seconds for one in passes) - before)


def _medians(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    seconds, outside = (statistics.median(column) for column in zip(*pairs, strict=True))
    return seconds, outside


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for side in SIDES:
            found = measure(Path(scratch), side, os.cpu_count() or 1)
            for what, seconds, outside in (("a step", found.step, found.step_outside), ("a picture, by step", found.picture, found.picture_outside)):
                print(f"{side}x{side}, {what}: {1000 * seconds:.2f} ms, {1000 * outside:.2f} ms of it outside the nets: {outside / seconds:.1%}")
