"""/console: signing in, and what the dashboard reads and changes. The pages themselves are tested in a browser."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import sqlite3
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from PIL import Image

from tests.conftest import SMALL, Server, cli
from tests.http.test_generate import errors


class Person:
    """A browser of a person: cookies, and the CSRF token once signed in."""

    def __init__(self, server: Server):
        self.server, self.http, self.csrf = server, requests.Session(), ""

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        headers = {"X-CSRF-Token": self.csrf} | options.pop("headers", {})
        return self.http.request(method, f"{self.server.log_address()}{path}", headers=headers, timeout=60, **options)

    def get(self, path: str) -> Any:
        reply = self.call("GET", path)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def sign_in(self, **secret: str) -> requests.Response:
        reply = self.call("POST", "/console/sign-in", json=secret)
        if reply.status_code == 200:
            self.csrf = reply.json()["csrf"]
        return reply

    def make(self, **fields: Any) -> requests.Response:
        service = self.server.service_id.rpartition("/")[2]
        return self.call("POST", f"/{service}/v1/images/generate", json=SMALL | fields, headers={"Cache-Control": "no-cache"})

    @property
    def service(self) -> str:
        return self.server.service_id.rpartition("/")[2]


def link_of(server: Server) -> str:
    """The token of the one-time link that the server printed."""
    return re.findall(r"#link=(\S+)", "\n".join(server.block))[0]


@pytest.fixture(scope="module")
def person(server: Server) -> Person:
    """Signed in by a link of their own."""
    one = Person(server)
    made = server.cli("link")
    assert one.sign_in(link=made.stdout.strip().rpartition("#link=")[2]).status_code == 200, made.stderr
    return one


def test_the_link_signs_in_once_then_a_password_does(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl")
    first, second = Person(server), Person(server)
    assert first.get("/console/state")["signed_in"] is False
    assert first.sign_in(link=link_of(server)).status_code == 200
    assert errors(second.sign_in(link=link_of(server)), 401)
    assert errors(second.sign_in(password=""), 401)  # there is none yet
    cookie = next(iter(first.http.cookies))
    assert cookie.name == "darkroom_session"
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert errors(first.call("POST", "/console/password", json={"password": "short"}), 422)["name"] == "invalid_password"
    assert first.call("POST", "/console/password", json={"password": "correct horse"}).json()["password_set"] is True
    assert second.sign_in(password="correct horse").status_code == 200
    assert errors(second.call("POST", "/console/password", json={"password": "another horse", "old": "wrong"}), 401)
    assert second.call("POST", "/console/password", json={"password": "another horse", "old": "correct horse"}).status_code == 200
    assert errors(first.call("GET", "/console/keys"), 401)  # a new password signs the others out
    assert second.call("POST", "/console/sign-out").status_code == 200
    assert second.get("/console/state")["signed_in"] is False


def test_attempts_are_limited(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl", DARKROOM_PASSWORD="correct horse")
    assert "link" not in "\n".join(server.block)
    person = Person(server)
    codes = [person.sign_in(password=f"guess {i}").status_code for i in range(11)]
    assert codes == [401] * 10 + [429]
    late = person.sign_in(password="correct horse")
    assert errors(late, 429)
    assert 200 <= int(late.headers["Retry-After"]) <= 300


def test_wrong_guesses_never_keep_a_valid_link_out(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl")
    person = Person(server)
    codes = [person.sign_in(**{kind: f"guess {i}"}).status_code for i in range(12) for kind in ("password", "link")]
    assert codes.count(429) == 2
    assert person.sign_in(link=link_of(server)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Origin": "https://pages.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://HOST", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://HOST", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://HOST"}, 401),
        ({"Origin": "https://behind.a.proxy", "Sec-Fetch-Site": "same-origin"}, 401),
        ({}, 401),
    ],
)
def test_only_the_dashboards_own_page_signs_in(server: Server, headers: dict[str, str], status: int) -> None:
    host = urlsplit(server.host).netloc
    sent = {"Content-Type": "application/json"} | {name: value.replace("HOST", host) for name, value in headers.items()}
    reply = requests.post(f"{server.host}/console/sign-in", data='{"link": "a guess"}', headers=sent, timeout=20)
    errors(reply, status)
    assert "Access-Control-Allow-Origin" not in reply.headers


def test_no_other_origin_may_read_or_ask_the_dashboards_own_routes(server: Server) -> None:
    origin = {"Origin": "https://pages.example", "Access-Control-Request-Method": "POST"}
    for method, path in (("OPTIONS", "/console/sign-in"), ("GET", "/console/state"), ("GET", "/console")):
        reply = requests.request(method, f"{server.host}{path}", headers=origin, timeout=20)
        assert not [name for name in reply.headers if name.lower().startswith("access-control")], (method, path)
    asked = requests.options(f"{server.host}/v1/images/generate", headers=origin, timeout=20)
    assert asked.headers["Access-Control-Allow-Origin"]


def test_a_public_address_needs_a_password(tmp_path: Any) -> None:
    refused = cli("serve", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path), "--model", "demo-xl")
    assert refused.returncode == 1
    assert "darkroom password" in refused.stderr


def test_the_password_can_be_set_on_the_command_line(serve: Callable[..., Server], tmp_path: Any) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from a file, long enough\n")
    server = serve("--model", "demo-xl", DARKROOM_PASSWORD_FILE=str(secret))
    assert Person(server).sign_in(password="from a file, long enough").status_code == 200


@pytest.mark.parametrize("path", ["keys", "services", "pictures", "requests", "usage", "models", "system", "sessions"])
def test_nothing_is_shown_to_who_is_not_signed_in(server: Server, path: str) -> None:
    errors(requests.get(f"{server.host}/console/{path}", timeout=30), 401)
    errors(requests.get(f"{server.host}/console/{path}", cookies={"darkroom_session": "x" * 43}, timeout=30), 401)
    errors(requests.get(f"{server.host}/console/{path}", headers=server.headers(), timeout=30), 401)  # a key is no session


def test_an_unsafe_call_needs_the_token(person: Person) -> None:
    unsafe = [("POST", "/console/keys"), ("PATCH", "/console/pictures/x"), ("DELETE", "/console/keys/x"), ("POST", f"/{person.service}/v1/images/generate")]
    for method, path in unsafe:
        errors(person.call(method, path, headers={"X-CSRF-Token": "wrong"}, json={}), 403)


def test_a_person_makes_pictures_by_the_api_and_finds_them(person: Person) -> None:
    reply = person.make(prompt="a large Panda on a green background", seed=91, cfg_scale=1)
    assert reply.headers["Content-Type"] == "image/png"
    found = person.get(f"/console/pictures?service_id={person.service}&prompt=PANDA green")["data"]
    picture = next(one for one in found if one["job_id"] == reply.headers["X-Job-Id"])
    assert (picture["seed"], picture["width"], picture["starred"]) == (91, 128, False)
    assert person.call("GET", picture["image"]).content == reply.content
    small = Image.open(io.BytesIO(person.call("GET", picture["thumbnail"]).content))
    assert (small.format, small.size) == ("WEBP", (128, 128))
    assert person.get(f"/console/pictures?service_id={person.service}&prompt=panda purple")["data"] == []
    assert person.get(f"/console/pictures?service_id={person.service}&seed=91&model=demo-xl&limit=1")["data"][0]["seed"] == 91
    starred = person.call("PATCH", f"/console/pictures/{picture['id']}", json={"starred": True}).json()
    assert starred["starred"] is True
    assert picture["id"] in [one["id"] for one in person.get(f"/console/pictures?service_id={person.service}&starred=true")["data"]]
    gone = person.call("POST", "/console/pictures/delete", json={"service_id": person.service, "ids": [picture["id"], "pic-none"]}).json()
    assert gone == {"deleted": 1, "bytes": len(reply.content)}
    errors(person.call("GET", picture["image"]), 404)
    errors(person.call("GET", picture["thumbnail"]), 404)
    assert not list((person.server.data_dir / "pictures").rglob(f"{picture['job_id']}*"))


def test_pages_of_pictures_go_through_all(person: Person) -> None:
    made = [person.make(seed=700 + i, cfg_scale=1).headers["X-Job-Id"] for i in range(5)]
    seen: list[str] = []
    before = ""
    while len(seen) < 5:
        page = person.get(f"/console/pictures?service_id={person.service}&limit=2{before}")
        seen += [one["job_id"] for one in page["data"]]
        before = f"&before={page['next']}"
    assert seen[:5] == made[::-1]


def test_keys_and_services(person: Person) -> None:
    made = person.call("POST", "/console/services", json={"name": "second", "models": ["demo-xl"]})
    assert made.status_code == 201
    service = made.json()
    assert service["url"].endswith(f"/{service['id']}")
    assert person.call("PATCH", f"/console/services/{service['id']}", json={"name": "renamed"}).json()["name"] == "renamed"
    errors(person.call("POST", "/console/services", json={"name": "x", "models": ["nobody"]}), 422)
    key = person.call("POST", "/console/keys", json={"service_id": service["id"], "name": "mine"}).json()
    url = f"{service['url']}/v1/models"
    assert requests.get(url, headers={"Authorization": f"Bearer {key['key']}"}, timeout=30).status_code == 200
    assert person.get(f"/console/keys?service_id={service['id']}")["data"][0]["last_used_at"] is not None
    changed = person.call("PATCH", f"/console/keys/{key['public_id']}", json={"limits": {"pictures_per_minute": 3}}).json()
    assert changed["limits"]["pictures_per_minute"] == 3
    errors(person.call("PATCH", f"/console/keys/{key['public_id']}", json={"limits": {"colour": 3}}), 422)
    assert [one["name"] for one in person.get(f"/console/keys?service_id={service['id']}")["data"]] == ["mine"]
    assert "key" not in person.get(f"/console/keys?service_id={service['id']}")["data"][0]
    assert person.call("DELETE", f"/console/keys/{key['public_id']}").status_code == 204
    errors(requests.get(url, headers={"Authorization": f"Bearer {key['key']}"}, timeout=30), 401)


def test_the_log_has_every_call_with_its_body_and_its_error(person: Person) -> None:
    good = person.server.generate(seed=95)
    bad = person.server.generate(steps=7, prompt="a walrus")
    hidden = person.server.generate(prompt="a secret walrus", headers={"X-Embed-Prompt": "false"})
    refused = person.server.generate(steps=7, prompt="a walrus " * 2000, store=False)
    time.sleep(2)
    calls = {one["id"]: one for one in person.get(f"/console/requests?service_id={person.service}&limit=200")["data"]}
    one = calls[good.headers["X-Request-Id"]]
    assert (one["route"], one["status"], one["steps"]) == ("/v1/images/generate", 200, 10)
    assert one["run_ms"] == int(good.headers["X-Inference-Ms"])
    assert person.get(f"/console/requests/{one['id']}")["body"]["seed"] == 95
    failed = person.get(f"/console/requests?service_id={person.service}&status=4xx&limit=200")["data"]
    assert {call["status"] // 100 for call in failed} == {4}
    assert "steps must be" in next(call for call in failed if call["id"] == bad.headers["X-Request-Id"])["error"]
    assert person.get(f"/console/requests/{hidden.headers['X-Request-Id']}")["body"] is None
    assert calls[refused.headers["X-Request-Id"]]["error"] == errors(refused, 422)["name"]  # its lines quote the prompt
    errors(person.call("GET", "/console/requests?status=9xx"), 422)


def listed(person: Person, request_id: str) -> dict:
    """A request in the log, once it is written down."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        calls = person.get(f"/console/requests?service_id={person.service}&limit=200")["data"]
        found = [one for one in calls if one["id"] == request_id]
        if found:
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"{request_id} is not in the log")


