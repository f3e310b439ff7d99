"""Figures as Markdown: medians over the rounds, with the least and the greatest in parentheses."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Iterable

import numpy as np
from loads import Run
from PIL import Image


def spread(values: Iterable[float], digits: int = 2) -> str:
    """`median (least to greatest)`, or the only value."""
    values = list(values)
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(title: str, head: list[str], rows: Iterable[list[str]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(end="", flush=True)


def over_rounds(runs: list[Run], figure: Callable[[Run], float], digits: int = 2) -> str:
    return spread((figure(run) for run in runs), digits)


def quantile(part: float) -> Callable[[Run], float]:
    return lambda run: float(np.quantile(run.latencies, part))


def mean(run: Run) -> float:
    return statistics.mean(run.latencies)


def p95_of_tens(run: Run) -> float:
    """p95 of the jobs of ten steps; not a number where there was none."""
    tens = [t for t, body in zip(run.latencies, run.bodies, strict=True) if body["steps"] == 10]
    return float(np.quantile(tens, 0.95)) if tens else float("nan")


def middle(runs: list[Run], figure: Callable[[Run], float]) -> float:
    return statistics.median(figure(run) for run in runs)


LATENCIES = {"mean s": mean, "p50 s": quantile(0.5), "p95 s": quantile(0.95), "p99 s": quantile(0.99)}


def of_runs(title: str, found: dict[str, list[Run]], more: dict[str, Callable[[Run], float]] | None = None) -> None:
    """A row for each peer: throughput, latencies."""
    figures = LATENCIES | (more or {})
    rows = [[name, over_rounds(runs, lambda run: run.a_minute, 1), *(over_rounds(runs, figure) for figure in figures.values())] for name, runs in found.items()]
    table(title, ["", "pictures a minute", *figures], rows)


def psnr(png: bytes, reference: bytes) -> float:
    """dB between two pictures; infinite where they are equal."""
    a, b = (np.asarray(Image.open(io.BytesIO(data))).astype(float) for data in (png, reference))
    error = np.mean((a - b) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")
