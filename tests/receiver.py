"""A server of a client's own, that takes webhooks and answers as it is told."""

from __future__ import annotations

import ssl
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Receiver:
    """Notes what it got as (path, headers, body) in `got`, and answers with `answers` in turn, (status, headers, body) each, then
    with 200. The header `Endless` (yes or slow) sends the body over and over; delay: seconds before every answer; speaks: bytes to
    say instead of HTTP."""

    def __init__(self, certificate: Path | None = None, speaks: bytes | None = None):
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.delay = 0.0
        self._ended, self._speaks = threading.Event(), speaks
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/hook"

    def __enter__(self) -> Receiver:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, count: int, seconds: float = 20.0) -> None:
        """Until so many have come. Fails where they do not."""
        deadline = time.monotonic() + seconds
        while len(self.got) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(self.got) >= count, self.got

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                answer = receiver.answers.pop(0) if receiver.answers else (200, {}, b"thanks")
                receiver._ended.wait(receiver.delay)
                with suppress(OSError):
                    self._answer(*answer)

            def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                if receiver._speaks is not None:
                    self.wfile.write(receiver._speaks)
                    return
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Endless" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                while "Endless" in headers and not receiver._ended.wait(0.1 if headers["Endless"] == "slow" else 0):
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
