"""One POST, four replies: which one comes, and that all tell of the same picture."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from PIL import Image

from tests.conftest import SMALL, Server
from tests.http.sse import told
from tests.http.test_generate import errors, pixels


def of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def ended(server: Server, job_id: str) -> dict:
    """The job, once it has ended."""
    for _ in range(600):
        job = requests.get(f"{server.host}/v1/jobs/{job_id}", headers=server.headers(), timeout=30).json()
        if job["status"] in ("finished", "failed", "cancelled"):
            return job
        time.sleep(0.1)
    raise AssertionError(job)


def image(server: Server, job_id: str, place: int = 0, **headers: str) -> requests.Response:
    return requests.get(f"{server.host}/v1/jobs/{job_id}/image?place={place}", headers=server.headers() | headers, timeout=30)


def test_four_replies_of_one_body_show_one_picture(server: Server) -> None:
    png = pixels(server.generate(seed=41))
    told_json = server.generate(seed=41, headers={"Accept": "application/json"})
    later = server.generate(seed=41, headers={"Prefer": "respond-async"})
    events = list(told(server.generate(seed=41, headers={"Accept": "text/event-stream"})))
    assert later.status_code == 202
    assert ended(server, later.json()["id"])["status"] == "finished"
    finished = events[-1]
    assert finished.event == "finished"
    for content in (
        base64.b64decode(told_json.json()["image"]["b64"]), image(server, later.json()["id"]).content, base64.b64decode(finished.data["image"]["b64"]),
    ):  # fmt: skip
        assert np.abs(of(content) - png).max() <= 2


def test_json_has_what_the_headers_say(server: Server) -> None:
    reply = server.generate(seed=42, headers={"Accept": "application/json"})
    body = reply.json()
    assert (body["seed"], body["model"], body["steps_run"], body["finish_reason"]) == (42, server.model, 10, "SUCCESS")
    assert body["id"] == reply.headers["X-Job-Id"]
    assert body["timings"]["inference_ms"] == int(reply.headers["X-Inference-Ms"])
    by_url = server.generate(seed=42, response_format="url", headers={"Accept": "application/json"}).json()
    assert set(by_url["image"]) == {"url", "seed", "media_type"}
    got = requests.get(by_url["image"]["url"], headers=server.headers(), timeout=30)
    assert np.abs(of(got.content) - of(base64.b64decode(body["image"]["b64"]))).max() <= 2


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("image/jpeg", "image/jpeg"), ("image/webp, image/png", "image/webp"), ("image/png, image/jpeg", "image/png"), ("*/*, image/jpeg", "image/png"),
        ("image/jpeg;q=0.5, image/png", "image/png"), ("application/json, image/webp", "image/webp"), ("application/json, */*", "image/png"),
        ("application/json, text/plain", "application/json"),
        ("text/html, text/event-stream, */*", "image/png"), ("text/event-stream, */*", "text/event-stream"),
    ],
)  # fmt: skip
def test_accept_chooses(server: Server, accept: str, media: str) -> None:
    reply = server.generate(seed=43, headers={"Accept": accept})
    assert reply.headers["Content-Type"].split(";")[0] == media
    if media.startswith("image/"):
        assert Image.open(io.BytesIO(reply.content)).format == media[6:].upper()


def test_a_jpeg_has_the_quality_asked_for_and_the_parameters(server: Server) -> None:
    low, high = (server.generate(seed=44, headers={"Accept": f"image/jpeg; quality={quality}"}) for quality in (20, 95))
    assert len(low.content) * 2 < len(high.content)
    comment = Image.open(io.BytesIO(high.content)).getexif().get_ifd(0x8769)[0x9286]
    assert SMALL["prompt"] in comment[8:].decode("utf-16-be")
    assert "quality" in errors(server.generate(headers={"Accept": "image/jpeg; quality=0"}), 422)["errors"][0]


def test_a_202_tells_where_the_job_is_and_what_was_agreed(server: Server) -> None:
    reply = server.generate(headers={"Prefer": "respond-async"})
    job = reply.json()
    assert reply.status_code == 202
    assert reply.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert reply.headers["Preference-Applied"] == "respond-async"
    assert job["status"] in ("queued", "running")
    assert job["parameters"]["prompt"] == SMALL["prompt"]
    assert ended(server, job["id"])["images"][0]["url"] == f"{server.host}/v1/jobs/{job['id']}/image"


def test_wait_gives_the_picture_in_time_and_else_the_job(server: Server) -> None:
    assert pixels(server.generate(headers={"Prefer": "wait=60"})).shape == (128, 128, 3)
    late = server.generate(steps=50, width=512, height=512, headers={"Prefer": "respond-async, wait=0"})
    assert late.status_code == 202
    assert late.headers["Preference-Applied"] == "respond-async, wait=0"
    assert ended(server, late.json()["id"])["status"] == "finished"
    for bad in ("wait=soon", "wait=-1", "wait=100000"):
        assert "Prefer" in errors(server.generate(headers={"Prefer": bad}), 422)["errors"][0]


def test_events_tell_the_way_of_a_job(server: Server) -> None:
    events = list(told(server.generate(seed=45, preview_every=3, headers={"Accept": "text/event-stream"})))
    names = [one.event for one in events]
    assert names[0] == "queued"
    assert {"position", "seconds_to_start", "seconds_to_finish"} < set(events[0].data)
    assert events[0].data["position"] >= 1
    assert events[0].data["seconds_to_start"] is not None
    progress = [one.data for one in events if one.event == "progress"]
    steps = [one["step"] for one in progress]
    assert steps == sorted(set(steps))
    assert 1 <= len(steps) <= 10
    assert all(one["of"] == 10 for one in progress)
    previews = [one.data for one in events if one.event == "preview"]
    assert [one["step"] for one in previews] == [3, 6, 9]
    shown = Image.open(io.BytesIO(base64.b64decode(previews[-1]["image"]["b64"])))
    assert shown.format == "JPEG"
    assert max(shown.size) <= 256
    assert names[-1] == "finished"
    assert events[-1].data["status"] == "finished"
    assert events[-1].data["created_at"] <= events[-1].data["started_at"] <= events[-1].data["ended_at"]
    assert len({one.id for one in events if one.id}) == len([one for one in events if one.id])


def test_a_stream_resumes_after_the_event_that_was_seen_last(server: Server) -> None:
    later = server.generate(seed=46, steps=50, width=512, height=512, headers={"Prefer": "respond-async"}).json()
    with requests.get(f"{server.host}/v1/jobs/{later['id']}/events", headers=server.headers(), stream=True, timeout=60) as reply:
        for seen in told(reply):
            if seen.event == "progress" and seen.data["step"] >= 5:
                break
    with requests.get(f"{server.host}/v1/jobs/{later['id']}/events", headers=server.headers() | {"Last-Event-ID": seen.id}, stream=True, timeout=60) as reply:
        rest = list(told(reply))
    steps = [one.data["step"] for one in rest if one.event == "progress"]
    assert steps == sorted(set(steps))
    assert steps[0] > seen.data["step"]
    assert rest[-1].event == "finished"
    after = requests.get(f"{server.host}/v1/jobs/{later['id']}/events", headers=server.headers(), timeout=60)
    assert [one.event for one in told(after)] == ["finished"]


def test_several_pictures_have_the_seeds_that_follow(server: Server) -> None:
    body = server.generate(seed=50, n=3, headers={"Accept": "application/json"}).json()
    assert [one["seed"] for one in body["images"]] == [50, 51, 52]
    alone = pixels(server.generate(seed=51))
    assert np.abs(of(base64.b64decode(body["images"][1]["b64"])) - alone).max() <= 2
    job = ended(server, server.generate(seed=4294967295, n=2, headers={"Prefer": "respond-async"}).json()["id"])
    assert [one["seed"] for one in job["images"]] == [4294967295, 1]
    assert np.abs(of(image(server, job["id"], 1).content) - pixels(server.generate(seed=1))).max() <= 2
    assert image(server, job["id"], 2).status_code == 404


@pytest.mark.parametrize(
    ("fields", "headers", "named"),
    [
        ({"n": 2}, {}, "n"), ({"n": 9}, {"Accept": "application/json"}, "n"), ({"n": 0}, {"Accept": "application/json"}, "n"),
        ({"preview_every": 2}, {}, "preview_every"), ({"response_format": "url"}, {}, "response_format"), ({"store": "no"}, {}, "store"),
        ({"webhook_url": "https://pictures.example/"}, {}, "webhook_url"), ({"response_format": "gif"}, {"Accept": "application/json"}, "response_format"),
        ({"webhook_url": "https://127.0.0.1/"}, {"Prefer": "respond-async"}, "webhook_url"), ({"webhook_url": 3}, {"Prefer": "respond-async"}, "webhook_url"),
    ],
)  # fmt: skip
def test_fields_that_do_not_go_with_the_reply_are_named(server: Server, fields: dict, headers: dict, named: str) -> None:
    body = errors(server.generate(headers=headers, **fields), 422)
    assert body["name"] == f"invalid_{named}"
    assert body["errors"][0].startswith(f"{named} must be ")


@pytest.mark.parametrize("name", ["Idempotency-Key", "X-Timeout-Seconds"])
@pytest.mark.parametrize("value", ["", "a b", "x" * 256, "-1", "0"])
def test_headers_that_break_their_rule_are_named(server: Server, name: str, value: str) -> None:
    if name == "Idempotency-Key" and value in ("-1", "0"):
        return
    assert name in errors(server.generate(headers={name: value}), 422)["errors"][0]


def test_control_has_the_four_replies_too(server: Server) -> None:
    png = server.generate(seed=60).content
    sync = pixels(server.control(png, seed="61"))
    later = server.control(png, seed="61", headers={"Prefer": "respond-async"})
    job = ended(server, later.json()["id"])
    assert job["parameters"]["control_strength"] == 0.35
    assert np.abs(of(image(server, job["id"]).content) - sync).max() <= 2
    both = server.control(png, seed="61", n="2", headers={"Accept": "application/json"}).json()
    assert np.abs(of(base64.b64decode(both["images"][0]["b64"])) - sync).max() <= 2


# a retry costs nothing


def test_an_idempotency_key_joins_the_running_job_and_replays_it_bit_for_bit(server: Server) -> None:
    def ask(_: int) -> requests.Response:
        return server.generate(steps=30, headers={"Idempotency-Key": "order-1"})

    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(ask, range(4)))
    assert len({reply.content for reply in replies}) == 1
    assert len({reply.headers["X-Job-Id"] for reply in replies}) == 1
    assert sum(reply.headers.get("Idempotency-Replayed") == "true" for reply in replies) == 3
    assert ask(0).content == replies[0].content
    as_json = server.generate(steps=30, headers={"Idempotency-Key": "order-1", "Accept": "application/json"}).json()
    assert base64.b64decode(as_json["image"]["b64"]) == replies[0].content
    assert errors(server.generate(steps=31, headers={"Idempotency-Key": "order-1"}), 422)["name"] == "idempotency_key_reused"


def test_a_client_with_a_key_that_leaves_finds_its_picture_again(server: Server) -> None:
    headers = server.headers() | {"Idempotency-Key": "order-2"}
    body = SMALL | {"steps": 50, "width": 512, "height": 512, "seed": 62}
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(f"{server.host}/v1/images/generate", json=body, headers=headers, timeout=0.5)
    again = requests.post(f"{server.host}/v1/images/generate", json=body, headers=headers, timeout=60)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert pixels(again).shape == (512, 512, 3)


def test_a_repeated_request_that_names_its_seed_comes_from_the_gallery(server: Server) -> None:
    plain = {"Cache-Control": ""}
    first = server.generate(seed=70, headers=plain)
    again = server.generate(seed=70, headers=plain)
    assert (first.headers["X-Cache"], again.headers["X-Cache"]) == ("miss", "hit")
    assert again.content == first.content
    assert again.headers["Seed"] == "70"
    assert server.generate(seed=70).headers["X-Cache"] == "miss"  # Cache-Control: no-cache
    assert server.generate(seed=71, headers=plain).headers["X-Cache"] == "miss"
    assert server.generate(seed=70, steps=11, headers=plain).headers["X-Cache"] == "miss"
    drawn = [server.generate(headers=plain) for _ in range(2)]
    assert {reply.headers["X-Cache"] for reply in drawn} == {"miss"}
    hidden = server.generate(seed=70, headers=plain | {"X-Embed-Prompt": "false"})
    assert hidden.headers["X-Cache"] == "miss"
    assert SMALL["prompt"].encode() not in hidden.content


def test_store_false_keeps_nothing_after_the_delivery(server: Server) -> None:
    files = set((server.data_dir / "pictures").rglob("*.png"))
    sync = server.generate(seed=80, store=False)
    assert pixels(sync).shape == (128, 128, 3)
    told_json = server.generate(seed=80, store=False, headers={"Accept": "application/json"})
    assert of(base64.b64decode(told_json.json()["image"]["b64"])).shape == (128, 128, 3)
    later = ended(server, server.generate(seed=80, store=False, headers={"Prefer": "respond-async"}).json()["id"])
    assert image(server, later["id"]).status_code == 200
    again = image(server, later["id"])
    for _ in range(100):  # it goes after its reply was sent
        if again.status_code == 404:
            break
        time.sleep(0.1)
        again = image(server, later["id"])
    assert again.status_code == 404
    assert set((server.data_dir / "pictures").rglob("*.png")) == files
    shown = requests.get(f"{server.host}/v1/jobs/{sync.headers['X-Job-Id']}", headers=server.headers(), timeout=30).json()
    assert shown["parameters"]["prompt"] == ""
    assert shown["images"] == []


@pytest.mark.parametrize("accept", ["image/png;q=0", "text/plain", "image/jpeg;quality=0000000101", "image/jpeg;quality=\u00b2".encode()])
def test_an_accept_that_admits_nothing_of_ours(server: Server, accept: str | bytes) -> None:
    errors(server.generate(headers={"Accept": accept}), 422 if "quality" in str(accept) else 406)  # type: ignore[dict-item]


def test_events_are_told_to_who_takes_nothing_else_of_ours(server: Server) -> None:
    assert server.generate(headers={"Accept": "text/plain, text/event-stream"}).headers["Content-Type"].startswith("text/event-stream")
    errors(server.generate(headers={"Prefer": "wait=0000000000000601"}), 422)


def test_each_form_of_a_picture_has_its_own_tag(server: Server) -> None:
    job = ended(server, server.generate(headers={"Prefer": "respond-async"}).json()["id"])["id"]
    replies = [image(server, job, Accept=accept) for accept in ("image/png", "image/webp", "image/webp;quality=50", "text/event-stream, image/png")]
    assert len({reply.headers["ETag"] for reply in replies}) == 3
    assert replies[0].content == replies[3].content
    assert {reply.headers["Vary"].split(",")[0] for reply in replies} == {"Accept"}
    assert "immutable" in replies[0].headers["Cache-Control"]
    errors(image(server, job, Accept="application/json"), 406)
    unkept = ended(server, server.generate(store=False, headers={"Prefer": "respond-async"}).json()["id"])["id"]
    assert image(server, unkept).headers["Cache-Control"] == "no-store"


def test_what_must_be_told_or_is_gone_is_made_anew(server: Server) -> None:
    plain = {"Cache-Control": ""}
    first = server.generate(seed=75, headers=plain)
    told_of = server.generate(seed=75, webhook_url="https://pictures.example/", headers=plain | {"Prefer": "respond-async"})
    assert told_of.headers["X-Cache"] == "miss"
    for job_id in (first.headers["X-Job-Id"], ended(server, told_of.json()["id"])["id"]):
        for file in (server.data_dir / "pictures").rglob(f"{job_id}*.png"):
            file.unlink()
    again = server.generate(seed=75, headers=plain)
    assert again.headers["X-Cache"] == "miss"
    assert pixels(again).shape == (128, 128, 3)


@pytest.mark.parametrize("damage", [b"", b"not a picture", None])
def test_a_file_that_was_damaged_is_never_given_and_its_picture_is_made_anew(server: Server, damage: bytes | None) -> None:
    plain = {"Cache-Control": ""}
    seed = 760 + len(damage or b"x")
    first = server.generate(seed=seed, headers=plain)
    job_id = first.headers["X-Job-Id"]
    (file,) = (server.data_dir / "pictures").rglob(f"{job_id}*.png")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    for accept in ("image/png", "image/jpeg"):
        assert errors(image(server, job_id, Accept=accept), 500)["name"] == "picture_damaged"
    again = server.generate(seed=seed, headers=plain)
    assert again.headers["X-Cache"] == "miss"
    assert pixels(again).shape == (128, 128, 3)
    assert server.generate(seed=seed, headers=plain).headers["X-Cache"] == "hit"


@pytest.mark.parametrize("private", [{"store": False}, {"headers": {"X-Embed-Prompt": "false"}}])
def test_no_word_of_a_prompt_that_is_not_to_be_kept_is_in_the_data_folder(server: Server, private: dict) -> None:
    secret = "quokka leukaemia " + "wombat " * 100 + "numbat"
    later = {"Prefer": "respond-async"} | private.get("headers", {})
    body = {name: value for name, value in private.items() if name != "headers"}
    reply = server.generate(prompt=secret, **private)
    assert "quokka" in reply.headers["X-Model-Note"]  # whoever asked is told in full
    job = ended(server, server.generate(prompt=secret, **body, headers=later).json()["id"])
    assert job["status"] == "finished"
    assert "quokka" not in json.dumps(job)
    assert image(server, job["id"]).status_code == 200
    at_once = requests.get(f"{server.host}/v1/jobs/{reply.headers['X-Job-Id']}", headers=server.headers(), timeout=30).json()
    notes = job["notes"] + at_once["notes"]
    assert len(notes) == 4  # of each that words are not known, and that it was cut
    server.generate(prompt=secret, steps=7, **private)

    def words_left() -> list[str]:
        with contextlib.closing(sqlite3.connect(f"file:{server.data_dir / 'darkroom.sqlite'}?mode=ro", uri=True)) as database:
            left = "\n".join(line for line in database.iterdump() if line.startswith("INSERT")) + json.dumps(notes)
        return [word for word in ("quokka", "leukaemia", "wombat", "numbat") if word in left]

    for _ in range(100):  # the log of requests is written a moment later, and what was delivered goes after its reply
        if not words_left():
            break
        time.sleep(0.1)
    time.sleep(1.5)  # longer than the log of requests takes to be written
    assert words_left() == []
    assert "quokka" not in server.log.read_text()


def test_a_cancelled_job_leaves_no_files_and_its_progress_never_falls(server: Server) -> None:
    job_id = server.generate(n=8, steps=50, cfg_scale=1, headers={"Prefer": "respond-async"}).json()["id"]
    seen: list[dict] = []
    while not seen or seen[-1]["step"] < 120:
        job = requests.get(f"{server.host}/v1/jobs/{job_id}", headers=server.headers(), timeout=30).json()
        if job["progress"]:
            seen.append(job["progress"])
        assert job["status"] in ("queued", "running")
    requests.post(f"{server.host}/v1/jobs/{job_id}/cancel", headers=server.headers(), timeout=30)
    assert ended(server, job_id)["status"] == "cancelled"
    assert {one["of"] for one in seen} == {400}
    assert [one["step"] for one in seen] == sorted(one["step"] for one in seen)
    assert not list((server.data_dir / "pictures").rglob(f"{job_id}*"))
