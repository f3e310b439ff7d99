"""Who may come in, in which order the refusals come, and what every reply carries."""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
import requests

from tests.conftest import SMALL, Server
from tests.http.test_generate import errors, pixels


def test_no_key_or_an_unknown_one_is_a_401_before_all_else(server: Server) -> None:
    for value in ("", "Bearer", "Bearer nonsense", f"Basic {server.key}", f"Bearer {server.key[:-1]}x", "Bearer " + "dk_" + "a" * 300):
        reply = server.generate(headers={"Authorization": value}, base=f"{server.host}/svc-unknown1", steps=1)
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert errors(reply, 401)["name"] == "unauthorized"


@pytest.mark.parametrize(
    ("header", "line"),
    [
        (None, "the header Authorization is missing"),
        ("", "must have the scheme Bearer"),
        ("Basic abc", "must have the scheme Bearer, got Basic"),
        ("WHOLE", "without the word Bearer"),
        ("Bearer", "no key after Bearer"),
        ("Bearer $API_KEY", "the text $API_KEY itself"),
        ("Bearer ${API_KEY}", "the text ${API_KEY} itself"),
        ("Bearer <YOUR_API_KEY>", "the text <YOUR_API_KEY> itself"),
        ("Bearer Bearer WHOLE", "stands there twice"),
        ("Bearer sk-abc", "no key of Darkroom, which begins with dk_"),
        ("Bearer cut", "is cut off: a key has 68 characters, got 67"),
        ("Bearer WHOLE.", "something after its end"),
        ("Bearer altered", "checksum does not fit"),
        ("Bearer unknown", "not known here"),
    ],
)
def test_a_401_says_what_is_wrong_with_the_key(server: Server, header: str | None, line: str) -> None:
    middle = "z" if server.key[30] != "z" else "y"
    unknown = "dk_" + "a" * 12 + "_" + "b" * 43
    texts = {
        "cut": server.key[:-1],
        "altered": server.key[:30] + middle + server.key[31:],
        "unknown": f"{unknown}_{zlib.crc32(unknown.encode()):08x}",
        "WHOLE": server.key,
    }
    for name, text in texts.items():
        header = header and header.replace(name, text)
    headers = {} if header is None else {"Authorization": header}
    reply = requests.get(f"{server.service_id}/v1/models", headers=headers, timeout=30)
    answer = errors(reply, 401)
    assert line in answer["errors"][0]
    assert server.key[16:40] not in reply.text, "an error repeats no key"


def test_a_key_in_another_header_is_told(server: Server) -> None:
    reply = requests.get(f"{server.host}/v1/models", headers={"X-API-Key": server.key}, timeout=30)
    assert "came as X-API-Key" in errors(reply, 401)["errors"][0]


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("/v1/image/generate", "POST {}/v1/images/generate;"),
        ("/v1/images/generations", "POST {}/v1/images/generate;"),
        ("/v1/images/generate/", "POST {}/v1/images/generate;"),
        ("/v1/images/edits", "POST {}/v1/images/control;"),
        ("/sdapi/v1/img2img", "POST {}/v1/images/control;"),
        ("/v1/model", "GET {}/v1/models;"),
    ],
)
def test_a_404_names_the_nearest_address(server: Server, path: str, nearest: str) -> None:
    for base in (server.host, server.service_id):
        reply = requests.post(f"{base}{path}", json=SMALL, headers=server.headers(), timeout=30)
        line = errors(reply, 404)["errors"][0]
        assert nearest.format(base.removeprefix(server.host)) in line
        assert "/docs" in line
    assert "nearest" not in errors(requests.get(f"{server.host}/qqqq", timeout=30), 404)["errors"][0]


def test_a_get_of_a_route_that_takes_posts_says_so(server: Server) -> None:
    for path, hint in (("generate", "JSON body"), ("control", "a form")):
        reply = requests.get(f"{server.service_id}/v1/images/{path}", headers=server.headers(), timeout=30)
        assert reply.headers["Allow"] == "POST"
        line = errors(reply, 405)["errors"][0]
        assert "send a POST" in line
        assert hint in line
    assert requests.put(f"{server.host}/v1/jobs/job-1", timeout=30).headers["Allow"] == "GET, DELETE"


