"""The log of requests: noted as they are answered, written down a moment later together."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from darkroom.errors import DarkroomError
from darkroom.types import Call

log = structlog.get_logger("journal")

PAUSE = 1.0  # seconds between two writes: one for each request would be the dearest part of a small one
MOST = 5_000  # calls that wait to be written; what comes beyond that is not in the log
KEEP = 30 * 86_400.0
SWEEP = 3_600.0
REFUSED_A_MINUTE = 60  # calls without a valid key that are listed of a service; the rest are one line
MOST_REFUSED = 1_000  # of these between two writes, of all services
MINUTE = 60.0


class Rows(Protocol):
    """Where calls are kept; see `store/calls.py`."""

    async def add(self, calls: Sequence[Call]) -> None: ...
    async def remove(self, before: float) -> None: ...
    async def services(self) -> set[str]: ...


class Refused:
    """Calls to a service's address that did not come in: whoever sends them has no key, so they must neither
    fill the log nor cost a look into the rows each."""

    def __init__(self) -> None:
        self._waiting: list[Call] = []
        self._listed: Counter[str] = Counter()
        self._beyond: Counter[str] = Counter()
        self._last: dict[str, Call] = {}
        self._until = 0.0

    def note(self, call: Call) -> None:
        if len(self._waiting) < MOST_REFUSED:
            self._waiting.append(call)

    def is_empty(self) -> bool:
        return not self._waiting and not self._beyond

    def take(self, services: set[str], now: float) -> list[Call]:
        """What is to be written of those that wait: calls to services that there are, as many of each as a
        minute may list, and a minute later one line for the others."""
        listed = self._rest() if now >= self._until else []
        if now >= self._until:
            self._listed.clear()
            self._until = now + MINUTE
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            if call.service_id not in services:
                continue
            self._listed[call.service_id] += 1
            if self._listed[call.service_id] <= REFUSED_A_MINUTE:
                listed.append(call)
            else:
                self._beyond[call.service_id] += 1
                self._last[call.service_id] = call
        return listed

    def _rest(self) -> list[Call]:
        """A line for each service whose calls were too many to be listed."""
        lines = []
        for service_id, count in self._beyond.items():
            last, more = self._last[service_id], "1 more call" if count == 1 else f"{count} more calls"
            error = f"{more} without a valid key came within this minute, which lists {REFUSED_A_MINUTE}"
            lines.append(replace(last, id=f"req-{secrets.token_hex(8)}", error=error))
        self._beyond.clear()
        self._last.clear()
        return lines


class Journal:
    """Calls on their way to the rows."""

    def __init__(self, rows: Rows):
        self._rows = rows
        self._waiting: list[Call] = []
        self._refused = Refused()
        self._swept_at = 0.0

    def note(self, call: Call) -> None:
        """A call of somebody who came in by a key, or else one to the address of a service that may be
        none."""
        if not call.key_id:
            self._refused.note(call)
        elif len(self._waiting) < MOST:
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
        try:
            if not self._refused.is_empty():
                calls += self._refused.take(await self._rows.services(), time.monotonic())
            if calls:
                await self._rows.add(calls)
        except DarkroomError as error:
            log.warning("requests could not be logged; they wait", error=str(error), count=len(calls))
            self._waiting = (calls + self._waiting)[:MOST]
        except Exception:
            log.exception("requests could not be logged", count=len(calls))  # one of them cannot be written; the next ones may
