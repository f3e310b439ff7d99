"""Rows of pictures, as the gallery looks at them: pages by key, search, stars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from darkroom.store.database import Database
from darkroom.store.schema import pictures
from darkroom.types import PictureRow


@dataclass(frozen=True)
class Search:
    """What pictures to look for; empty and None look for all. words: all of them somewhere in the prompt. since is included,
    until is not."""

    words: str = ""
    seed: int | None = None
    model: str = ""
    key_id: str = ""
    since: float | None = None
    until: float | None = None
    starred: bool = False


class PictureStore:
    """What the gallery's pages read and change."""

    def __init__(self, database: Database):
        self._database = database

    async def page(self, service_id: str, search: Search, limit: int, before: tuple[float, str] | None = None) -> list[PictureRow]:
        """Newest first; `before` is created_at and id of the last one seen. Chosen by what indexes hold, and only then read."""
        chosen = sa.select(pictures.c.id).where(*_conditions(service_id, search, before))
        chosen = chosen.order_by(pictures.c.created_at.desc(), pictures.c.id.desc()).limit(limit)
        ids = [row["id"] for row in await self._database.rows(chosen)]
        rows = {row["id"]: PictureRow(**row) for row in await self._database.rows(sa.select(pictures).where(pictures.c.id.in_(ids)))}
        return [rows[id_] for id_ in ids if id_ in rows]

    async def find(self, picture_id: str) -> PictureRow | None:
        rows = await self._database.rows(sa.select(pictures).where(pictures.c.id == picture_id))
        return PictureRow(**rows[0]) if rows else None

    async def star(self, picture_id: str, starred: bool) -> bool:
        """Whether there is such a picture."""
        async with self._database.write() as connection:
            return (await connection.execute(pictures.update().where(pictures.c.id == picture_id).values(starred=starred))).rowcount == 1

    async def remove(self, service_id: str, picture_ids: Sequence[str]) -> list[PictureRow]:
        """Remove rows of pictures of a service; those that were there. Their jobs stay, without them."""
        async with self._database.write() as connection:
            gone = pictures.delete().where(pictures.c.service_id == service_id, pictures.c.id.in_(list(picture_ids))).returning(pictures)
            return [PictureRow(**row) for row in (await connection.execute(gone)).mappings()]


def _conditions(service_id: str, search: Search, before: tuple[float, str] | None) -> list[sa.ColumnElement[bool]]:
    where: list[Any] = [pictures.c.service_id == service_id]
    if before is not None:
        when, id_ = before
        where.append(sa.tuple_(pictures.c.created_at, pictures.c.id) < sa.tuple_(sa.literal(when), sa.literal(id_)))
    where += [pictures.c.words.contains(word, autoescape=True) for word in search.words.lower().split()[:10]]
    exact = {"seed": search.seed, "model": search.model or None, "key_id": search.key_id or None, "starred": search.starred or None}
    where += [pictures.c[name] == value for name, value in exact.items() if value is not None]
    if search.since is not None:
        where.append(pictures.c.created_at >= search.since)
    if search.until is not None:
        where.append(pictures.c.created_at < search.until)
    return where
