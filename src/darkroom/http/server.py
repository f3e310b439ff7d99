"""uvicorn's server as this project runs it: within bounds, told when it listens, ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp

from darkroom.http.protocol import BoundedProtocol
from darkroom.settings import Settings

log = structlog.get_logger("serve")

MAX_FILES = 65_536  # open files that are asked for, and connections of which there never are more
MAX_FILES_OF_MACOS = 10_240  # OPEN_MAX: there a process may have no limit, and may not ask for more than this
KEPT_FILES = 64  # for rows, pictures, uploads and the worker
BACKLOG = 512  # connections that wait to be accepted; asyncio tries as many times each time that files have run out
QUIET = 10.0  # seconds between two lines about that


def raise_open_files() -> int:
    """Let this process have as many open files as it may, and return how many: every client that waits is one, and 1,024 are the
    usual soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in files_wanted(soft, hard):
        with contextlib.suppress(ValueError, OSError):  # the kernel's own limit may be lower than the hard one says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return MAX_FILES if soft == resource.RLIM_INFINITY else soft


def files_wanted(soft: int, hard: int) -> list[int]:
    """Soft limits to ask for, the best first; none if there are enough."""
    if soft == resource.RLIM_INFINITY or soft >= MAX_FILES:
        return []
    limits = [MAX_FILES, MAX_FILES_OF_MACOS] if hard == resource.RLIM_INFINITY else [min(hard, MAX_FILES)]
    return [limit for limit in limits if limit > soft]


def connections_within(files: int, wanted: int) -> int:
    """How many connections may be open: as many as the setting says (0 leaves it to this), but fewer than there may be files."""
    room = max(8, (files - KEPT_FILES) * 3 // 4)
    return min(wanted or room, room)


class Server(uvicorn.Server):
    """Calls `started` once it listens, and `stopping` while clients can still be answered. A signal ends it and is not raised again:
    what was built around it is closed in order."""

    def __init__(self, app: ASGIApp, settings: Settings, started: Callable[[], Awaitable[None]], stopping: Callable[[], None]):
        connections = connections_within(raise_open_files(), settings.max_connections)
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedProtocol.within(settings.head_timeout, connections),
                ws="none",
                backlog=BACKLOG,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=10,
                timeout_keep_alive=30,
                proxy_headers=settings.proxy_headers,
            )
        )
        self._started, self._stopping = started, stopping
        self._said_at = 0.0

    async def startup(self, sockets: Any = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._handle)
        await super().startup(sockets)
        if self.started:
            try:
                await self._started()
            except BaseException:
                await self.shutdown(sockets)
                raise

    async def shutdown(self, sockets: Any = None) -> None:
        self._stopping()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it."""
        return signal.SIGINT in self._captured_signals

    def _handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Of an accept that failed because files had run out, one line now and then: asyncio would say so hundreds of times a second."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            return loop.default_exception_handler(context)
        if time.monotonic() - self._said_at > QUIET:
            self._said_at = time.monotonic()
            log.error("no connection can be accepted: too many files are open", error=error.strerror)
