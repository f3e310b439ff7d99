"""Cost curves: seconds of a pass by size and rows, and of a decode, of machines that were measured here or elsewhere."""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from darkroom.engine.sample import BatchKey

MAX_ROWS = 16
BATCH = MAX_ROWS // 2  # pictures of a static batch: MLPerf's 8
MLPERF_CAPACITY = 2.04  # samples a second and GPU, Offline, v4.1, 8 x H100


class Kind(NamedTuple):
    """What a static batch must have in common."""

    side: int
    steps: int
    rows: int


class Curve:
    """Seconds of a pass by side and rows, on straight lines between measured points; nothing is learnt (a `Costs` of the Scheduler)."""

    def __init__(self, name: str, source: str, points: Mapping[int, Mapping[int, float]], decode: Mapping[int, float]):
        self.name, self.source, self._decode = name, source, decode
        self._steps = {side: [_on_lines(by, rows) for rows in range(MAX_ROWS + 1)] for side, by in points.items()}

    def step_seconds(self, key: BatchKey, rows: int) -> float:
        return self._steps[key.height][rows]

    def observe_step(self, key: BatchKey, rows: int, seconds: float) -> None:
        """Let it be."""

    def seconds(self, side: int, rows: int) -> float:
        return self._steps[side][rows]

    def decode_seconds(self, side: int) -> float:
        return self._decode[side]

    def job_seconds(self, kind: Kind, together: int) -> float:
        """Of a batch of so many equal jobs, from its first step to its last picture."""
        return kind.steps * self.seconds(kind.side, together * kind.rows) + together * self.decode_seconds(kind.side)

    def capacity(self, kinds: Sequence[Kind]) -> float:
        """Jobs a second, where each runs in the best batch of its kind."""
        return 1 / statistics.mean(min(self.job_seconds(kind, n) / n for n in range(1, BATCH + 1)) for kind in kinds)


def _on_lines(points: Mapping[int, float], rows: int) -> float:
    """Between two points; before the first on along the line of the first two, but no less than half of it (one row of a measured
    two); past the last in proportion, since no gain is known there."""
    known = sorted(points)
    if rows > known[-1]:
        return points[known[-1]] * rows / known[-1]
    i = max(1, bisect.bisect_left(known, rows))
    left, right = known[i - 1], known[i]
    value = points[left] + (points[right] - points[left]) * (rows - left) / (right - left)
    return max(value, points[known[0]] / 2)


SDUSS = "sduss (MiRaCLeXeoN/sduss, exp/profile; arXiv 2501.09253), H100, guidance on; 50 steps assumed; decode 127 ms at 1024x1024 (HF, sdxl-tensorrt)"
H100_DECODE = {side: 0.127 * (side / 1024) ** 2 for side in (512, 768, 1024)}


def sduss(name: str, points: Mapping[int, Mapping[int, float]]) -> Curve:
    """From seconds of a whole denoising by pictures in the batch."""
    return Curve(name, SDUSS, {side: {2 * n: seconds / 50 for n, seconds in by.items()} for side, by in points.items()}, H100_DECODE)


def machine(costs: Mapping[str, Mapping[str, float]], model: str, source: str) -> Curve:
    """From a costs.json that a server has written."""
    sizes = {int(name.rsplit(" ", 1)[1]): by for name, by in costs.items() if name.split(" ")[0] == model}
    points = {side: {int(rows): seconds for rows, seconds in by.items() if rows != "decode"} for side, by in sizes.items()}
    whole = {side for side, by in points.items() if len(by) > 1 and "decode" in sizes[side]}
    return Curve("2 CPU cores, " + model, source, {side: points[side] for side in whole}, {side: sizes[side]["decode"] for side in whole})


# Least of 9 steps each of the running code, fp32, 2 cores (AMD EPYC, AVX-512).
MEASURED = {
    "demo-xl 256 256": {"1": 0.0131, "2": 0.017, "4": 0.024, "8": 0.0411, "16": 0.0667, "decode": 0.0224},
    "demo-xl 384 384": {"1": 0.0171, "2": 0.0248, "4": 0.0398, "8": 0.07, "16": 0.1499, "decode": 0.0333},
    "demo-xl 512 512": {"1": 0.0238, "2": 0.037, "4": 0.0648, "8": 0.14, "16": 0.2666, "decode": 0.061},
}
CPU = machine(MEASURED, "demo-xl", "measured with the running code, least of 9 steps")
SDXL = sduss("H100, SDXL", {
    512: {1: 2.03, 3: 2.40, 6: 3.45, 8: 4.0, 12: 5.05},  # middles of the published ranges
    768: {2: 2.5, 4: 3.5, 6: 4.65},
    1024: {2: 3.32, 4: 5.01},
})  # fmt: skip
SD35 = sduss("H100, SD 3.5 medium", {512: {2: 2.84, 3: 3.4, 4: 3.85, 8: 6.21, 12: 8.9}, 1024: {1: 4.2, 2: 6.7, 3: 9.05, 4: 11.7}})


MLPERF = Kind(1024, 20, 2)


def scaled(name: str, curve: Curve) -> Curve:
    """The shape of a curve at 1024x1024, with MLPerf's Offline rate as its capacity."""
    scale = curve.capacity([MLPERF]) / MLPERF_CAPACITY
    return Curve(name, curve.source, {1024: {rows: scale * curve.seconds(1024, rows) for rows in range(1, MAX_ROWS + 1)}}, {1024: scale * H100_DECODE[1024]})


# How the measured system's time grows with its batch was not published. sduss has points for 2 and 4 pictures (its 5 were slower by
# the picture than 4), so the first shape gains nothing past 4; the second goes on along the line of the two up to 8.
SHAPES = [
    scaled("capacity reached with 4 pictures in flight", SDXL),
    scaled("capacity reached with 8", sduss("", {1024: {2: 3.32, 4: 5.01, 8: 8.39}})),
]
