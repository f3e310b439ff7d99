"""Signing in: attempts, links and passwords, on real rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from darkroom.errors import TooMany, Unauthorized
from darkroom.sessions import ATTEMPTS, LINK, LINK_LASTS, Sessions
from darkroom.store.database import Database
from darkroom.store.sessions import SessionStore


@pytest_asyncio.fixture
async def rows(tmp_path: Path) -> AsyncIterator[SessionStore]:
    database = Database(tmp_path / "rows.sqlite")
    await database.open()
    yield SessionStore(database)
    await database.close()


async def test_many_guesses_at_once_are_no_more_than_one_after_the_other(rows: SessionStore) -> None:
    sessions = Sessions(rows)
    await sessions.set_password("correct horse")
    told = await asyncio.gather(*(sessions.sign_in("a", "", password=f"guess {i}") for i in range(25)), return_exceptions=True)
    assert [type(one) for one in told].count(Unauthorized) == ATTEMPTS
    assert [type(one) for one in told].count(TooMany) == 25 - ATTEMPTS
    for _ in range(ATTEMPTS + 2):  # of what succeeds nothing is held against the address
        await sessions.sign_in("b", "", password="correct horse")


async def test_a_link_lasts_a_day_and_ends_with_a_new_password(rows: SessionStore) -> None:
    sessions = Sessions(rows)
    link = await sessions.new_link()
    hashed = (await rows.fact(LINK) or "").split(" ")[0]
    for made_at in ("", f" {time.time() - LINK_LASTS - 60:.0f}"):
        await rows.set_fact(LINK, f"{hashed}{made_at}")
        with pytest.raises(Unauthorized):
            await sessions.sign_in("a", "", link=link)
    link = await sessions.new_link()
    await sessions.sign_in("a", "", link=link)
    with pytest.raises(Unauthorized):
        await sessions.sign_in("a", "", link=link)
    link = await sessions.new_link()
    await sessions.set_password("correct horse")
    with pytest.raises(Unauthorized):
        await sessions.sign_in("a", "", link=link)
