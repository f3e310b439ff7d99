"""Rows of accepted licences."""

from __future__ import annotations

from dataclasses import asdict

import sqlalchemy as sa

from darkroom.store.database import Database
from darkroom.store.schema import acceptances
from darkroom.types import Acceptance


class LicenceStore:
    """What `licences.py` keeps."""

    def __init__(self, database: Database):
        self._database = database

    async def accept(self, acceptance: Acceptance) -> None:
        async with self._database.write() as connection:
            await connection.execute(acceptances.insert().values(asdict(acceptance)))

    async def acceptances(self, model: str) -> list[Acceptance]:
        """Of one model, oldest first."""
        rows = await self._database.rows(sa.select(acceptances).where(acceptances.c.model == model).order_by(acceptances.c.accepted_at))
        return [Acceptance(**row) for row in rows]
