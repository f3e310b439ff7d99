"""What a client may not do to the server: send slowly, send many parts, or see our faults."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import requests

from tests.conftest import SMALL, Server
from tests.http.test_generate import errors, pixels


def multipart(parts: list[tuple[str, bytes]]) -> tuple[bytes, str]:
    """A form body written out by hand, with its Content-Type."""
    lines = [b'--edge\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value) for name, value in parts]
    return b"".join(lines) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def post_form(server: Server, body: bytes, kind: str) -> requests.Response:
    headers = server.headers() | {"Content-Type": kind}
    return requests.post(f"{server.service_id}/v1/images/control", data=body, headers=headers, timeout=30)


def test_too_many_parts_are_a_400(server: Server) -> None:
    answer = errors(post_form(server, *multipart([(f"field{i}", b"1") for i in range(33)])), 400)
    assert "fields" in answer["errors"][0]


def test_a_large_text_field_is_a_400(server: Server) -> None:
    errors(post_form(server, *multipart([("prompt", b"a" * (2**16 + 1))])), 400)


def test_a_form_without_its_end_is_a_clear_error(server: Server) -> None:
    body, kind = multipart([("prompt", b"a cat")])
    assert post_form(server, body[: len(body) // 2], kind).status_code in (400, 422)
    errors(post_form(server, body, "multipart/form-data"), 400)


def test_a_body_that_comes_too_slowly_is_a_408_and_the_server_goes_on(serve: Callable[..., Server]) -> None:
    server = serve(DARKROOM_BODY_TIMEOUT="1.5")
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
    server = serve()
    pictures = server.data_dir / "pictures"
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.write_text("where a folder should be")
    reply = server.generate()
    body = errors(reply, 500)
    assert body["name"] == "server_error"
    assert str(server.data_dir) not in reply.text
    assert "Traceback" not in reply.text
    assert server.logged(f"id={body['id']}")
    assert server.logged("NotADirectoryError")
    pictures.unlink()
    pixels(server.generate())


def test_settings_of_a_file_reach_the_routes(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "darkroom.toml").write_text(
        'public_url = "https://pictures.example/"\ncors_origins = ["https://page.example"]\nembed_prompt = false\nexact = true\nmax_queue = 3\n'
    )
    server = serve("--max-queue", "9", folder=tmp_path)
    assert server.service_id.startswith("https://pictures.example/svc-")
    assert f"curl {server.service_id}/v1/images/generate" in "\n".join(server.block)
    host = server.log_address()
    url = f"{host}/v1/images/generate"
    replies = [requests.post(url, json=SMALL | {"seed": 4}, headers=server.headers() | {"Origin": o}, timeout=60) for o in ("https://page.example", "https://b.example")]
    assert replies[0].headers["Access-Control-Allow-Origin"] == "https://page.example"
    assert "Access-Control-Allow-Origin" not in replies[1].headers
    assert SMALL["prompt"].encode() not in replies[0].content
    assert np.array_equal(pixels(replies[0]), pixels(replies[1]))
    assert json.loads(requests.get(f"{host}/healthz", timeout=10).text)
