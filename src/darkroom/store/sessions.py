"""Rows of the operator's sessions, and of single facts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from darkroom.store.database import Database
from darkroom.store.schema import facts, sessions
from darkroom.types import Session


class SessionStore:
    """What `sessions.py` keeps."""

    def __init__(self, database: Database):
        self._database = database

    async def fact(self, name: str) -> str | None:
        rows = await self._database.rows(sa.select(facts.c.value).where(facts.c.name == name))
        return rows[0]["value"] if rows else None

    async def set_fact(self, name: str, value: str | None) -> None:
        """None removes it."""
        async with self._database.write() as connection:
            await connection.execute(facts.delete().where(facts.c.name == name))
            if value is not None:
                await connection.execute(facts.insert().values(name=name, value=value))

    async def take_fact(self, name: str, value: str) -> bool:
        """Remove a fact if it has this value; whether it had."""
        async with self._database.write() as connection:
            return (await connection.execute(facts.delete().where(facts.c.name == name, facts.c.value == value))).rowcount == 1

    async def add(self, session: Session, hashed: bytes) -> None:
        async with self._database.write() as connection:
            await connection.execute(sessions.insert().values(asdict(session) | {"hash": hashed}))

    async def find(self, hashed: bytes) -> Session | None:
        rows = await self._database.rows(sa.select(sessions).where(sessions.c.hash == hashed))
        return _session(rows[0]) if rows else None

    async def all(self, now: float) -> list[Session]:
        """Those that have not expired, newest first."""
        rows = await self._database.rows(sa.select(sessions).where(sessions.c.expires_at > now).order_by(sessions.c.created_at.desc()))
        return [_session(row) for row in rows]

    async def touch(self, session_id: str, now: float) -> None:
        async with self._database.write() as connection:
            await connection.execute(sessions.update().where(sessions.c.id == session_id).values(last_seen_at=now))

    async def remove(self, session_id: str) -> bool:
        """Whether there was such a session."""
        async with self._database.write() as connection:
            return (await connection.execute(sessions.delete().where(sessions.c.id == session_id))).rowcount == 1

    async def remove_others(self, session_id: str, now: float) -> None:
        """All but this one, and what has expired."""
        async with self._database.write() as connection:
            await connection.execute(sessions.delete().where(sa.or_(sessions.c.id != session_id, sessions.c.expires_at <= now)))


def _session(row: Any) -> Session:
    return Session(**{name: value for name, value in row.items() if name != "hash"})
