"""Rows of the outbox and of the secrets that sign what leaves it."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from darkroom.store.database import Database
from darkroom.store.schema import outbox, webhook_secrets
from darkroom.types import Message, WebhookSecret

WAITING = sa.and_(outbox.c.delivered_at.is_(None), outbox.c.failed_at.is_(None))


def outbox_row(job_id: str, service_id: str, url: str, event: str, body: str, now: float) -> dict[str, Any]:
    """A row for `outbox`, due at once, to be inserted in the transaction that ends the job: one is not without the other.

    event: `job.finished`, `job.failed` or `job.cancelled`. body: the JSON text as it will be sent.
    """
    return asdict(Message(f"msg_{secrets.token_hex(12)}", job_id, service_id, url, event, body, now, 0, now))


class WebhookStore:
    """What `webhooks.py` keeps."""

    def __init__(self, database: Database):
        self._database = database

    async def claim(self, now: float, lease_until: float, limit: int) -> list[Message]:
        """Up to `limit` messages that are due, leased and with this attempt counted; the longest due first."""
        async with self._database.write() as connection:
            rows = (await connection.execute(claiming(now, lease_until, limit))).mappings().all()
        return sorted((Message(**row) for row in rows), key=lambda message: message.next_at)

    async def settle(
        self, message: Message, now: float, status: int | None, error: str | None, next_at: float | None = None, delivered: bool = False
    ) -> None:
        """How an attempt went: delivered, due again at next_at, or given up where there is neither."""
        state: dict[str, Any] = {"failed_at": now} if next_at is None else {"next_at": next_at}
        if delivered:
            state = {"delivered_at": now, "failed_at": None}
        query = outbox.update().where(outbox.c.id == message.id, outbox.c.delivered_at.is_(None))
        if not delivered:  # of one who had lost his lease, only success is news
            query = query.where(outbox.c.lease_until == message.lease_until)
        async with self._database.write() as connection:
            await connection.execute(query.values(lease_until=None, last_status=status, last_error=error, **state))

    async def messages(self, service_id: str | None = None, limit: int = 100) -> list[Message]:
        """Newest first, of one service or of all."""
        query = sa.select(outbox).order_by(outbox.c.created_at.desc(), outbox.c.id).limit(limit)
        rows = await self._database.rows(query if service_id is None else query.where(outbox.c.service_id == service_id))
        return [Message(**row) for row in rows]

    async def retry(self, message_id: str | None, now: float) -> int:
        """Make a message due, with its whole schedule before it again; with None all that were given up. Returns how many."""
        which = outbox.c.failed_at.is_not(None) if message_id is None else outbox.c.id == message_id
        due = outbox.update().where(which).values(next_at=now, attempts=0, lease_until=None, delivered_at=None, failed_at=None)
        async with self._database.write() as connection:
            return (await connection.execute(due)).rowcount

    async def remove_ended(self, before: float) -> int:
        """Delete what was delivered or given up before an instant. Returns how many."""
        async with self._database.write() as connection:
            return (await connection.execute(outbox.delete().where(sa.func.coalesce(outbox.c.delivered_at, outbox.c.failed_at) < before))).rowcount

    async def secrets(self, service_id: str) -> list[WebhookSecret]:
        """The present one, then the retired ones, the last retired first."""
        query = sa.select(webhook_secrets).where(webhook_secrets.c.service_id == service_id)
        held = [WebhookSecret(**row) for row in await self._database.rows(query)]
        return sorted(held, key=lambda secret: (secret.retired_at is not None, -(secret.retired_at or 0)))

    async def add_first_secret(self, secret: WebhookSecret) -> None:
        """Unless the service has one: of two who come at once, the second finds the first's."""
        with suppress(sa.exc.IntegrityError):
            async with self._database.write() as connection:
                await connection.execute(webhook_secrets.insert().values(asdict(secret)))

    async def replace_secret(self, secret: WebhookSecret, delete_before: float) -> None:
        """A new present one; the one before is retired now, and those that were retired before an instant are deleted."""
        of_service = webhook_secrets.c.service_id == secret.service_id
        async with self._database.write() as connection:
            await connection.execute(webhook_secrets.delete().where(of_service, webhook_secrets.c.retired_at < delete_before))
            present = webhook_secrets.update().where(of_service, webhook_secrets.c.retired_at.is_(None))
            await connection.execute(present.values(retired_at=secret.created_at))
            await connection.execute(webhook_secrets.insert().values(asdict(secret)))

    async def remove_retired(self, before: float) -> None:
        """Delete the secrets that were retired before an instant."""
        async with self._database.write() as connection:
            await connection.execute(webhook_secrets.delete().where(webhook_secrets.c.retired_at < before))


def claiming(now: float, lease_until: float, limit: int) -> sa.UpdateBase:
    """The statement of `claim`. A table expression, since PostgreSQL may run a subquery with a LIMIT more than once; SQLite, with
    its one writer, needs no lock and its dialect leaves the clause out."""
    free = sa.or_(outbox.c.lease_until.is_(None), outbox.c.lease_until <= now)
    due = sa.select(outbox.c.id).where(WAITING, outbox.c.next_at <= now, free).order_by(outbox.c.next_at).limit(limit)
    chosen = due.with_for_update(skip_locked=True).cte("due")
    taken = outbox.update().where(outbox.c.id.in_(sa.select(chosen.c.id)))
    return taken.values(lease_until=lease_until, attempts=outbox.c.attempts + 1).returning(*outbox.c)
