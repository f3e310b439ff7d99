"""Whether a child process still works, by what it says of itself and by what the system says of it. No torch.

A pass of a large model on a CPU may take minutes, and so may a load; both use the processor. A process that was stopped, or whose
threads wait for each other, uses none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICKS = 9  # of the clock without a sign of life, after which a child is given up
DOUBT = 3  # of these, after which it is told that the child does not answer
IDLE_SECONDS = 0.05  # of the processor between two ticks, and no more: what a process uses that only says that it is there


@dataclass(frozen=True)
class Beat:
    """A child's sign of life: how many turns its engine has made, and the seconds of the processor that it has used."""

    turns: int
    cpu_seconds: float


class Watchdog:
    """Watches one child. `tick` is called at even intervals, and counts these and no seconds: a machine that was asleep for an hour
    has not made one tick meanwhile."""

    def __init__(self, pid: int):
        self._pid = pid
        self._heard = False
        self._beat: Beat | None = None
        self._last: Beat | None = None  # at the last tick
        self._cpu = _cpu_seconds(pid)
        self._silent = self._stuck = 0

    def hear(self, message: object) -> None:
        """A message came from the child."""
        self._heard = True
        if isinstance(message, Beat):
            self._beat = message

    def tick(self, busy: bool, loading: bool) -> None:
        """busy: whether it has jobs in hand; loading: whether a model is on its way into memory, for which its jobs wait."""
        cpu, before = _cpu_seconds(self._pid), self._cpu
        self._cpu = cpu
        works = cpu - before > IDLE_SECONDS if cpu is not None and before is not None else loading
        self._silent = 0 if self._heard or works else self._silent + 1
        if not busy or loading:
            self._stuck = 0
        elif self._beat is not self._last:  # else there was none since the last tick, which says nothing
            self._stuck = self._stuck + 1 if self._no_turn() else 0
        self._heard, self._last = False, self._beat

    def _no_turn(self) -> bool:
        """Whether its engine made none since the last tick, and nothing else in it worked either."""
        now, last = self._beat, self._last
        if now is None or last is None:
            return False
        return now.turns == last.turns and now.cpu_seconds - last.cpu_seconds <= IDLE_SECONDS

    @property
    def in_doubt(self) -> bool:
        return max(self._silent, self._stuck) >= DOUBT

    @property
    def hangs(self) -> bool:
        return max(self._silent, self._stuck) >= TICKS


def _cpu_seconds(pid: int) -> float | None:
    """Seconds of the processor that a process has used; None if the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