def test_a_services_own_address_names_its_routes(server: Server) -> None:
    for end in ("", "/", "/v1"):
        answer = requests.get(f"{server.service_id}{end}", timeout=30).json()
        assert answer["routes"]["Text to image"] == f"POST {server.service_id}/v1/images/generate"
        assert answer["documentation"] == f"{server.host}/docs"
    assert errors(requests.get(f"{server.host}/svc-unknown1", headers=server.headers(), timeout=30), 404)
    assert errors(requests.get(server.service_id, headers=server.headers("dk_x"), timeout=30), 401)


def test_a_body_that_python_printed_is_told_to_be_none(server: Server) -> None:
    def said(body: str) -> str:
        headers = server.headers() | {"Content-Type": "application/json"}
        reply = requests.post(f"{server.service_id}/v1/images/generate", data=body, headers=headers, timeout=30)
        return errors(reply, 400)["errors"][0]

    assert "JSON wants double quotes" in said(str({"prompt": "a cat", "store": True}))
    assert "true, false and null" in said('{"prompt": "a cat", "store": True}')
    assert "it is empty" in said("")


def test_an_unknown_service_is_a_404_and_anothers_a_403(server: Server) -> None:
    errors(server.generate(base=f"{server.host}/svc-unknown1"), 404)
    other = json.loads(server.cli("service", "create", "other", "--json").stdout)["id"]
    assert errors(server.generate(base=f"{server.host}/{other}"), 403)["name"] == "permission_denied"


def test_a_new_key_works_at_once_and_a_revoked_one_no_more(server: Server) -> None:
    key = json.loads(server.cli("key", "create", "--json").stdout)
    pixels(server.generate(headers=server.headers(key["key"])))
    assert server.cli("key", "revoke", key["public_id"]).returncode == 0
    assert "revoked" in errors(server.generate(headers=server.headers(key["key"])), 401)["errors"][0]


def test_models_health_and_documentation(server: Server) -> None:
    data = requests.get(f"{server.service_id}/v1/models", headers=server.headers(), timeout=30).json()
    assert data["object"] == "list"
    assert [model["id"] for model in data["data"]] == ["demo-xl", "demo-3.5"]
    model = data["data"][0]
    assert model["id"] == server.model
    assert model["object"] == "model"
    assert model["family"] == "sdxl"
    assert {"max_side", "default_side", "loaded", "license"} <= model.keys()
    errors(requests.get(f"{server.host}/v1/models", timeout=30), 401)
    assert requests.get(f"{server.host}/healthz", timeout=30).json()["status"] == "ok"
    server.generate()
    assert requests.get(f"{server.host}/readyz", timeout=30).json()["loaded"][0] == server.model
    page = requests.get(f"{server.host}/docs", timeout=30)
    assert page.headers["X-Frame-Options"] == "DENY"
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_the_example_of_the_documentation_works(server: Server) -> None:
    route = requests.get(f"{server.host}/openapi.json", timeout=30).json()["paths"]["/v1/images/generate"]["post"]
    example = route["requestBody"]["content"]["application/json"]["example"]
    pixels(requests.post(f"{server.host}/v1/images/generate", json=example, headers=server.headers(), timeout=120))


def test_every_reply_has_an_id_and_errors_have_one_shape(server: Server) -> None:
    assert requests.get(f"{server.host}/healthz", timeout=30).headers["X-Request-Id"]
    errors(requests.get(f"{server.host}/nowhere", timeout=30), 404)
    errors(requests.get(f"{server.host}/v1/images/generate", timeout=30), 405)
    errors(requests.delete(f"{server.service_id}/v1/images/control", timeout=30), 405)


