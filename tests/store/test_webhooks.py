"""Rows of the outbox and of secrets, on both databases."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from darkroom.store.access import AccessStore
from darkroom.store.database import Database
from darkroom.store.schema import outbox
from darkroom.store.webhooks import WebhookStore, claiming, outbox_row
from darkroom.types import Service, WebhookSecret


@pytest_asyncio.fixture
async def rows(database: Database) -> WebhookStore:
    """The outbox of a database with one service, on SQLite and on PostgreSQL."""
    await AccessStore(database).add_service(Service("svc-a", "first", (), "operator", 1.0))
    return WebhookStore(database)


async def put(database: Database, *jobs: str, now: float = 100.0, url: str = "https://hooks.example/", **columns: Any) -> list[str]:
    """Messages of these jobs; their ids."""
    made = [outbox_row(job, "svc-a", url, "job.finished", f'{{"job":"{job}"}}', now) | columns for job in jobs]
    async with database.write() as connection:
        await connection.execute(outbox.insert(), made)
    return [row["id"] for row in made]


async def test_a_message_is_claimed_by_one_until_its_lease_ends(database: Database, rows: WebhookStore) -> None:
    (first,) = await put(database, "job-1")
    (second,) = await put(database, "job-2", now=101.0)
    assert await rows.claim(now=99.0, lease_until=130.0, limit=5) == []
    assert [m.id for m in await rows.claim(now=101.0, lease_until=130.0, limit=1)] == [first]
    assert [m.id for m in await rows.claim(now=101.0, lease_until=130.0, limit=5)] == [second]
    assert await rows.claim(now=129.0, lease_until=160.0, limit=5) == []
    again = await rows.claim(now=130.0, lease_until=160.0, limit=5)
    assert [(m.id, m.attempts, m.lease_until) for m in again] == [(first, 2, 160.0), (second, 2, 160.0)]


async def test_many_who_claim_at_once_share_no_message(database: Database, rows: WebhookStore) -> None:
    await put(database, *(f"job-{i}" for i in range(40)))
    claimed = await asyncio.gather(*(rows.claim(now=100.0, lease_until=130.0, limit=7) for _ in range(10)))
    ids = [message.id for some in claimed for message in some]
    assert len(ids) == len(set(ids)) == 40


async def test_an_attempt_is_settled_as_delivered_due_again_or_given_up(database: Database, rows: WebhookStore) -> None:
    await put(database, "job-1", "job-2", "job-3")
    one, two, three = await rows.claim(now=100.0, lease_until=130.0, limit=3)
    await rows.settle(one, 101.0, 204, None, delivered=True)
    await rows.settle(two, 101.0, 500, "it answered 500", next_at=106.0)
    await rows.settle(three, 101.0, None, "no answer")
    found = {message.id: message for message in await rows.messages()}
    assert found[one.id] == replace(one, lease_until=None, delivered_at=101.0, last_status=204)
    assert found[two.id] == replace(two, lease_until=None, next_at=106.0, last_status=500, last_error="it answered 500")
    assert found[three.id] == replace(three, lease_until=None, failed_at=101.0, last_error="no answer")
    assert [found[message.id].state for message in (one, two, three)] == ["delivered", "waiting", "given up"]
    assert [message.id for message in await rows.claim(now=200.0, lease_until=230.0, limit=5)] == [two.id]


async def test_of_one_who_lost_his_lease_only_success_counts(database: Database, rows: WebhookStore) -> None:
    await put(database, "job-1")
    (slow,) = await rows.claim(now=100.0, lease_until=130.0, limit=1)
    (other,) = await rows.claim(now=130.0, lease_until=160.0, limit=1)
    await rows.settle(slow, 131.0, None, "too late")
    assert await rows.messages() == [other]
    await rows.settle(slow, 132.0, 200, None, delivered=True)
    await rows.settle(other, 133.0, 500, "it answered 500", next_at=140.0)
    (message,) = await rows.messages()
    assert (message.state, message.last_status) == ("delivered", 200)


async def test_retry_makes_due_with_the_whole_schedule_before_it(database: Database, rows: WebhookStore) -> None:
    (gone, other, done) = await put(database, "job-1", "job-2", "job-3", failed_at=150.0, attempts=9)
    await put(database, "job-4", next_at=900.0)
    assert await rows.retry("msg_none", 200.0) == 0
    assert await rows.retry(gone, 200.0) == 1
    assert [(m.id, m.attempts) for m in await rows.claim(now=200.0, lease_until=230.0, limit=5)] == [(gone, 1)]
    assert await rows.retry(None, 200.0) == 2
    assert {m.id for m in await rows.claim(now=200.0, lease_until=230.0, limit=5)} == {other, done}


async def test_what_ended_long_ago_is_removed_and_what_waits_is_not(database: Database, rows: WebhookStore) -> None:
    await put(database, "job-1", delivered_at=100.0)
    await put(database, "job-2", failed_at=100.0)
    (late,) = await put(database, "job-3", delivered_at=200.0)
    (waiting,) = await put(database, "job-4")
    assert await rows.remove_ended(before=150.0) == 2
    assert {message.id for message in await rows.messages("svc-a")} == {late, waiting}
    assert len(await rows.messages(limit=1)) == 1
    assert await rows.messages("svc-b") == []


def secret(name: str, created_at: float, service_id: str = "svc-a") -> WebhookSecret:
    return WebhookSecret(name, service_id, f"whsec_{name}", created_at)


async def test_a_service_has_one_present_secret_and_retired_ones(rows: WebhookStore) -> None:
    await asyncio.gather(*(rows.add_first_secret(secret(f"s{i}", 1.0)) for i in range(5)))
    (first,) = await rows.secrets("svc-a")
    await rows.replace_secret(secret("new", 10.0), delete_before=0.0)
    await rows.replace_secret(secret("newer", 20.0), delete_before=5.0)
    assert await rows.secrets("svc-a") == [secret("newer", 20.0), replace(secret("new", 10.0), retired_at=20.0), replace(first, retired_at=10.0)]
    await rows.replace_secret(secret("newest", 30.0), delete_before=15.0)
    assert [held.id for held in await rows.secrets("svc-a")] == ["newest", "newer", "new"]
    await rows.remove_retired(before=25.0)
    assert [held.id for held in await rows.secrets("svc-a")] == ["newest", "newer"]
    await rows.add_first_secret(secret("lost", 1.0, service_id="svc-none"))
    assert await rows.secrets("svc-none") == []


def test_on_postgresql_rows_that_others_hold_are_skipped() -> None:
    text = str(claiming(1.0, 2.0, 3).compile(dialect=postgresql.dialect()))
    assert "FOR UPDATE SKIP LOCKED" in text
    assert text.index("WITH due") < text.index("UPDATE outbox")
    assert "FOR UPDATE" not in str(claiming(1.0, 2.0, 3).compile(dialect=sa.dialects.sqlite.dialect()))
