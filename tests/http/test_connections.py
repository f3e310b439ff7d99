"""Connections that send no request, half of one, or one without an end; more of them than there is room for."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from darkroom.http.protocol import MAX_HEAD, MAX_LINES, Connections
from darkroom.http.server import MAX_FILES, MAX_FILES_OF_MACOS, connections_within, files_wanted
from tests.conftest import Server, start
from tests.http.test_generate import errors, pixels

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits for a head for 1.5 s."""
    running = start(tmp_path_factory.mktemp("hasty"), "--model", "demo-xl", DARKROOM_HEAD_TIMEOUT="1.5")
    yield running
    running.stop()


def connect(server: Server) -> socket.socket:
    address = urlsplit(server.host)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def reply_on(line: socket.socket) -> tuple[int, dict[str, str], dict]:
    """Status, headers and JSON of what comes until the server closes."""
    head, _, body = b"".join(iter(lambda: line.recv(65536), b"")).partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    return int(status.split()[1]), {name.lower(): value for name, _, value in (one.partition(": ") for one in fields)}, json.loads(body)


def send_on(line: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the server may have heard enough
        line.sendall(data)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n" + (b"a: " + b"b" * 1000 + b"\r\n") * 2000,
        b"GET /" + b"a" * 2_000_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nx-long: " + b"a" * 2_000_000,
        b"GET / HTTP/1.1\r\n" + b"a" * 2_000_000 + b": b\r\n",
        b"\r\n" * 1_000_000,
    ],
    ids=["many headers", "a long address", "a long value", "a long name", "no request"],
)
def test_the_head_of_a_request_is_bounded(server: Server, data: bytes) -> None:
    with connect(server) as line:
        send_on(line, data)
        status, headers, body = reply_on(line)
    assert status == 431
    assert body["name"] == "headers_too_large"
    assert body["id"] == headers["x-request-id"]
    assert f"fewer than {MAX_HEAD} bytes" in body["errors"][0]


@pytest.mark.parametrize("end", [b"", b"\r\n", b"\r\n" + HEAD + b"\r\n"], ids=["half", "whole", "with another behind it"])
def test_header_lines_are_counted_too(server: Server, end: bytes) -> None:
    """Each takes some hundred bytes once it is read, however short it was."""
    with connect(server) as line:
        send_on(line, HEAD + b"a:b\r\n" * (MAX_LINES + 1) + end)
        status, _, body = reply_on(line)
    assert (status, body["name"]) == (431, "headers_too_large")
    assert f"at most {MAX_LINES} header lines" in body["errors"][0]


def test_short_header_lines_on_many_connections_take_no_more_memory_than_they_are(server: Server) -> None:
    memory = psutil.Process(server.process.pid).memory_info().rss
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(connect(server)) for _ in range(100)]
        for line in lines:
            send_on(line, b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 13_000)
        for line in lines:
            assert reply_on(line)[0] == 431
        assert psutil.Process(server.process.pid).memory_info().rss - memory < 50e6


def test_as_many_header_lines_as_may_be_are_taken(server: Server) -> None:
    few = MAX_LINES - 10  # requests sends some of its own
    for _ in range(2):  # they are counted anew for each request of a connection
        with requests.Session() as session:
            for _ in range(3):
                sent = {f"x-{i}": "a" for i in range(few)}
                assert session.get(f"{server.host}/healthz", headers=sent, timeout=20).status_code == 200


def test_a_head_of_nearly_that_size_is_taken(server: Server) -> None:
    reply = requests.get(f"{server.host}/healthz", headers={"x-long": "a" * 60_000}, timeout=20)
    assert reply.status_code == 200


@pytest.mark.parametrize("extra", [b"0\r\n" + b"a: b\r\n" * 200_000, b"1;" + b"x" * 2_000_000], ids=["trailers", "an extension"])
def test_what_stands_between_and_behind_the_pieces_of_a_body_is_bounded(server: Server, extra: bytes) -> None:
    head = f"POST /v1/images/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
    head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
    memory = psutil.Process(server.process.pid).memory_info().rss
    with connect(server) as line:
        send_on(line, head.encode() + extra)
        line.settimeout(20)
        with contextlib.suppress(OSError):
            while line.recv(65536):
                continue
    assert psutil.Process(server.process.pid).memory_info().rss - memory < 50e6


def test_a_trailer_is_no_header_of_its_request(server: Server) -> None:
    """Behind a proxy that checks headers it would be a way around."""
    head = b"POST /v1/images/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(server) as line:
        line.sendall(head + f"2\r\n{{}}\r\n0\r\nAuthorization: Bearer {server.key}\r\n\r\n".encode())
        assert line.recv(65536).startswith(b"HTTP/1.1 401")


def test_whoever_does_not_read_is_let_go_and_whoever_reads_slowly_is_not(hasty: Server) -> None:
    """Ten replies behind each other on a connection, more than the system keeps for a client."""
    page = re.findall(r'"(/assets/[^"]+\.js)"', requests.get(f"{hasty.host}/docs", timeout=20).text)[0]
    size = 10 * len(requests.get(f"{hasty.host}{page}", timeout=20).content)
    assert size > 12_000_000
    address, ask = urlsplit(hasty.host), f"GET {page} HTTP/1.1\r\nHost: x\r\n"

    def asking() -> socket.socket:
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(20)
        line.connect((address.hostname, address.port))
        line.sendall(f"{ask}\r\n".encode() * 9 + f"{ask}Connection: close\r\n\r\n".encode())
        return line

    def rest_of(line: socket.socket) -> int:
        got = 0
        with contextlib.suppress(ConnectionError):  # a connection that was let go is reset
            while more := line.recv(65536):
                got += len(more)
        return got

    with asking() as silent, asking() as slow:
        began, got = time.monotonic(), 0
        while time.monotonic() - began < 15:  # whoever reads nothing has 6 s
            got += len(slow.recv(8192))
            time.sleep(0.02)
        assert got + rest_of(slow) > size
        assert rest_of(silent) < size


