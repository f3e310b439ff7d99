"""HTTP/1.1 on one connection, within bounds: the head of a request in bytes and in time, and how many connections are open.

uvicorn's own protocol leaves these open: httptools keeps what it was fed of a head for as long as it comes, and nothing ends
a connection that sends none.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from asyncio import TimerHandle, Transport
from collections import Counter
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from darkroom.errors import BadRequest, DarkroomError, HeadersTooLarge, TooSlow, Unavailable

MAX_HEAD = 2**16  # bytes of a request's line and headers; also of what stands between the pieces of a chunked body, and behind it
MAX_LINES = 256  # of headers: browsers and proxies send 20 to 60
READ_TIMES = 4  # head_timeouts in which a client must read something of a reply that waits for it
LINGER = 2.0  # seconds that a refused connection stays open: closed at once, its reply would be lost with what still comes


class Connections:
    """Those that are open: `total` at most, and of one address three quarters, so that none keeps out all others."""

    def __init__(self, total: int):
        self.total, self.of_address = total, max(1, total * 3 // 4)
        self._open = 0
        self._by_address: Counter[str] = Counter()

    def add(self, address: str) -> str:
        """Count one more; why there is no room for it, or ""."""
        self._open += 1
        self._by_address[address] += 1
        if self._open > self.total:
            return f"the server has {self.total} connections open, which is as many as it takes"
        if self._by_address[address] > self.of_address:
            return f"this address has {self.of_address} connections open, which is as many as one may have"
        return ""

    def remove(self, address: str) -> None:
        self._open -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `within` makes the class that a server of these bounds is given."""

    head_timeout: ClassVar[float] = 15.0
    open_connections: ClassVar[Connections] = Connections(1024)

    @classmethod
    def within(cls, head_timeout: float, connections: int) -> type[BoundedProtocol]:
        """head_timeout: seconds that a head may take; connections: how many may be open at once."""
        bounds = {"head_timeout": head_timeout, "open_connections": Connections(connections)}
        return type(cls.__name__, (cls,), bounds)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._address = ""
        self._unused = 0  # bytes since the parser last came to the end of a head, or to a piece of a body
        self._lines = 0  # of headers, in this request
        self._head_timer: TimerHandle | None = None
        self._reader_timer: TimerHandle | None = None
        self._in_head = self._paused = self._refused = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        full = self.open_connections.add(self._address)
        if full:
            self._refuse(Unavailable(full), {"retry-after": "5"})
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.remove(self._address)
        self._end_timer()
        self._end_reader_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            self._await_head()
        while data and not self._refused and self.parser is not None and not self.transport.is_closing():
            piece, data = data[: MAX_HEAD - self._unused], data[MAX_HEAD - self._unused :]
            self._unused += len(piece)
            super().data_received(piece)
            if self._lines > MAX_LINES:
                self._refuse(HeadersTooLarge(f"a request must have at most {MAX_LINES} header lines, got more"))
            elif self._unused >= MAX_HEAD:
                line = f"the head of a request must have fewer than {MAX_HEAD} bytes, got that many without its end"
                self._refuse(HeadersTooLarge(line))

    def on_message_begin(self) -> None:
        if self._lines <= MAX_LINES:  # else what follows belongs to a request that is refused
            self._lines = 0
        self._in_head = True
        if not self._paused:
            self._end_reader_timer()  # who asks for more has read
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines += 1
        if self._lines <= MAX_LINES and self._in_head:  # a trailer must not become a header of a request that is under way
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._lines > MAX_LINES:
            return
        self._unused = 0
        self._end_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unused = 0
        if self._lines > MAX_LINES:
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unused = 0
        if self._lines > MAX_LINES:
            return
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._paused = True
        self._await_reader()

    def resume_writing(self) -> None:
        self._paused = False
        self._end_reader_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest("the request must be HTTP/1.1; what came cannot be read as such"))

    @property
    def _answered(self) -> bool:
        """Whether nobody waits for a reply: what comes now is a head, or the rest of a body that was not read."""
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout, self._head_is_late)

    def _end_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._unused:
            line = f"the head of a request must arrive within {self.head_timeout:g} s, got {self._unused} bytes of it"
            self._refuse(TooSlow(line))
        else:
            self.transport.close()

    def _await_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left and self._reader_timer is None:
            self._reader_timer = self.loop.call_later(READ_TIMES * self.head_timeout, self._reader_is_late, left)

    def _end_reader_timer(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _reader_is_late(self, before: int) -> None:
        """Let go of a client that has read nothing: what is left would be waited for, also once the connection is closed."""
        self._reader_timer = None
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._await_reader()

    def _refuse(self, error: DarkroomError, headers: dict[str, str] | None = None) -> None:
        """Answer by itself, if no reply is under way, and read no more."""
        self._refused = True
        self._end_timer()
        if not self._answered or self.transport.is_closing():
            self.transport.close()
            return
        request_id = f"req-{secrets.token_hex(8)}"
        body = json.dumps({"id": request_id, "name": error.name, "errors": error.lines}).encode()
        fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        fields |= {"x-request-id": request_id, **(headers or {})}
        lines = [f"{name}: {value}\r\n".encode() for name, value in fields.items()]
        self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body]))
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError):  # the client has gone
                self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)
