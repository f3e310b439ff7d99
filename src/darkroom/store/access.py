"""Rows of services and keys."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from darkroom.store.database import Database
from darkroom.store.schema import api_keys, services
from darkroom.types import ApiKey, Limits, Service


class AccessStore:
    """What `access.py` keeps."""

    def __init__(self, database: Database):
        self._database = database

    async def add_service(self, service: Service) -> None:
        async with self._database.write() as connection:
            await connection.execute(services.insert().values(asdict(service) | {"models": list(service.models)}))

    async def services(self) -> list[Service]:
        """All services, oldest first."""
        rows = await self._database.rows(sa.select(services).order_by(services.c.created_at, services.c.id))
        return [Service(**{**row, "models": tuple(row["models"])}) for row in rows]

    async def set_models(self, service_id: str, models: tuple[str, ...]) -> None:
        async with self._database.write() as connection:
            await connection.execute(services.update().where(services.c.id == service_id).values(models=list(models)))

    async def set_name(self, service_id: str, name: str) -> None:
        async with self._database.write() as connection:
            await connection.execute(services.update().where(services.c.id == service_id).values(name=name))

    async def add_key(self, key: ApiKey, hashed: bytes) -> None:
        async with self._database.write() as connection:
            await connection.execute(api_keys.insert().values(asdict(key) | {"scopes": list(key.scopes), "hash": hashed}))

    async def keys(self, service_id: str | None = None) -> list[ApiKey]:
        """Keys without their hashes, oldest first, of one service or of all."""
        query = sa.select(api_keys).order_by(api_keys.c.created_at, api_keys.c.public_id)
        rows = await self._database.rows(query if service_id is None else query.where(api_keys.c.service_id == service_id))
        return [_key(row) for row in rows]

    async def find_key(self, public_id: str) -> tuple[ApiKey, bytes] | None:
        """A key and its hash."""
        rows = await self._database.rows(sa.select(api_keys).where(api_keys.c.public_id == public_id))
        return (_key(rows[0]), rows[0]["hash"]) if rows else None

    async def revoke(self, public_id: str) -> bool:
        """Whether there was such a key, not yet revoked."""
        query = api_keys.update().where(api_keys.c.public_id == public_id, api_keys.c.revoked_at.is_(None))
        async with self._database.write() as connection:
            return (await connection.execute(query.values(revoked_at=time.time()))).rowcount == 1

    async def set_limits(self, public_id: str, limits: Limits | None) -> bool:
        """Whether there is such a key; None gives it the server's limits again."""
        query = api_keys.update().where(api_keys.c.public_id == public_id)
        async with self._database.write() as connection:
            return (await connection.execute(query.values(limits=limits and asdict(limits)))).rowcount == 1

    async def touch(self, used: dict[str, float]) -> None:
        """Note when keys were last used."""
        async with self._database.write() as connection:
            for public_id, when in used.items():
                await connection.execute(api_keys.update().where(api_keys.c.public_id == public_id).values(last_used_at=when))


def limits_of(value: Any) -> Limits | None:
    return Limits(**value) if value else None


def _key(row: Any) -> ApiKey:
    shown = {k: v for k, v in row.items() if k not in ("hash", "scopes", "limits")}
    return ApiKey(**shown, scopes=tuple(row["scopes"]), limits=limits_of(row["limits"]))