def until(server: Server, job_id: str, *statuses: str) -> dict:
    """The job, once it stands there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        job = requests.get(f"{server.host}/v1/jobs/{job_id}", headers=server.headers(), timeout=30).json()
        if job["status"] in statuses:
            return job
        time.sleep(0.05)
    raise AssertionError(job)


def errors_of(person: Person) -> int:
    usage = person.get(f"/console/usage?service_id={person.service}&by=key")["data"]
    return sum(one["errors"] for one in usage)


def test_the_log_and_usage_tell_what_became_of_the_job(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl", DARKROOM_MAX_ATTEMPTS="1")
    person = Person(server)
    person.sign_in(link=link_of(server))
    later, long = {"Prefer": "respond-async"}, {"steps": 50, "width": 512, "height": 512}
    done, again = (server.generate(seed=97, headers={"Cache-Control": "max-age=60"}) for _ in range(2))
    assert again.headers["X-Cache"] == "hit"
    cancelled = server.generate(headers=later, **long)
    url = f"{server.host}/v1/jobs/{cancelled.json()['id']}/cancel"
    requests.post(url, headers=server.headers(), timeout=30)
    until(server, cancelled.json()["id"], "cancelled")
    before = errors_of(person)
    failed = server.generate(headers=later, **long)
    until(server, failed.json()["id"], "running")
    server.kill_worker()
    fault = until(server, failed.json()["id"], "failed")["error"]["errors"][0]
    replies = {"done": done, "again": again, "cancelled": cancelled, "failed": failed}
    outcomes = {name: listed(person, reply.headers["X-Request-Id"]) for name, reply in replies.items()}
    told = {name: (call["status"], call["outcome"], call["job_error"]) for name, call in outcomes.items()}
    assert told == {
        "done": (200, "finished", None),
        "again": (200, "cached", None),
        "cancelled": (202, "cancelled", None),
        "failed": (202, "failed", fault),
    }
    assert outcomes["again"]["run_ms"] is None, "its picture was made by another call"
    assert errors_of(person) == before + 1


def test_calls_without_a_valid_key_are_listed_and_cannot_flood_the_log(person: Person) -> None:
    server = person.server
    wrong = server.generate(headers={"Authorization": f"Bearer {server.key[:-1]}"}, prompt="a secret giraffe")
    call = listed(person, wrong.headers["X-Request-Id"])
    assert (call["status"], call["route"], call["key_id"]) == (401, "/v1/images/generate", "")
    assert "is cut off" in call["error"]
    assert person.get(f"/console/requests/{call['id']}")["body"] is None
    missed = requests.post(f"{server.service_id}/v1/image/generate", headers=server.headers(), timeout=30)
    assert "the nearest is POST" in listed(person, missed.headers["X-Request-Id"])["error"]
    usage = person.get(f"/console/usage?service_id={person.service}&by=key")["data"]
    assert "" not in {one["group"] for one in usage}
    session = requests.Session()
    for _ in range(200):
        session.get(f"{server.service_id}/v1/jobs", timeout=30)
        session.get(f"{server.host}/svc-unknown1/v1/jobs", timeout=30)
    over = session.get(f"{server.service_id}/v1/models", cookies={"darkroom_session": "x" * 43}, timeout=30)
    assert server.generate(seed=98).status_code == 200
    marker = server.generate(seed=99)
    listed(person, marker.headers["X-Request-Id"])
    calls = person.get(f"/console/requests?service_id={person.service}&status=401&limit=200")["data"]
    assert 50 <= len(calls) <= 130, "a minute may end meanwhile"
    # a page whose session is over asks again every few seconds
    assert over.headers["X-Request-Id"] not in {one["id"] for one in calls}
    assert person.get("/console/requests?service_id=svc-unknown1")["data"] == []


def test_usage_adds_up(person: Person) -> None:
    before = {one["group"]: one for one in person.get(f"/console/usage?service_id={person.service}&by=model")["data"]}
    person.server.generate(seed=96)
    time.sleep(2)
    after = {one["group"]: one for one in person.get(f"/console/usage?service_id={person.service}&by=model")["data"]}
    zero = {"pictures": 0, "pixel_steps": 0}
    assert after["demo-xl"]["pictures"] - before.get("demo-xl", zero)["pictures"] == 1
    assert after["demo-xl"]["pixel_steps"] - before.get("demo-xl", zero)["pixel_steps"] == 128 * 128 * 10
    job = person.server.generate(steps=50, width=512, height=512, headers={"Prefer": "respond-async"}).json()["id"]
    person.call("POST", f"/{person.service}/v1/jobs/{job}/cancel")
    deadline = time.monotonic() + 20
    while True:
        line = {one["group"]: one for one in person.get(f"/console/usage?service_id={person.service}&by=model")["data"]}["demo-xl"]
        if line["cancelled"] == after["demo-xl"]["cancelled"] + 1:
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert line["errors"] == after["demo-xl"]["errors"]
    assert 0 < after["demo-xl"]["p50_ms"] <= after["demo-xl"]["p95_ms"]
    table = person.call("GET", f"/console/usage?service_id={person.service}&by=key&format=csv")
    assert table.headers["Content-Type"].startswith("text/csv")
    assert sum(int(row["pictures"]) for row in csv.DictReader(io.StringIO(table.text))) == sum(one["pictures"] for one in after.values())


def test_models_are_loaded_unloaded_accepted(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl")
    person = Person(server)
    person.sign_in(link=link_of(server))
    server.generate()

    def model(name: str) -> dict:
        return next(one for one in person.get("/console/models")["data"] if one["name"] == name)

    def until(what: Callable[[], bool]) -> None:
        for _ in range(300):
            if what():
                return
            time.sleep(0.1)
        raise AssertionError(person.get("/console/models")["data"][0])

    assert model("demo-xl")["loaded"]
    person.call("POST", "/console/models/demo-xl/unload")
    until(lambda: not model("demo-xl")["loaded"])
    person.call("POST", "/console/models/demo-xl/load")
    until(lambda: model("demo-xl")["loaded"])
    real = model("stable-diffusion-xl-base-1.0")
    assert real["license"]["asks"]
    assert not real["license"]["accepted"]
    assert errors(person.call("POST", "/console/models/stable-diffusion-xl-base-1.0/pull"), 503)["name"] == "licence_not_accepted"
    assert person.call("POST", "/console/models/stable-diffusion-xl-base-1.0/accept").json()["license"]["accepted"]
    errors(person.call("POST", "/console/models/stable-diffusion-xl-base-1.0/load"), 422)  # it is not served
    errors(person.call("POST", "/console/models/nobody/load"), 404)


def test_a_model_that_is_served_without_weights_is_asked_for_and_nothing_ends(serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl,stable-diffusion-xl-base-1.0", HF_HUB_OFFLINE="1")
    person = Person(server)
    person.sign_in(link=link_of(server))
    assert person.call("POST", "/console/models/stable-diffusion-xl-base-1.0/accept").status_code == 200
    told = errors(person.call("POST", "/console/models/stable-diffusion-xl-base-1.0/load"), 503)
    assert told["name"] == "model_unavailable"
    assert "models pull stable-diffusion-xl-base-1.0" in told["errors"][0]
    assert person.call("POST", "/console/models/stable-diffusion-xl-base-1.0/unload").status_code == 200
    assert server.generate().status_code == 200
    assert not server.log.read_text().count("ended unexpectedly")


def test_the_system_says_how_it_is(person: Person) -> None:
    person.server.generate()
    system = person.get("/console/system")
    assert system["worker"]["status"] == "ready"
    assert system["device"] == "cpu"
    assert any(size.startswith("demo-xl 128 128") for size in system["costs"])
    assert system["disk"]["free_bytes"] > 0


def test_the_page_comes_at_every_address_of_its_own_under_a_strict_policy(server: Server) -> None:
    for path in ("", "playground", "gallery", "sign-in"):
        reply = requests.get(f"{server.host}/{path}", timeout=30)
        assert reply.status_code == 200
        assert reply.headers["Content-Type"].startswith("text/html")
        assert "script-src 'self';" in reply.headers["Content-Security-Policy"]
        assert "unsafe" not in reply.headers["Content-Security-Policy"]
    errors(requests.get(f"{server.host}/nowhere", timeout=30), 404)


def test_limits_and_instants_that_make_no_sense_are_refused(person: Person) -> None:
    key = person.call("POST", "/console/keys", json={"service_id": person.service, "name": "bounds"}).json()["public_id"]
    wrong = [("weight", text) for text in ("NaN", "0", "1e999", "-1", "1" + "0" * 400)] + [("queued", text) for text in ("1e999", "1.5", "-1")]
    for name, text in wrong:
        errors(person.call("PATCH", f"/console/keys/{key}", data=f'{{"limits": {{"{name}": {text}}}}}'), 422)
    for when in ('"2001-01-01T00:00:00Z"', "1e999", "0", "NaN", '"9999-12-31T23:59:59-23:00"', "1" + "0" * 400):
        errors(person.call("POST", "/console/keys", data=f'{{"service_id": "{person.service}", "expires_at": {when}}}'), 422)
    for name in ("a\0b", "\ud800"):
        errors(person.call("PATCH", f"/console/services/{person.service}", json={"name": name}), 422)
    errors(person.call("GET", "/console/pictures?prompt=%00"), 422)


def test_the_dashboards_own_key_is_nobodys_to_change(person: Person) -> None:
    person.make(seed=5)
    with contextlib.closing(sqlite3.connect(person.server.data_dir / "darkroom.sqlite")) as rows:
        asked = "select public_id, limits from api_keys where role = 'console'"
        before = rows.execute(asked).fetchall()
        for body in ({"limits": {"queued": 1}}, {}):
            errors(person.call("PATCH", f"/console/keys/{before[0][0]}", json=body), 404)
        assert rows.execute(asked).fetchall() == before


@pytest.mark.parametrize(("believed", "scheme"), [("false", "http"), ("true", "https")])
def test_forwarded_headers_are_believed_where_the_setting_says_so(serve: Callable[..., Server], believed: str, scheme: str) -> None:
    server = serve("--model", "demo-xl", DARKROOM_PROXY_HEADERS=believed, DARKROOM_PRELOAD="false")
    reply = requests.get(f"{server.host}/console/state", headers={"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}, timeout=30)
    assert reply.json()["base"].startswith(f"{scheme}://")
