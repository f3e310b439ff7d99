"""The log of requests: noted as they are answered, written down a moment later together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import structlog

from darkroom.errors import DarkroomError
from darkroom.types import Call

log = structlog.get_logger("journal")

PAUSE = 1.0  # seconds between two writes: one for each request would be the dearest part of a small one
MOST = 5_000  # calls that wait to be written; what comes beyond that is not in the log
KEEP = 30 * 86_400.0
SWEEP = 3_600.0


class Rows(Protocol):
    """Where calls are kept; see `store/calls.py`."""

    async def add(self, calls: Sequence[Call]) -> None: ...
    async def remove(self, before: float) -> None: ...


class Journal:
    """Calls on their way to the rows."""

    def __init__(self, rows: Rows):
        self._rows = rows
        self._waiting: list[Call] = []
        self._swept_at = 0.0

    def note(self, call: Call) -> None:
        if len(self._waiting) < MOST:
            self._waiting.append(call)

    async def run(self) -> None:
        """Write what was noted until cancelled, then once more."""
        try:
            while True:
                await asyncio.sleep(PAUSE)
                await self.write()
                await self._sweep()
        finally:
            await self.write()

    async def _sweep(self) -> None:
        if time.time() - self._swept_at > SWEEP:
            self._swept_at = time.time()
            try:
                await self._rows.remove(time.time() - KEEP)
            except DarkroomError as error:
                log.warning("old requests could not be removed", error=str(error))

    async def write(self) -> None:
        calls, self._waiting = self._waiting, []
        if not calls:
            return
        try:
            await self._rows.add(calls)
        except DarkroomError as error:
            log.warning("requests could not be logged; they wait", error=str(error), count=len(calls))
            self._waiting = (calls + self._waiting)[:MOST]
        except Exception:
            log.exception("requests could not be logged", count=len(calls))  # one of them cannot be written; the next ones may
