"""The gallery's rows and the log of requests, on both databases."""

from __future__ import annotations

from dataclasses import replace

from darkroom.store.calls import CallStore
from darkroom.store.jobs import JobStore
from darkroom.store.pictures import PictureStore, Search
from darkroom.types import Call, Limits, Status
from tests.store.conftest import job, picture


async def gallery(rows: JobStore) -> PictureStore:
    """Six pictures: even ones of cats, odd ones of dogs, one second apart."""
    for i in range(6):
        one = job(f"job-{i}", created_at=float(i))
        await rows.accept(one, {"prompt": "a"}, 100, 100, Limits())
        words = f"a {'cat' if i % 2 == 0 else '100%_dog'} on blue"
        made = replace(picture(f"pic-{i}", one.id, created_at=float(i)), words=words, seed=i, model="demo-xl", key_id="pub")
        await rows.end(replace(one, status=Status.FINISHED, steps_run=10), [made])
    return PictureStore(rows._database)


async def test_pages_and_search(rows: JobStore) -> None:
    pictures = await gallery(rows)

    async def ids(search: Search = Search(), limit: int = 9, before: tuple[float, str] | None = None) -> list[str]:
        return [one.id for one in await pictures.page("svc-a", search, limit, before)]

    assert await ids(limit=2) == ["pic-5", "pic-4"]
    assert await ids(before=(4.0, "pic-4")) == ["pic-3", "pic-2", "pic-1", "pic-0"]
    assert await ids(Search(words="CAT blue")) == ["pic-4", "pic-2", "pic-0"]
    assert await ids(Search(words="100%_")) == ["pic-5", "pic-3", "pic-1"]  # no wildcards of SQL's
    assert await ids(Search(words="%")) == ["pic-5", "pic-3", "pic-1"]
    assert await ids(Search(seed=3)) == ["pic-3"]
    assert await ids(Search(model="other")) == []
    assert await ids(Search(since=1.0, until=3.0)) == ["pic-2", "pic-1"]
    assert await pictures.star("pic-2", True)
    assert not await pictures.star("pic-9", True)
    assert await ids(Search(starred=True)) == ["pic-2"]
    assert [one.id for one in await pictures.remove("svc-b", ["pic-1"])] == []  # another service's
    assert [one.id for one in await pictures.remove("svc-a", ["pic-1", "pic-9"])] == ["pic-1"]
    assert await pictures.find("pic-1") is None


async def test_the_log_is_paged_filtered_and_summed(rows: JobStore) -> None:
    await gallery(rows)
    calls = CallStore(rows._database)
    await calls.add([
        Call(f"req-{i}", float(i), "svc-a", "pub", "POST", "/v1/images/generate", (200, 422)[i % 2], 10.0 * (i + 1), "demo-xl", f"job-{i}", None, {"n": i})
        for i in range(6)
    ])  # fmt: skip
    assert [one["id"] for one in await calls.page("svc-a", 2)] == ["req-5", "req-4"]
    assert [one["id"] for one in await calls.page("svc-a", 9, before=(2.0, "req-2"))] == ["req-1", "req-0"]
    assert [one["id"] for one in await calls.page("svc-a", 9, statuses=(400, 500))] == ["req-5", "req-3", "req-1"]
    assert await calls.page("svc-a", 9, key_id="other") == []
    one = await calls.find("req-3")
    assert one is not None
    assert (one["body"], one["steps"]) == ({"n": 3}, 10)
    (line,) = await calls.summary("svc-a", 0.0, 1e10, "key")
    assert (line["group"], line["requests"], line["errors"], line["p50_ms"], line["p95_ms"]) == ("pub", 6, 3, 30.0, 50.0)
    assert line["pictures"] == 6
    await calls.remove(before=4.0)
    assert [one["id"] for one in await calls.page("svc-a", 9)] == ["req-5", "req-4"]
