"""Measured times of a denoising step and of a decode, by size and rows; caps and waiting times come from here. No torch."""

from __future__ import annotations

import json
import os
import statistics
from collections import deque
from pathlib import Path
from typing import Any, Protocol

import structlog

from darkroom.engine.sample import BatchKey

log = structlog.get_logger("engine")

WINDOW = 9  # measurements that a median is taken over: enough to shrug off a hiccup, few enough to follow a busy machine
STALE = 1500  # observations of a size after which a row count that was not chosen since is tried again
FIRST_GUESS = 2e-6  # seconds a row and latent pixel before anything was measured (a small net on a slow CPU)
HOPE = 0.8  # with one row count measured or none, more rows are assumed to cost this much of their share, so that they get tried


class Costs(Protocol):
    """What a Scheduler asks and tells of times, in seconds."""

    def step_seconds(self, key: BatchKey, rows: int) -> float: ...
    def observe_step(self, key: BatchKey, rows: int, seconds: float) -> None: ...


class CostModel:
    """Learns while it runs. Times in seconds; a size is (model, height, width) and rows counts the rows of one pass."""

    def __init__(self, path: Path | None = None):
        self._path = path
        self._steps: dict[str, dict[int, deque[float]]] = {}
        self._seen: dict[str, int] = {}
        self._last: dict[tuple[str, int], int] = {}
        self._decodes: dict[str, deque[float]] = {}
        self._decoded: set[str] = set()  # sizes of which one decode was seen
        self._medians: dict[str, dict[int, float]] = {}  # of _steps
        self._told: dict[tuple[BatchKey, int], float] = {}  # what step_seconds answered since the last measurement: it is asked often
        if path is not None and path.exists():
            self._read(path)

    def observe_step(self, key: BatchKey, rows: int, seconds: float) -> None:
        """One forward pass with `rows` rows took `seconds`.

        The first one of a row count is not learnt: it may hold seconds of allocating, choosing kernels or compiling, and a row
        count that looks that dear would not be chosen again. Nor is the first after a long while, which is a new beginning.
        """
        size = size_name(key)
        self._seen[size] = self._seen.get(size, 0) + 1
        last, self._last[size, rows] = self._last.get((size, rows)), self._seen[size]
        if last is None:
            return
        if self._seen[size] - last > STALE:
            self._forget(size, rows)
            return
        self._take(size, rows, seconds)

    def observe_decode(self, key: BatchKey, pictures: int, seconds: float) -> None:
        """Decoding `pictures` together took `seconds`; the first time for a size is not learnt."""
        size = size_name(key)
        if size in self._decoded:
            self._decodes.setdefault(size, deque(maxlen=WINDOW)).append(seconds / pictures)
        self._decoded.add(size)

    def step_seconds(self, key: BatchKey, rows: int) -> float:
        """Expected seconds of a pass with `rows` rows: the median where it was measured, else an estimate from its neighbours."""
        told = self._told.get((key, rows))
        if told is None:
            told = self._told[key, rows] = self._expected(key, rows)
        return told

    def decode_seconds(self, key: BatchKey) -> float:
        """Expected seconds to decode one picture; about two steps until it was measured."""
        known = self._decodes.get(size_name(key))
        return statistics.median(known) if known else 2 * self.step_seconds(key, 1)

    def job_seconds(self, key: BatchKey, rows: int, steps: int) -> float:
        """Expected seconds of machine time for `steps` steps of a Sample alone, and its decode."""
        return steps * self.step_seconds(key, rows) + self.decode_seconds(key)

    def forget(self, model: str) -> None:
        """Drop what was learnt of a model: another backend runs it from now on."""
        by_size: tuple[dict[str, Any], ...] = self._steps, self._seen, self._decodes, self._medians
        for table in by_size:
            for size in [size for size in table if _model_of(size) == model]:
                del table[size]
        self._decoded = {size for size in self._decoded if _model_of(size) != model}
        self._last = {key: seen for key, seen in self._last.items() if _model_of(key[0]) != model}
        self._told.clear()

    @property
    def known(self) -> int:
        """How many combinations of size and rows, and how many sizes' decodes, were measured."""
        return sum(map(len, self._steps.values())) + len(self._decodes)

    def table(self) -> dict[str, dict[str, float]]:
        """Medians by size and rows, as stored in the data folder."""
        steps = {s: {str(r): seconds for r, seconds in sorted(by.items())} for s, by in self._medians.items()}
        for size, times in self._decodes.items():
            steps.setdefault(size, {})["decode"] = statistics.median(times)
        return steps

    def load(self, table: dict[str, dict[str, float]]) -> None:
        """Take medians measured elsewhere (another process, an earlier run) as a first measurement each."""
        for size, by in table.items():
            for rows, seconds in by.items():
                if rows == "decode":
                    self._decodes[size] = deque([float(seconds)], maxlen=WINDOW)
                else:
                    self._steps.get(size, {}).pop(int(rows), None)
                    self._take(size, int(rows), float(seconds))

    def save(self) -> None:
        """Write the table whole or not at all. What cannot be written (a full disk) is measured anew after the next start."""
        if self._path is None:
            return
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(self.table(), indent=1))
            os.replace(temporary, self._path)
        except OSError as error:
            log.warning("the measured costs could not be written", error=str(error))

    def _read(self, path: Path) -> None:
        try:
            self.load(json.loads(path.read_text()))
        except (ValueError, AttributeError, TypeError):
            path.unlink(missing_ok=True)  # a spoilt table only costs a few measurements

    def _take(self, size: str, rows: int, seconds: float) -> None:
        times = self._steps.setdefault(size, {}).setdefault(rows, deque(maxlen=WINDOW))
        times.append(seconds)
        # of one or two the least: one slow pass must not stand for a row count that would then not be tried again
        self._medians.setdefault(size, {})[rows] = statistics.median(times) if len(times) > 2 else min(times)
        self._told.clear()

    def _forget(self, size: str, rows: int) -> None:
        self._steps.get(size, {}).pop(rows, None)
        self._medians.get(size, {}).pop(rows, None)
        self._told.clear()

    def _expected(self, key: BatchKey, rows: int) -> float:
        known = self._fresh(size_name(key))
        if rows in known:
            return known[rows]
        if known:
            return _extrapolated(known, rows)
        return (1 + HOPE * (rows - 1)) * self._per_pixel(key.model) * key.height * key.width / 64

    def _fresh(self, size: str) -> dict[int, float]:
        """Medians by rows, without what is too old to be trusted while other row counts were measured."""
        now = self._seen.get(size, 0)
        medians = self._medians.get(size, {})
        return {r: seconds for r, seconds in medians.items() if now - self._last.get((size, r), 0) < STALE} or medians

    def _per_pixel(self, model: str) -> float:
        """Seconds a row and latent pixel: the dearest of the model's measured sizes, or a first guess."""
        shares = []
        for size, medians in self._medians.items():
            name, height, width = size.rsplit(" ", 2)
            if name == model:
                shares += [seconds / r / (int(height) * int(width) / 64) for r, seconds in medians.items()]
        return max(shares, default=FIRST_GUESS)


