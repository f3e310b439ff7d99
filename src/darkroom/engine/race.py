"""OpenVINO's graphs against PyTorch's modules on this machine: the same outcome, and how long each takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from darkroom.engine.graphs import Graph
from darkroom.engine.passes import STEP, Pass
from darkroom.errors import Unsupported

PROBE = 2, 32, 32  # rows and latent sides: a guided picture of 256 x 256
ROUNDS = 5  # at least, the first of which warms up
ENOUGH = 0.3  # seconds: of what takes less than a part of this there are more rounds
# Halves are taken unless they were slower by more: between caches they lose nothing, where a whole step may take 1.6 times as long, and a
# measurement of a moment may not meet that. Cores of unequal speed are told by it: a half waits for the other.
MOST_SLOWER = 1.1
MOST_ERROR = 1e-3  # relative, of a pass: far above what rounding does (1e-5), far below what shows


@dataclass(frozen=True)
class Raced:
    """Median seconds of a pass, the graph as it runs a shape that keeps coming."""

    eager: float
    openvino: float


@torch.inference_mode()
def race(passes: Mapping[str, Pass], graphs: Mapping[str, Graph]) -> dict[str, Raced]:
    """Both over every pass; the step's graph is left in the form that `settle_step` chose. Raises Unsupported where they do not agree."""
    found = {}
    for name, one in passes.items():
        example = one.example(1 if one.shapes[0][0] == 1 else PROBE[0], *PROBE[1:])
        reference, graph = one.module(*example), graphs[name]
        _compare(name, reference, graph(*example))
        eager = _seconds(one.module, example)  # not in turn: PyTorch's threads spin for a while and would slow down the graph
        found[name] = Raced(eager, settle_step(graph, example) if name == STEP else _settle(graph, example))
        _compare(name, reference, graph(*example))
    return found


def settle_step(step: Graph, example: tuple[torch.Tensor, ...]) -> float:
    """Give a step's shapes a graph of halves where these are no slower, else as a whole; `halved` says which. Its median seconds."""
    whole = _settle(step, example)
    if not step.can_be_halved:
        return whole
    step.halved = True
    halves = _settle(step, example)
    if halves < MOST_SLOWER * whole:
        return halves
    step.halved = False
    return _settle(step, example)


def _settle(graph: Graph, example: tuple[torch.Tensor, ...]) -> float:
    graph.settle(*example)
    return _seconds(graph, example)


def _seconds(run: Callable[..., Any], example: tuple[torch.Tensor, ...]) -> float:
    times: list[float] = []
    while len(times) < ROUNDS or sum(times) < ENOUGH:
        start = time.perf_counter()
        run(*example)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _compare(name: str, reference: torch.Tensor, out: torch.Tensor) -> None:
    error = ((reference - out).norm() / reference.norm()).item()
    if not error < MOST_ERROR:
        raise Unsupported(f"OpenVINO's {name} differs from PyTorch's by {error:.0e} of its size")
