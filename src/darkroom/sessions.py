"""Use cases of the operator who signs in to the dashboard: one-time link, password, sessions.

A session is an opaque random id in a cookie, kept as a hash in a row, so that it can be revoked; the password is kept by
argon2id (RFC 9106).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import deque
from typing import Protocol

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from darkroom.commands import command
from darkroom.errors import Invalid, NotFound, TooMany, Unauthorized
from darkroom.types import Session

LASTS = 30 * 86_400.0  # seconds of a session
SEEN_EVERY = 60.0  # seconds between two notes of when a session was last seen
SHORTEST = 10  # characters of a password
LONGEST = 1000
ATTEMPTS, WINDOW = 10, 300.0  # failed sign-ins in so many seconds, of one address
ADDRESSES = 10_000  # that failed attempts are remembered of
LINK_LASTS = 86_400.0  # seconds of a one-time link
HASHING = 2  # passwords at once: argon2id takes 64 MB for each
LINK, PASSWORD = "link", "password"


class Rows(Protocol):
    """Where sessions and facts are kept; see `store/sessions.py`."""

    async def fact(self, name: str) -> str | None: ...
    async def set_fact(self, name: str, value: str | None) -> None: ...
    async def take_fact(self, name: str, value: str) -> bool: ...
    async def add(self, session: Session, hashed: bytes) -> None: ...
    async def find(self, hashed: bytes) -> Session | None: ...
    async def all(self, now: float) -> list[Session]: ...
    async def touch(self, session_id: str, now: float) -> None: ...
    async def remove(self, session_id: str) -> bool: ...
    async def remove_others(self, session_id: str, now: float) -> None: ...


class Sessions:
    """Who is signed in. `given` is a password that stands in the settings: it cannot be changed here."""

    def __init__(self, rows: Rows, given: str = ""):
        self._rows, self._given = rows, given
        self._hasher = PasswordHasher()
        self._hashing = asyncio.Semaphore(HASHING)
        self._failed: dict[str, deque[float]] = {}

    async def new_link(self) -> str:
        """A token that signs in once, within a day; the one before is void."""
        token = secrets.token_urlsafe(32)
        await self._rows.set_fact(LINK, f"{_hashed(token).hex()} {time.time():.0f}")
        return token

    async def has_password(self) -> bool:
        return bool(self._given) or await self._rows.fact(PASSWORD) is not None

    async def sign_in(self, address: str, agent: str, link: str = "", password: str = "") -> tuple[Session, str]:
        """A session and the value of its cookie. Raises TooMany, or Unauthorized for a link that is void or a wrong password."""
        if not link:  # nobody guesses a link of 256 bits, so those who try keep nobody with a valid one out
            self._note_attempt(address)
        if link and not await self._take_link(link):
            line = "this link was used, is a day old, or was replaced by a newer one or a password"
            raise Unauthorized(f"{line}; make another with: {command('link', public=True)}")
        if not link and not await self._is_password(password):
            raise Unauthorized("the password is wrong")
        if not link:
            self._failed.pop(address, None)
        now, token = time.time(), secrets.token_urlsafe(32)
        session = Session(f"ses-{secrets.token_hex(8)}", secrets.token_urlsafe(24), agent[:200], now, now, now + LASTS)
        await self._rows.add(session, _hashed(token))
        return session, token

    async def verify(self, token: str) -> Session | None:
        """The session of a cookie's value; None where there is none, or it has expired."""
        session = await self._rows.find(_hashed(token)) if 20 <= len(token) <= 100 else None
        now = time.time()
        if session is None or session.expires_at <= now:
            return None
        if now - session.last_seen_at > SEEN_EVERY:
            await self._rows.touch(session.id, now)
        return session

    async def all(self) -> list[Session]:
        return await self._rows.all(time.time())

    async def end(self, session_id: str) -> None:
        """Raises NotFound."""
        if not await self._rows.remove(session_id):
            raise NotFound("there is no such session")

    async def set_password(self, new: str, session: Session | None = None, old: str = "", address: str = "") -> None:
        """A new password; all other sessions end, and so does the link. From a session the old one is asked for, where there is one. Raises Invalid,
        Unauthorized, TooMany."""
        if self._given:
            raise Invalid("the password stands in the server's settings, and is changed there", name="invalid_password")
        if fault := password_fault(new):
            raise Invalid(f"password {fault}", name="invalid_password")
        if session is not None and await self.has_password():
            self._note_attempt(address)
            if not await self._is_password(old):
                raise Unauthorized("the old password is wrong")
            self._failed.pop(address, None)
        async with self._hashing:
            hashed = await asyncio.to_thread(self._hasher.hash, new)
        await self._rows.set_fact(PASSWORD, hashed)
        await self._rows.set_fact(LINK, None)
        await self._rows.remove_others(session.id if session is not None else "", time.time())

    async def _is_password(self, text: str) -> bool:
        if self._given:
            return hmac.compare_digest(text.encode(), self._given.encode())
        kept = await self._rows.fact(PASSWORD)
        if kept is None or len(text) > LONGEST:
            return False
        async with self._hashing:
            return await asyncio.to_thread(self._matches, kept, text)

    async def _take_link(self, token: str) -> bool:
        kept = await self._rows.fact(LINK) or ""
        hashed, _, made_at = kept.partition(" ")
        if not made_at or float(made_at) < time.time() - LINK_LASTS or not hmac.compare_digest(hashed, _hashed(token).hex()):
            return False
        return await self._rows.take_fact(LINK, kept)  # of two who come at once one has it

    def _matches(self, kept: str, text: str) -> bool:
        try:
            return self._hasher.verify(kept, text)
        except (Argon2Error, InvalidHashError):
            return False

    def _note_attempt(self, address: str) -> None:
        """Counts as failed until it succeeds, so that many at once are no more than one after the other. Raises TooMany."""
        if len(self._failed) >= ADDRESSES and address not in self._failed:
            self._failed.pop(next(iter(self._failed)))
        failed = self._failed.setdefault(address, deque())
        while failed and failed[0] < time.monotonic() - WINDOW:
            failed.popleft()
        if len(failed) >= ATTEMPTS:
            raise TooMany("too many failed attempts to sign in", retry_after=failed[0] + WINDOW - time.monotonic())
        failed.append(time.monotonic())


def password_fault(password: str) -> str:
    """How a password breaks the rule of length, which holds wherever it comes from; "" where it does not."""
    if SHORTEST <= len(password) <= LONGEST:
        return ""
    return f"must have {SHORTEST} to {LONGEST} characters, got {len(password)}"


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
