"""News of jobs for whoever watches: each watcher reads at its own pace, and a slow one costs the others nothing."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from darkroom.jobs.ended import Ended
from darkroom.types import Event, Loading, Preview, Progress, Waiting

ONE_IS_ENOUGH = (Waiting, Loading, Preview)  # of these only the newest matters to one who comes, or comes back


@dataclass(frozen=True)
class News:
    """One event of a Job; `place` is the picture that it is about. `id` grows, within one life of the gateway."""

    number: int
    id: str
    event: Event | Waiting | Ended
    place: int = 0


class Watch:
    """The news of one Job so far, and a way to wait for more."""

    def __init__(self, boot: str):
        self._boot = boot
        self._number = 0
        self._changed = asyncio.Event()
        self.news: list[News] = []
        self.holders = 0
        self._closed = False

    @property
    def steps(self) -> tuple[int, int]:
        """Steps done over all pictures, and to do of each; 0 to do before the first is done."""
        newest = {one.place: one.event for one in self.news if isinstance(one.event, Progress)}
        return sum(event.step for event in newest.values()), max((event.of for event in newest.values()), default=0)

    @property
    def ended(self) -> bool:
        return bool(self.news) and isinstance(self.news[-1].event, Ended)

    def publish(self, event: Event | Waiting | Ended, place: int = 0) -> None:
        if self.ended:
            return
        if isinstance(event, Waiting) and (event in [one.event for one in self.news] or any(isinstance(one.event, Progress) for one in self.news)):
            return
        if isinstance(event, ONE_IS_ENOUGH):
            self.news = [one for one in self.news if not (type(one.event) is type(event) and one.place == place)]
        self._number += 1
        self.news.append(News(self._number, f"{self._boot}-{self._number}", event, place))
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Nothing more will come: the server ends."""
        self._closed = True
        self._changed.set()

    async def after(self, last_id: str = "", idle: float | None = None) -> AsyncIterator[News | None]:
        """All news after `last_id` (from the beginning, where that is none of this life's), then what comes, until the end; None
        whenever nothing came for `idle` seconds."""
        boot, _, number = last_id.rpartition("-")
        seen = int(number) if boot == self._boot and number.isascii() and number.isdigit() and len(number) < 10 else 0
        while True:
            changed = self._changed
            for one in [one for one in self.news if one.number > seen]:
                seen = one.number
                yield one
            if (self.ended and self.news[-1].number <= seen) or self._closed:
                return
            try:
                await asyncio.wait_for(changed.wait(), idle)
            except TimeoutError:
                yield None


class Watches:
    """One Watch a Job, as long as somebody holds it: its run, or a watcher."""

    def __init__(self) -> None:
        self._boot = secrets.token_hex(4)
        self._watches: dict[str, Watch] = {}
        self._closed = False

    @contextmanager
    def held(self, job_id: str) -> Iterator[Watch]:
        watch = self._watches.get(job_id)
        if watch is None:
            watch = self._watches[job_id] = Watch(self._boot)
            if self._closed:
                watch.close()
        watch.holders += 1
        try:
            yield watch
        finally:
            watch.holders -= 1
            if not watch.holders:
                self._watches.pop(job_id, None)

    def publish(self, job_id: str, event: Event | Waiting | Ended, place: int = 0) -> None:
        """For whoever watches; where nobody does, nothing happens."""
        if job_id in self._watches:
            self._watches[job_id].publish(event, place)

    def steps(self, job_id: str) -> tuple[int, int] | None:
        """Steps done and to do of a job that is watched or runs here."""
        watch = self._watches.get(job_id)
        return watch.steps if watch is not None and watch.steps[1] else None

    def close(self) -> None:
        """End every watch, also those to come: the server ends."""
        self._closed = True
        for watch in self._watches.values():
            watch.close()

    def open_ids(self) -> list[str]:
        """Jobs that are watched and have not ended."""
        return [job_id for job_id, watch in self._watches.items() if not watch.ended]
