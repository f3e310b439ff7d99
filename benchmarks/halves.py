"""`python benchmarks/halves.py`: a step's graph for one shape as a whole and as two halves of its rows, each on half of the threads, in turn."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import checkpoints
import report
import torch

from darkroom.engine.graphs import Graph, open_graphs
from darkroom.engine.load import load_family
from darkroom.engine.passes import STEP
from darkroom.models.cards import card_at

SHAPES = [(2, 32), (2, 64), (2, 96), (4, 64), (16, 32)]  # rows and latent sides
A_ROUND = 0.5  # seconds of each form, about


def measure(model: str, folder: Path, threads: int, rounds: int) -> None:
    """Prints a table: milliseconds of a step in both forms by shape, and the ratio within a round."""
    family = load_family(card_at(checkpoints.at(model, folder)), "cpu", "float32")
    one = family.passes()[STEP]
    rows = []
    for count, side in SHAPES:
        whole, halves = (open_graphs({STEP: one}, folder / f"graphs-halves-{model}", threads)[STEP] for _ in range(2))
        halves.halved, tensors = halves.can_be_halved, one.example(count, side, side)
        for graph in (whole, halves):
            graph.settle(*tensors)
            seconds(graph, tensors, 3)
        number = max(3, int(A_ROUND / seconds(whole, tensors, 3)))
        found = [(1000 * seconds(whole, tensors, number), 1000 * seconds(halves, tensors, number)) for _ in range(rounds)]
        forms = [report.spread(column, 1) for column in zip(*found, strict=True)]
        rows.append([f"{count} rows, {8 * side}x{8 * side}", *forms, report.spread((half / all_ for all_, half in found), 2)])
    report.table(f"{model}, a step ({rounds} rounds)", ["", "as a whole, ms", "as halves, ms", "ratio"], rows)


def seconds(graph: Graph, tensors: tuple[torch.Tensor, ...], number: int) -> float:
    """The median of so many calls, with latents and coefficients that are new each time, as the engine's are."""
    times = []
    for _ in range(number):
        new = tensors[0].clone(), tensors[1].clone(), *tensors[2:]
        start = time.perf_counter()
        graph(*new)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in the engine beside graphs: PyTorch's threads would spin on the cores that these need
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        for name in ("demo-xl", "demo-3.5"):
            measure(name, Path(scratch), options.threads, options.rounds)
