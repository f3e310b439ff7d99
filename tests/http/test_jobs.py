"""`/v1/jobs`: looking, stopping, deleting; whose jobs they are."""

from __future__ import annotations

import time

import pytest
import requests

from tests.conftest import Server
from tests.http.sse import told
from tests.http.test_generate import errors, pixels
from tests.http.test_replies import ended, image

LONG = {"steps": 50, "width": 512, "height": 512}
LATER = {"Prefer": "respond-async"}


def get(server: Server, path: str, **headers: str) -> requests.Response:
    return requests.get(f"{server.host}/v1/jobs{path}", headers=server.headers() | headers, timeout=30)


def cancel(server: Server, job_id: str) -> dict:
    reply = requests.post(f"{server.host}/v1/jobs/{job_id}/cancel", headers=server.headers(), timeout=30)
    assert reply.status_code == 200, reply.text
    return reply.json()


def running(server: Server, job_id: str) -> None:
    for _ in range(300):
        if get(server, f"/{job_id}").json()["status"] == "running":
            return
        time.sleep(0.05)
    raise AssertionError(get(server, f"/{job_id}").json())


def test_pages_go_through_all_jobs_newest_first(server: Server) -> None:
    ids = [server.generate().headers["X-Job-Id"] for _ in range(5)]
    seen, before = [], ""
    while before is not None and len(seen) < 5:
        page = get(server, f"?limit=2{before and '&before=' + before}").json()
        assert len(page["data"]) == 2
        seen += [job["id"] for job in page["data"]]
        before = page["next"]
    assert seen[:5] == ids[::-1]
    assert get(server, "?limit=1").json()["data"][0]["images"][0]["width"] == 128


def test_filters(server: Server) -> None:
    job_id = server.generate(headers=LATER, **LONG).json()["id"]
    cancel(server, job_id)
    cancelled = get(server, "?status=cancelled&limit=100").json()["data"]
    assert job_id in [job["id"] for job in cancelled]
    assert {job["status"] for job in cancelled} == {"cancelled"}
    assert get(server, "?model=other").json()["data"] == []
    assert get(server, "?created_after=2100-01-01").json()["data"] == []
    newer = server.generate().headers["X-Job-Id"]
    shown = get(server, f"/{newer}").json()["created_at"]
    assert get(server, f"?created_before={shown}&limit=1").json()["data"][0]["id"] == job_id
    assert get(server, f"?created_after={shown}&limit=1").json()["data"][0]["id"] == newer


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "status=done", "before=!!", "before=abcd", "created_after=soon", "colour=red"])
def test_a_wrong_query_is_named(server: Server, query: str) -> None:
    assert query.split("=")[0] in errors(get(server, f"?{query}"), 422)["errors"][0]


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_at_its_next_step(server: Server) -> None:
    first, second = (server.generate(headers=LATER, **LONG).json()["id"] for _ in range(2))
    running(server, first)
    for job_id in (second, first):
        job = cancel(server, job_id)
        assert job["status"] == "cancelled"
        assert job["error"]["name"] == "cancelled"
    assert cancel(server, first)["status"] == "cancelled"  # again: it stays as it is
    assert errors(image(server, first), 503)["name"] == "cancelled"
    assert pixels(server.generate()).shape == (128, 128, 3)  # the machine is free


def test_watchers_are_told_of_a_cancellation(server: Server) -> None:
    job_id = server.generate(headers=LATER, **LONG).json()["id"]
    with requests.get(f"{server.host}/v1/jobs/{job_id}/events", headers=server.headers(), stream=True, timeout=60) as reply:
        events = told(reply)
        while next(events).event != "progress":
            continue
        cancel(server, job_id)
        *_, last = events
    assert last.event == "cancelled"
    assert last.data["name"] == "cancelled"


def test_an_unfinished_job_has_no_picture_and_is_not_deleted(server: Server) -> None:
    job_id = server.generate(headers=LATER, **LONG).json()["id"]
    assert errors(image(server, job_id), 409)["name"] == "not_finished"
    assert errors(requests.delete(f"{server.host}/v1/jobs/{job_id}", headers=server.headers(), timeout=30), 409)["name"] == "not_finished"
    cancel(server, job_id)