@pytest.mark.parametrize(("level", "told"), [("info", False), ("debug", True)])
def test_the_log_tells_of_changes_and_of_what_went_wrong(serve: Callable[..., Server], level: str, told: bool) -> None:
    server = serve("--model", "demo-xl", DARKROOM_LOG_LEVEL=level, DARKROOM_PRELOAD="false")
    probes = ["/healthz", "/readyz", "/metrics"]
    pages = ["/", "/docs", "/openapi.json", "/assets/none.js", "/console/state", "/console/keys"]
    replies = [requests.get(f"{server.host}{path}", timeout=30) for path in probes + pages]
    for path in ("jobs?limit=1", "models"):
        replies.append(requests.get(f"{server.service_id}/v1/{path}", headers=server.headers(), timeout=30))
    loud = [
        requests.get(f"{server.service_id}/v1/models", timeout=30),
        requests.get(f"{server.host}/v1/nothing", timeout=30),
        requests.post(f"{server.host}/console/sign-in", json={"password": "a guess"}, timeout=30),
        server.generate(steps=7),
    ]
    assert all(server.logged(f"id={reply.headers['X-Request-Id']}") for reply in loud)
    log = server.log.read_text()
    assert {f"id={reply.headers['X-Request-Id']}" in log for reply in replies} == {told}


def test_cors(server: Server) -> None:
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = requests.options(f"{server.service_id}/v1/images/generate", headers=asked, timeout=30)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == "*"
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"].lower()
    exposed = server.generate(headers={"Origin": "https://page.example"}).headers["Access-Control-Expose-Headers"]
    for name in ("Seed", "Finish-Reason", "X-Request-Id", "X-Model", "X-Steps-Run", "X-Queue-Ms", "X-Inference-Ms", "X-Model-Note"):
        assert name in exposed


def test_a_full_queue_is_a_429_with_a_computed_wait(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl", "--max-queue", "1")
    server.generate()
    running = threading.Thread(target=lambda: server.generate(steps=50, width=384, height=384))
    running.start()
    time.sleep(1)
    reply = server.generate()
    running.join()
    assert errors(reply, 429)["name"] == "too_many_requests"
    assert int(reply.headers["Retry-After"]) >= 1
    pixels(server.generate())


def test_every_job_ends_whenever_its_client_leaves(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl")
    server.generate()
    body = json.dumps(SMALL | {"steps": 12}).encode()
    address = urlsplit(server.host)
    head = f"POST /v1/images/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\nContent-Type: application/json\r\n"
    for i in range(60):
        with socket.create_connection((address.hostname, address.port), timeout=20) as line:
            line.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(i % 20 * 0.004 if i % 2 else i * 0.01)
    pixels(server.generate())
    rows = sqlite3.connect(f"file:{server.data_dir / 'darkroom.sqlite'}?mode=ro", uri=True)
    deadline = time.monotonic() + 30
    while (count := rows.execute("select count(*) from jobs where status in ('queued', 'running')").fetchone()[0]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert count == 0
    assert {row[0] for row in rows.execute("select distinct status from jobs")} <= {"finished", "cancelled"}
    kept = {path.name for path in (server.data_dir / "pictures").rglob("*.png")}
    assert kept == {key.split("/")[1] for (key,) in rows.execute("select key from pictures")}


def test_a_client_that_leaves_stops_the_work(server: Server) -> None:
    server.generate()
    try:
        requests.post(f"{server.service_id}/v1/images/generate", json=SMALL | {"steps": 50, "width": 768, "height": 768}, headers=server.headers(), timeout=0.7)
        raise AssertionError("the picture was too quick for this test")
    except requests.Timeout:
        left = time.monotonic()
    pixels(server.generate())
    waited = time.monotonic() - left
    assert " status=499" in server.log.read_text()
    whole = time.monotonic()
    server.generate(steps=50, width=768, height=768)
    assert waited < 0.7 * (time.monotonic() - whole)


def test_missing_weights_are_a_503_that_says_the_command(serve: Callable[..., Server]) -> None:
    server = serve("--model", "stable-diffusion-xl-base-1.0", HF_HUB_OFFLINE="1")
    assert server.cli("models", "accept", "stable-diffusion-xl-base-1.0", "--yes").returncode == 0
    reply = server.generate()
    assert "darkroom models pull stable-diffusion-xl-base-1.0" in errors(reply, 503)["errors"][0]
    assert reply.headers["Retry-After"]
    assert requests.get(f"{server.host}/readyz", timeout=30).status_code == 503
