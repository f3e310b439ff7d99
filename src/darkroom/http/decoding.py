"""Places to decode uploads in: few, for a large one takes some hundred MB meanwhile, and shared fairly between callers."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

PLACES = 2


class Decoders:
    """Who waits is served in turn with the other callers, however many uploads each has sent."""

    def __init__(self, places: int = PLACES):
        self._free = places
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # by caller, the next one first

    @asynccontextmanager
    async def place(self, caller: str) -> AsyncIterator[None]:
        """A place, when there is one. Whoever is cancelled meanwhile gives up their turn."""
        await self._take(caller)
        try:
            yield
        finally:
            self._give()

    async def _take(self, caller: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give()  # it had just been given a place
            raise

    def _give(self) -> None:
        while self._waiting:
            caller, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[caller] = turns  # behind all others
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