def test_deleting_a_job_deletes_its_pictures(server: Server) -> None:
    job_id = server.generate(n=2, headers={"Accept": "application/json"}).json()["id"]
    files = list((server.data_dir / "pictures").rglob(f"{job_id}*.png"))
    assert len(files) == 2
    assert requests.delete(f"{server.host}/v1/jobs/{job_id}", headers=server.headers(), timeout=30).status_code == 204
    assert not [file for file in files if file.exists()]
    errors(get(server, f"/{job_id}"), 404)
    errors(requests.delete(f"{server.host}/v1/jobs/{job_id}", headers=server.headers(), timeout=30), 404)


def test_another_services_job_is_not_there(server: Server) -> None:
    job_id = server.generate().headers["X-Job-Id"]
    service = server.cli("service", "create", "other").stdout.split()[0].removeprefix("id=")
    key = server.cli("key", "create", "--service", service).stdout.split()[0].removeprefix("key=")
    foreign = server.headers(key)
    assert requests.get(f"{server.host}/v1/jobs", headers=foreign, timeout=30).json()["data"] == []
    for method, path in (("get", ""), ("get", "/image"), ("get", "/events"), ("post", "/cancel"), ("delete", "")):
        errors(requests.request(method, f"{server.host}/v1/jobs/{job_id}{path}", headers=foreign, timeout=30), 404)
    errors(requests.get(f"{server.host}/v1/jobs/{job_id}", timeout=30), 401)
    assert get(server, f"/{job_id}").status_code == 200


def test_a_job_that_cannot_begin_in_time_ends_with_504(server: Server) -> None:
    ahead = [server.generate(headers=LATER, **LONG).json()["id"] for _ in range(3)]
    running(server, ahead[0])
    late = server.generate(steps=50, width=1024, height=1024, headers=LATER | {"X-Timeout-Seconds": "0.2"}).json()["id"]
    job = ended(server, late)
    if job["status"] == "failed":
        assert (job["error"]["name"], job["error"]["status"]) == ("deadline_exceeded", 504)
    for job_id in [*ahead, late]:
        cancel(server, job_id)
    assert job["status"] == "failed"


def test_positions_and_times_are_told_while_jobs_wait(server: Server) -> None:
    jobs = [server.generate(headers=LATER, steps=30, width=512, height=512).json()["id"] for _ in range(4)]
    running(server, jobs[0])
    shown = [get(server, f"/{job_id}").json() for job_id in jobs]
    waiting = [job for job in shown if job["status"] == "queued"]
    places = [job["queue"]["position"] for job in waiting]
    assert sorted(places) == list(range(1, len(places) + 1))
    assert all(job["queue"]["seconds_to_finish"] > 0 for job in waiting)
    active = [job for job in shown if job["status"] == "running" and job["progress"]]
    assert all(0 < job["progress"]["step"] <= job["progress"]["of"] == 30 for job in active)
    for job_id in jobs:
        cancel(server, job_id)


def test_limits_of_a_key_are_told_and_kept(server: Server) -> None:
    made = server.cli("key", "create", "--name", "limited").stdout.split()
    key, public_id = made[0].removeprefix("key="), made[1].removeprefix("public_id=")
    server.cli("key", "limits", public_id, "--pictures-per-minute", "2", "--pixel-steps-per-day", str(128 * 128 * 10 * 5))
    headers = {"Authorization": f"Bearer {key}"}
    first, second, third = (server.generate(headers=headers) for _ in range(3))
    assert first.headers["RateLimit-Policy"] == '"pixel-steps";q=819200;w=86400, "pictures";q=2;w=60'
    assert [reply.headers["x-ratelimit-remaining-pictures"] for reply in (first, second)] == ["1", "0"]
    assert first.headers["RateLimit"].startswith('"pixel-steps";r=655360;t=')
    assert errors(third, 429)["name"] == "too_many_requests"
    assert 1 <= int(third.headers["Retry-After"]) <= 30
    assert third.headers["x-ratelimit-remaining-pictures"] == "0"
    server.cli("key", "limits", public_id, "--pixel-steps-per-day", str(128 * 128 * 10 * 3))
    assert pixels(server.generate(headers=headers)).shape
    over = server.generate(headers=headers)
    assert "pixel-steps a day" in errors(over, 429)["errors"][0]
    server.cli("key", "limits", public_id, "--default")
    assert "RateLimit" not in server.generate(headers=headers).headers
