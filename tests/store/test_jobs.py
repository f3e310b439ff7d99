"""Rows of jobs, on both databases: the door, leases, ends, limits, clearing away."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from darkroom.picture import described
from darkroom.store.access import AccessStore
from darkroom.store.jobs import Entry, JobStore
from darkroom.store.pictures import PictureStore
from darkroom.types import Fault, Job, Limits, PictureRow, Status
from tests.store.conftest import KEY, job, picture

NONE = Limits()
DAY = 86_400.0


async def put(rows: JobStore, one: Job, limits: Limits = NONE, most: int = 1000, most_of_key: int = 1000, **more: object) -> Entry:
    return await rows.accept(one, described(one.params, None), most, most_of_key, limits, **more)  # type: ignore[arg-type]


async def claim(rows: JobStore, owner: str = "gw-1", now: float = 10.0, room: int = 100, room_of_key: int = 100, default: Limits = NONE) -> list[str]:
    return [one.job.id for one in await rows.claim(owner, now, now + 60, room, room_of_key, default)]


async def finish(rows: JobStore, name: str, *pictures: PictureRow, ended_at: float = 20.0, **fields: object) -> bool:
    known = await rows.find(name)
    assert known is not None
    done = replace(known, status=Status.FINISHED, steps_run=10, queue_seconds=1.0, inference_seconds=2.0, ended_at=ended_at, **fields)
    return await rows.end(done, pictures)


async def test_a_job_comes_back_as_it_was(rows: JobStore) -> None:
    one = job("job-1", n=3, attached=True, keep=False, with_prompt=False, webhook_url="https://a.example/", start_by=9.5, fingerprint="f", home="gw-1")
    await put(rows, one)
    assert await rows.find("job-1") == one
    assert await rows.find("job-1", "svc-b") is None
    fault = Fault("engine_error", "it broke", 500, 2.0)
    assert await rows.end(replace(one, status=Status.FAILED, fault=fault, ended_at=5.0, notes=("hm",)))
    found = await rows.find("job-1")
    assert found is not None
    assert (found.status, found.fault, found.ended_at, found.notes) == (Status.FAILED, fault, 5.0, ("hm",))


async def test_a_job_ends_once_with_its_pictures_and_one_line_in_the_ledger(rows: JobStore) -> None:
    await put(rows, job("job-1", n=2))
    pictures = [replace(picture(f"pic-{i}", "job-1"), place=i) for i in range(2)]
    assert await finish(rows, "job-1", *pictures)
    assert not await finish(rows, "job-1", *pictures)
    assert await rows.pictures_of(["job-1"]) == pictures
    (line,) = await rows.used()
    assert (line["job_id"], line["pictures"], line["pixel_steps"]) == ("job-1", 2, 128 * 128 * 10 * 2)


async def test_a_lease_is_one_gateways_until_it_runs_out(rows: JobStore) -> None:
    await put(rows, job("job-1"))
    assert await claim(rows, "gw-1", now=10) == ["job-1"]
    assert await claim(rows, "gw-2", now=60) == []
    assert await rows.heartbeat("gw-1", 50, 110) == ({"job-1"}, set())
    assert await claim(rows, "gw-2", now=100) == []
    assert await claim(rows, "gw-2", now=111) == ["job-1"]
    assert await rows.heartbeat("gw-1", 112, 170) == (set(), set())
    known = await rows.find("job-1")
    assert known is not None
    done = replace(known, status=Status.FINISHED, steps_run=10)
    assert not await rows.end(done, owner="gw-1")  # it came back too late
    assert await rows.end(done, owner="gw-2")
    assert len(await rows.used()) == 1


async def test_a_released_job_waits_as_if_it_had_never_been_claimed(rows: JobStore) -> None:
    for name in ("job-1", "job-2"):
        await put(rows, job(name))
    await claim(rows)
    await rows.begin("job-1", "gw-1", 11.0)
    running = await rows.find("job-1")
    assert running is not None
    assert (running.status, running.started_at) == (Status.RUNNING, 11.0)
    assert await rows.release("gw-1", ["job-1"]) == 1
    assert await claim(rows, "gw-2", now=12) == ["job-1"]
    assert await rows.release("gw-1") == 1
    assert await claim(rows, "gw-2", now=12) == ["job-2"]


async def test_many_claimers_never_get_the_same_job(rows: JobStore) -> None:
    for i in range(60):
        await put(rows, job(f"job-{i:02}", created_at=float(i)))
    taken = await asyncio.gather(*(claim(rows, f"gw-{i}", room=9) for i in range(8)))
    names = [name for names in taken for name in names]
    names += await claim(rows, "gw-last")
    assert sorted(names) == [f"job-{i:02}" for i in range(60)]


async def test_keys_take_turns_and_none_fills_the_machine(rows: JobStore) -> None:
    await AccessStore(rows._database).add_key(replace(KEY, public_id="two"), b"hash2")
    for i in range(6):
        await put(rows, job(f"flood-{i}", created_at=float(i)))
    await put(rows, job("late-0", created_at=7.0, key_id="two"))
    await put(rows, job("late-1", created_at=8.0, key_id="two"))
    assert await claim(rows, room=3) == ["flood-0", "late-0", "flood-1"]
    assert await claim(rows, room=9, room_of_key=3) == ["late-1", "flood-2"]
    await AccessStore(rows._database).set_limits("pub", Limits(concurrent=4))
    assert await claim(rows) == ["flood-3"]


async def test_a_job_with_a_client_on_the_line_is_for_that_gateway_alone(rows: JobStore) -> None:
    await put(rows, job("job-1", attached=True, home="gw-1"))
    assert await claim(rows, "gw-2") == []
    assert await claim(rows, "gw-1") == ["job-1"]
    assert [one.id for one in await rows.left_behind("gw-1")] == ["job-1"]
    await rows.heartbeat("gw-1", now=10, until=70)
    assert await rows.lost(now=100, silent_since=5, owner="gw-2") == ([], [], [])
    assert [one.id for one in (await rows.lost(now=100, silent_since=50, owner="gw-2"))[0]] == ["job-1"]


async def test_a_job_that_could_not_begin_in_time_is_found_and_not_claimed(rows: JobStore) -> None:
    await put(rows, job("job-1", start_by=9.0))
    assert await claim(rows, now=10) == []
    assert [one.id for one in (await rows.lost(10, 0, "gw-1"))[1]] == ["job-1"]


async def test_only_models_that_are_served_are_claimed_and_nothing_that_is_in_hand(rows: JobStore) -> None:
    await put(rows, job("job-1"))
    await put(rows, job("job-2"))
    claimed = await rows.claim("gw-1", 10.0, 70.0, 9, 9, NONE, ["other"])
    assert claimed == []
    claimed = await rows.claim("gw-1", 10.0, 70.0, 9, 9, NONE, ["demo-xl"], ["job-1"])
    assert [one.job.id for one in claimed] == ["job-2"]
    await rows.heartbeat("gw-2", 90, 150)
    assert (await rows.lost(100.0, 80.0, "gw-1", ["other"]))[2] == []  # another gateway may serve it
    assert [one.id for one in (await rows.lost(100.0, 95.0, "gw-1", ["other"]))[2]] == ["job-1", "job-2"]


async def test_limits_hold_for_requests_of_one_instant(rows: JobStore) -> None:
    limits = Limits(queued=2, pictures_per_minute=4)
    entries = await asyncio.gather(*(put(rows, job(f"job-{i}", created_at=100.0), limits) for i in range(12)))
    assert sum(entry.job is not None for entry in entries) == 2


async def test_a_key_whose_pictures_are_gone_is_free_again(rows: JobStore) -> None:
    await put(rows, job("job-1"), key="k", body_hash="b")
    await finish(rows, "job-1", picture("pic-1", "job-1"))
    assert (await put(rows, job("job-2"), key="k", body_hash="b")).joined
    await PictureStore(rows._database).remove("svc-a", ["pic-1"])  # deleted in the gallery: its job and the key stay
    assert not (await put(rows, job("job-3"), key="k", body_hash="b")).joined


async def test_who_holds_a_job_is_asked_to_cancel_it(rows: JobStore) -> None:
    await put(rows, job("job-1"))
    assert not await rows.ask_cancel("job-1", now=10)  # nobody holds it
    await claim(rows, now=10)
    assert await rows.ask_cancel("job-1", now=11)
    assert await rows.heartbeat("gw-1", 12, 72) == ({"job-1"}, {"job-1"})


async def test_init_pictures_come_and_go_with_their_job(rows: JobStore) -> None:
    await put(rows, job("job-1"), image=b"pixels")
    assert await rows.input("job-1") == b"pixels"
    await finish(rows, "job-1")
    assert await rows.input("job-1") is None


async def test_an_idempotency_key_joins_its_job_and_refuses_another_body(rows: JobStore) -> None:
    first = await put(rows, job("job-1"), key="k", body_hash="b")
    again = await put(rows, job("job-2"), key="k", body_hash="b")
    assert (first.joined, again.joined) == (False, True)
    assert again.job is not None
    assert again.job.id == "job-1"
    assert (await put(rows, job("job-3"), key="k", body_hash="other")).other_body
    assert await rows.find("job-2") is None
    assert not (await put(rows, job("job-4"), key="k", body_hash="b", kept_since=4.0)).joined  # it was kept long enough


async def test_one_idempotency_key_at_the_same_instant_makes_one_job(rows: JobStore) -> None:
    entries = await asyncio.gather(*(put(rows, job(f"job-{i}"), key="k", body_hash="b") for i in range(12)))
    assert len({entry.job.id for entry in entries if entry.job}) == 1
    assert sum(not entry.joined for entry in entries) == 1


async def test_a_failure_of_ours_frees_its_idempotency_key_and_a_clients_does_not(rows: JobStore) -> None:
    for status, joined in ((503, False), (422, True)):
        await put(rows, job(f"job-{status}"), key=f"k-{status}", body_hash="b")
        known = await rows.find(f"job-{status}")
        assert known is not None
        await rows.end(replace(known, status=Status.FAILED, fault=Fault("x", "y", status)))
        assert (await put(rows, job(f"again-{status}"), key=f"k-{status}", body_hash="b")).joined == joined


async def test_bounds_of_the_queue_and_of_a_key(rows: JobStore) -> None:
    await AccessStore(rows._database).add_key(replace(KEY, public_id="two"), b"hash2")
    for i in range(3):
        assert (await put(rows, job(f"job-{i}"), most=4, most_of_key=3)).job
    full = (await put(rows, job("job-3"), most=4, most_of_key=3)).full
    assert full is not None
    assert "3 of 4" in full.what
    assert (await put(rows, job("job-4", key_id="two"), most=4, most_of_key=3)).job
    assert (await put(rows, job("job-5", key_id="two"), most=4, most_of_key=3)).full
    await finish(rows, "job-0")
    assert (await put(rows, job("job-6", key_id="two"), Limits(queued=1), most=4, most_of_key=3)).full
    assert (await put(rows, job("job-7", key_id="two"), Limits(queued=2), most=4, most_of_key=3)).job


async def test_pictures_a_minute_by_gcra(rows: JobStore) -> None:
    limits, now = Limits(pictures_per_minute=6), 1000.0
    left = []
    for i in range(6):
        entry = await put(rows, job(f"job-{i}", created_at=now), limits)
        left.append(entry.quotas[0].remaining)
    assert left == [5, 4, 3, 2, 1, 0]
    over = await put(rows, job("over", created_at=now), limits)
    assert over.full is not None
    assert over.full.retry_after == 10.0
    assert await rows.find("over") is None
    assert (await put(rows, job("job-6", created_at=now + 10.0), limits)).job
    assert (await put(rows, job("two", created_at=now + 20.0, n=2), limits)).full  # two at once have to wait for both


async def test_pixel_steps_a_day_count_what_waits_too(rows: JobStore) -> None:
    each = 128 * 128 * 10
    limits = Limits(pixel_steps_per_day=3 * each)
    assert (await put(rows, job("job-0", created_at=DAY + 100), limits)).quotas[0].remaining == 2 * each
    await finish(rows, "job-0", ended_at=DAY + 101)
    assert (await put(rows, job("job-1", created_at=DAY + 100), limits)).job
    over = await put(rows, job("job-2", created_at=DAY + 100, n=2), limits)
    assert over.full is not None
    assert over.full.retry_after == DAY - 100
    assert (await put(rows, job("job-3", created_at=2 * DAY + 1, n=2), limits)).job  # a new day


async def test_pages_are_newest_first_and_filtered(rows: JobStore) -> None:
    for i in range(7):
        await put(rows, job(f"job-{i}", created_at=float(i // 2)))  # some at the same instant
    await finish(rows, "job-3")
    first = await rows.page("svc-a", 3)
    rest = await rows.page("svc-a", 10, before=(first[-1].created_at, first[-1].id))
    assert [one.id for one in first + rest] == [f"job-{i}" for i in (6, 5, 4, 3, 2, 1, 0)]
    assert [one.id for one in await rows.page("svc-a", 9, statuses=["finished"])] == ["job-3"]
    assert [one.id for one in await rows.page("svc-a", 9, since=1.0, until=2.0)] == ["job-3", "job-2"]
    assert await rows.page("svc-b", 9) == []
    assert await rows.page("svc-a", 9, model="other") == []


async def test_an_equal_finished_job_is_found_by_its_fingerprint(rows: JobStore) -> None:
    await put(rows, job("job-1", fingerprint="f"))
    assert await rows.like("svc-a", "f", True) is None  # it has not finished
    await finish(rows, "job-1", picture("pic-1", "job-1"))
    found = await rows.like("svc-a", "f", True)
    assert found is not None
    assert found.id == "job-1"
    assert await rows.like("svc-b", "f", True) is None
    assert await rows.like("svc-a", "f", False) is None
    await rows.drop_picture(picture("pic-1", "job-1"))
    assert await rows.like("svc-a", "f", True) is None


async def test_clearing_away_takes_ended_jobs_and_names_their_files(rows: JobStore) -> None:
    await put(rows, job("job-1", created_at=1.0), key="k", body_hash="b", image=b"i")
    await put(rows, job("job-2", created_at=2.0))
    await finish(rows, "job-1", picture("pic-1", "job-1", size=70))
    pictures = PictureStore(rows._database)
    await pictures.star("pic-1", True)
    assert await rows.older(5.0, 10) == []  # what has a star stays
    assert await rows.oldest_pictures(9) == []
    await pictures.star("pic-1", False)
    assert await rows.older(5.0, 10) == ["job-1"]
    assert await rows.picture_bytes() == 70
    assert [row.job_id for row in await rows.oldest_pictures(9)] == ["job-1"]
    assert await rows.delete(["job-1", "job-2"]) == ["aa/pic-1.png"]
    assert await rows.find("job-1") is None
    assert await rows.find("job-2") is not None  # it waits
    assert len(await rows.used()) == 1  # what was used stays


async def test_pictures_not_to_be_kept_go_and_what_was_asked_with_them(rows: JobStore) -> None:
    await put(rows, job("job-1", keep=False), key="k", body_hash="b")
    await finish(rows, "job-1", picture("pic-1", "job-1"))
    assert [row.id for row in await rows.not_kept(30.0, 9)] == ["pic-1"]
    await rows.drop_picture(picture("pic-1", "job-1"))
    await rows.drop_picture(picture("pic-1", "job-1"))  # by a second one who was late
    assert await rows.not_kept(30.0, 9) == []
    found = await rows.find("job-1")
    assert found is not None
    assert found.params.prompt == ""
    assert not (await put(rows, job("job-2"), key="k", body_hash="b")).joined
