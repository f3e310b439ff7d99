"""What a client may not do to the server: send slowly, send many parts, or see our faults."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import requests
from PIL import Image

from tests.conftest import SMALL, Server
from tests.http.test_generate import errors, pixels


def multipart(parts: list[tuple[str, bytes]]) -> tuple[bytes, str]:
    """A form body written out by hand, with its Content-Type."""
    lines = [b'--edge\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value) for name, value in parts]
    return b"".join(lines) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "orange").save(out, "PNG")
    return out.getvalue()


def post_form(server: Server, body: bytes, kind: str) -> requests.Response:
    headers = server.headers() | {"Content-Type": kind}
    return requests.post(f"{server.service_id}/v1/images/control", data=body, headers=headers, timeout=30)


def test_many_parts_and_large_texts_break_their_rules(server: Server) -> None:
    answer = errors(post_form(server, *multipart([(f"field{i}", b"1") for i in range(33)])), 422)
    assert any('"field0" is not a field' in line for line in answer["errors"])
    answer = errors(post_form(server, *multipart([("prompt", b"a" * 70_000)])), 422)
    assert any("10000 characters" in line for line in answer["errors"])
    errors(post_form(server, *multipart([(f"field{i}", b"1") for i in range(1001)])), 400)


def test_a_form_that_is_cut_anywhere_is_a_400(server: Server) -> None:
    """Cut within its last field, a form would otherwise lose that field in silence."""
    body, kind = multipart([("image", png(128, 128)), ("prompt", b"a cat"), ("steps", b"10"), ("seed", b"12345")])
    body = body.replace(b'name="image"', b'name="image"; filename="a.png"')
    assert post_form(server, body, kind).headers["Seed"] == "12345"
    for length in (0, 10, len(body) // 2, len(body) - 20, len(body) - 8, len(body) - 5):
        errors(post_form(server, body[:length], kind), 400)
    for wrong in ("multipart/form-data", "multipart/form-data; boundary=other", f"multipart/form-data; boundary={'x' * 80}"):
        errors(post_form(server, body, wrong), 400)


def test_text_of_a_form_is_utf_8_or_refused(server: Server) -> None:
    body, kind = multipart([("prompt", b"\xff\xfecat"), ("steps", b"5")])
    answer = errors(post_form(server, body, kind), 422)
    assert any("UTF-8" in line for line in answer["errors"])
    assert any(line.startswith("steps") for line in answer["errors"])
    for charset in ("latin-1", "utf-16-le", "undefined", "nonsense"):
        errors(post_form(server, body, f"{kind}; charset={charset}"), 415)


def test_a_packed_body_is_a_415(server: Server) -> None:
    headers = server.headers() | {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    errors(requests.post(f"{server.service_id}/v1/images/generate", data=b"\x1f\x8b", headers=headers, timeout=30), 415)


def test_every_setting_bounds_what_it_says(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl", DARKROOM_MAX_BODY_BYTES="65536", DARKROOM_MAX_PIXELS="65536", DARKROOM_MAX_CONCURRENT="2")
    errors(server.generate(prompt="a" * 70_000), 413)
    assert pixels(server.generate(width=None, height=None)).shape == (256, 256, 3)
    answer = errors(server.control(png(128, 128), width="1024"), 422)
    assert "width must be at most 512" in answer["errors"][0]
    address, lines = urlsplit(server.host), []
    head = f"POST /v1/images/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\nContent-Length: 500\r\n\r\n".encode()
    try:
        for _ in range(2):
            lines.append(socket.create_connection((address.hostname, address.port), timeout=20))
            lines[-1].sendall(head)
        time.sleep(1)
        reply = requests.get(f"{server.host}/v1/models", headers=server.headers() | {"Origin": "https://a.example"}, timeout=20)
        assert errors(reply, 429)["name"] == "too_many_requests"
        assert int(reply.headers["Retry-After"]) >= 1
        assert reply.headers["Access-Control-Allow-Origin"]
        assert requests.get(f"{server.host}/healthz", timeout=20).status_code == 200
        assert requests.head(f"{server.host}/healthz", timeout=20).status_code == 200
    finally:
        for line in lines:
            line.close()


def test_a_body_that_comes_too_slowly_is_a_408_and_the_server_goes_on(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl", DARKROOM_BODY_TIMEOUT="1.5")
    address = urlsplit(server.host)
    with socket.create_connection((address.hostname, address.port), timeout=20) as line:
        path = urlsplit(server.service_id).path
        head = f"POST {path}/v1/images/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Content-Length: 500\r\n\r\n".encode() + b'{"prompt": ')
        began = time.monotonic()
        answer = line.makefile().read()  # to the end: the server closes a connection whose body never came
    assert answer.startswith("HTTP/1.1 408"), answer
    assert "the body must arrive within 1.5 s" in answer
    assert time.monotonic() - began > 1
    # a body that came in time may take as long as it needs for its picture
    assert pixels(server.generate(steps=50, width=256, height=256)).shape == (256, 256, 3)


def test_a_fault_of_ours_is_a_500_without_trace_or_path(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl")
    with contextlib.closing(sqlite3.connect(server.data_dir / "darkroom.sqlite")) as connection:
        connection.execute("drop table usage")
    reply = server.generate()
    body = errors(reply, 500)
    assert body["name"] == "server_error"
    assert str(server.data_dir) not in reply.text
    assert "Traceback" not in reply.text
    assert server.logged(f"id={body['id']}")
    assert server.logged("no such table")
    job = requests.get(f"{server.host}/v1/jobs?limit=1", headers=server.headers(), timeout=30).json()["data"][0]
    assert (job["status"], job["error"]["name"]) == ("failed", "server_error")


def test_settings_of_a_file_reach_the_routes(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "darkroom.toml").write_text(
        'public_url = "https://pictures.example/"\ncors_origins = ["https://page.example"]\nembed_prompt = false\nexact = true\nmax_queue = 3\n'
    )
    server = serve("--model", "demo-xl", "--max-queue", "9", folder=tmp_path)
    assert server.service_id.startswith("https://pictures.example/svc-")
    assert f" {server.service_id}/v1/images/generate" in "\n".join(server.block)
    host = server.log_address()
    url = f"{host}/v1/images/generate"
    replies = [requests.post(url, json=SMALL | {"seed": 4}, headers=server.headers() | {"Origin": o}, timeout=60) for o in ("https://page.example", "https://b.example")]
    assert replies[0].headers["Access-Control-Allow-Origin"] == "https://page.example"
    assert "Access-Control-Allow-Origin" not in replies[1].headers
    assert SMALL["prompt"].encode() not in replies[0].content
    assert np.array_equal(pixels(replies[0]), pixels(replies[1]))
    assert json.loads(requests.get(f"{host}/healthz", timeout=10).text)


def test_who_has_no_key_and_who_has_one_key_leave_room_for_others(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl", DARKROOM_MAX_CONCURRENT="4", DARKROOM_MAX_STREAMS="4")
    other = json.loads(server.cli("key", "create", "--json").stdout)["key"]
    address, lines = urlsplit(server.host), []

    def hold(path: str, more: str = "") -> None:
        lines.append(socket.create_connection((address.hostname, address.port), timeout=20))
        lines[-1].sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: 500\r\n\r\n".encode())

    try:
        for _ in range(8):
            hold("/console/sign-in", "Content-Type: application/json\r\n")
        for _ in range(3):
            hold("/v1/images/generate", f"Authorization: Bearer {server.key}\r\n")
            hold("/v1/images/generate", f"Authorization: Bearer {server.key}\r\nAccept: text/event-stream\r\n")
        time.sleep(1)
        reply = errors(requests.post(f"{server.host}/console/sign-in", json={"password": "x"}, timeout=20), 429)
        assert "8 sign-ins" in reply["errors"][0]
        assert "3 requests" in errors(requests.get(f"{server.host}/v1/models", headers=server.headers(), timeout=20), 429)["errors"][0]
        assert "3 streams" in errors(server.generate(headers={"Accept": "text/event-stream"}), 429)["errors"][0]
        pixels(server.generate(headers=server.headers(other)))
        assert requests.get(f"{server.host}/console/state", timeout=20).status_code == 200
        assert requests.get(f"{server.host}/docs", timeout=20).headers["X-Frame-Options"] == "DENY"
    finally:
        for line in lines:
            line.close()


def test_what_no_database_takes_is_no_fault_of_ours(server: Server) -> None:
    for path in ("/v1/jobs/%00", "/v1/jobs/a%00b/image", "/%00", "/docs/static/%00", "/svc-%00/v1/models"):
        errors(requests.get(f"{server.host}{path}", headers=server.headers(), timeout=30), 404)
    instants = [f"created_after={when}" for when in ("9" * 400, "0001-01-01", "nan")]
    for asked in ("model=%00", "limit=0000000000000099999", "limit=%D9%A3", "limit=1&limit=2", *instants):
        errors(requests.get(f"{server.host}/v1/jobs?{asked}", headers=server.headers(), timeout=30), 422)
    reply = requests.post(f"{server.service_id}/v1/images/generate?seed=4", json=SMALL, headers=server.headers(), timeout=30)
    assert '"seed" is not a field' in errors(reply, 422)["errors"][0]
    requests.get(f"{server.host}/v1/no%0astatus=200%1b[2J", timeout=30)
    assert server.logged("path=/v1/no%0Astatus%3D200%1B%5B2J")
    text, headers = '{"prompt": "a", "steps": NaN, "colour": [Infinity]}', server.headers() | {"Content-Type": "application/json"}
    errors(requests.post(f"{server.service_id}/v1/images/generate", data=text, headers=headers, timeout=30), 422)