def test_a_body_in_the_smallest_pieces_is_taken(server: Server) -> None:
    content = json.dumps({"prompt": "a red apple " * 100, "steps": 10, "width": 128, "height": 128}).encode()
    pieces = (content[i : i + 1] for i in range(len(content)))
    headers = server.headers() | {"Content-Type": "application/json"}
    assert requests.post(f"{server.host}/v1/images/generate", data=pieces, headers=headers, timeout=60).status_code == 200


@pytest.mark.parametrize("begun", [b"", HEAD, b"GET", b"\r\n"])
def test_a_connection_without_a_whole_head_is_closed(hasty: Server, begun: bytes) -> None:
    with connect(hasty) as line:
        line.sendall(begun)
        began = time.monotonic()
        got = line.makefile("rb").read()
        assert 1 < time.monotonic() - began < 10
    assert got.startswith(b"HTTP/1.1 408") if begun.strip() else b"200" not in got


def test_a_head_that_trickles_is_not_given_more_time(hasty: Server) -> None:
    with connect(hasty) as line:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for _ in range(40):
                line.sendall(b"a")
                time.sleep(0.25)
        assert time.monotonic() - began < 8


def test_a_kept_connection_has_as_long_for_its_next_head(hasty: Server) -> None:
    with connect(hasty) as line:
        for _ in range(2):
            line.sendall(HEAD + b"\r\n")
            reply = b""
            while not reply.endswith(b"}"):  # head and body may come apart
                reply += line.recv(65536)
            assert b"200 OK" in reply
        line.sendall(HEAD)
        began = time.monotonic()
        assert b"408" in line.makefile("rb").read()
        assert time.monotonic() - began < 10


def test_the_rest_of_a_body_that_nobody_reads_does_not_keep_a_connection(hasty: Server) -> None:
    with connect(hasty) as line:
        line.sendall(b"POST /v1/images/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
        assert b"401" in line.recv(65536)
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for _ in range(40):
                line.sendall(b"a")
                time.sleep(0.25)
        assert time.monotonic() - began < 8


def test_a_picture_may_take_longer_than_a_head(hasty: Server) -> None:
    assert pixels(hasty.generate(steps=50, width=384, height=384)).shape == (384, 384, 3)


def test_what_is_no_http_is_told_in_our_shape(server: Server) -> None:
    with connect(server) as line:
        line.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        status, headers, body = reply_on(line)
    assert (status, body["name"]) == (400, "bad_request")
    assert headers["x-request-id"] == body["id"]


def test_connections_are_counted_of_all_and_of_one_address() -> None:
    open_ = Connections(8)
    assert [bool(open_.add("10.0.0.1")) for _ in range(7)] == [False] * 6 + [True]
    open_.remove("10.0.0.1")
    assert [bool(open_.add(f"10.0.1.{i}")) for i in range(3)] == [False, False, True]
    assert "8 connections" in open_.add("10.0.0.2")


def test_silent_connections_leave_room_for_others_and_files_to_work_with(tmp_path: Path) -> None:
    limit = ["bash", "-c", 'ulimit -n 120; exec "$@"', "limited"]
    server = start(tmp_path / "data", "--model", "demo-xl", wrap=lambda command: [*limit, *command], DARKROOM_HEAD_TIMEOUT="5")
    lines: list[socket.socket] = []
    try:
        size = server.log.stat().st_size
        for _ in range(300):
            with contextlib.suppress(OSError):
                lines.append(connect(server))
        refused = [line for line in lines if _is_refused(line)]
        assert len(refused) >= 300 - 42  # (120 - 64) * 3 / 4 may be open
        deadline = time.monotonic() + 20
        while True:  # the silent ones are closed in time
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{server.host}/healthz", timeout=5).status_code == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert pixels(server.generate()).shape == (128, 128, 3)
        assert server.log.stat().st_size - size < 100_000
    finally:
        for line in lines:
            line.close()
        server.stop()


def _is_refused(line: socket.socket) -> bool:
    line.settimeout(1)
    try:
        return not line.recv(4096).startswith(b"HTTP/1.1 200")
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize(
    ("soft", "hard", "wanted"),
    [
        (1024, 20_000, [20_000]),
        (256, resource.RLIM_INFINITY, [MAX_FILES, MAX_FILES_OF_MACOS]),  # macOS
        (1024, 1_048_576, [MAX_FILES]),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, []),
        (4096, 4096, []),
    ],
)
def test_as_many_files_are_asked_for_as_there_may_be(soft: int, hard: int, wanted: list[int]) -> None:
    assert files_wanted(soft, hard) == wanted


def test_connections_never_take_all_files() -> None:
    assert connections_within(20_000, 0) == 14_952
    assert connections_within(20_000, 100) == 100
    assert connections_within(400, 5_000) == 252


def test_the_setting_bounds_connections(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl", DARKROOM_MAX_CONNECTIONS="4")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(server))
        reply = requests.get(f"{server.host}/healthz", timeout=20)
        assert "3 connections" in errors(reply, 503)["errors"][0]
        assert int(reply.headers["Retry-After"]) > 0
