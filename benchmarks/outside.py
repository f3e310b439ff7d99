"""`python benchmarks/outside.py`: what the engine takes outside the nets, as a part of all of a picture's time. In process: no HTTP, no
other process to talk to, pictures as pixels.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
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
from darkroom.engine.residents import Residents
from darkroom.engine.runner import Runner
from darkroom.models.cards import card_at
from darkroom.types import Finished, Params

SIDES = (256, 512)
STEPS = 30
WARM = 4  # pictures, until shapes have graphs of their own
PICTURES = 12


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


def parts(folder: Path, side: int, threads: int) -> Iterator[tuple[float, float]]:
    """Of each picture of demo-xl: its seconds, and those of them that were not the nets'."""
    use_threads(threads)
    family = load_family(card_at(checkpoints.at("demo-xl", folder)), "cpu", "float32")
    passes = {name: Timed(graph) for name, graph in open_graphs(family.passes(), folder / "graphs-outside", threads).items()}
    engine = Engine(Residents.of({"demo-xl": Runner(family, fast=Fast(family.through(passes), apart=True))}), CostModel())
    for seed in range(WARM + PICTURES):
        before, start = sum(one.seconds for one in passes.values()), time.perf_counter()
        engine.put(Submit(str(seed), Params("demo-xl", "a cat", width=side, height=side, steps=STEPS, cfg=7.0, seed=seed)))
        while not any(isinstance(event, Finished) for event in engine.step()):
            pass
        seconds = time.perf_counter() - start
        if seed >= WARM:
            yield seconds, seconds - (sum(one.seconds for one in passes.values()) - before)


def medians(folder: Path, side: int, threads: int) -> tuple[float, float]:
    """Seconds of a step, all of a picture's time shared out, and those of them outside the nets."""
    seconds, outside = (statistics.median(column) / STEPS for column in zip(*parts(folder, side, threads), strict=True))
    return seconds, outside


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for side in SIDES:
            seconds, outside = medians(Path(scratch), side, os.cpu_count() or 1)
            print(f"{side}x{side}: {1000 * seconds:.2f} ms a step, {1000 * outside:.2f} ms of it outside the nets: {outside / seconds:.1%}")