class Frozen:
    """What a CostModel expects now, remembered: to ask often costs little, and nothing is learnt."""

    def __init__(self, cost: CostModel):
        self._cost = cost
        self._steps: dict[tuple[BatchKey, int], float] = {}

    def step_seconds(self, key: BatchKey, rows: int) -> float:
        if (key, rows) not in self._steps:
            self._steps[key, rows] = self._cost.step_seconds(key, rows)
        return self._steps[key, rows]

    def observe_step(self, key: BatchKey, rows: int, seconds: float) -> None:
        """Let it be."""

    def decode_seconds(self, key: BatchKey) -> float:
        return self._cost.decode_seconds(key)


def _extrapolated(known: dict[int, float], rows: int) -> float:
    """On along the line through the two nearest measured row counts below; from one alone, with hope."""
    below = sorted(r for r in known if r < rows)
    if not below:
        least = min(known)
        return known[least] * rows / least
    near = below[-1]
    slope = HOPE * known[near] / near
    if len(below) > 1:
        slope = max(0.0, (known[near] - known[below[-2]]) / (near - below[-2]))
    return known[near] + slope * (rows - near)


def _model_of(size: str) -> str:
    return size.rsplit(" ", 2)[0]


def size_name(key: BatchKey) -> str:
    """How a size is called in the stored table: `model height width`."""
    return f"{key.model} {key.height} {key.width}"
