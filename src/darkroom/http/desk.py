"""What every route needs: the pieces handed to the app, and the checks that come before a body is read."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from darkroom.access import Access
from darkroom.album import Album
from darkroom.checks import Wrong
from darkroom.errors import Forbidden, TooLarge, TooSlow, Unauthorized
from darkroom.jobs import Jobs
from darkroom.journal import Journal
from darkroom.licences import Licences
from darkroom.outgoing import check_url
from darkroom.pulls import Pulls
from darkroom.sessions import Sessions
from darkroom.settings import Settings
from darkroom.store.calls import CallStore
from darkroom.types import ApiKey, ModelCard, Service, Session
from darkroom.worker.protocol import Worker

COOKIE = "darkroom_session"
SAFE = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Console:
    """What only the dashboard's pages need."""

    sessions: Sessions
    album: Album
    calls: CallStore
    journal: Journal
    pulls: Pulls


@dataclass(frozen=True)
class Desk:
    """The pieces that the app was built with."""

    settings: Settings
    cards: Mapping[str, ModelCard]
    access: Access
    licences: Licences
    jobs: Jobs
    worker: Worker
    console: Console

    async def enter(self, request: Request) -> tuple[ApiKey, Service]:
        """The caller's key and service; see `Access.enter` for the errors. A person who is signed in to the dashboard comes in by
        the dashboard's own key of the service in the address."""
        service_id = request.path_params.get("service_id")
        session = None if "authorization" in request.headers else await self.session(request)
        if session is not None and service_id:
            self._check_csrf(request, session)
            key, service = await self.access.console_key(service_id), await self.access.service(service_id)
        else:
            if "x-api-key" in request.headers and "authorization" not in request.headers:
                send = "send it as the header `Authorization: Bearer API_KEY`"
                raise Unauthorized(f"the key came as X-API-Key; {send}")
            key, service = await self.access.enter(request.headers.get("authorization"), service_id)
        request.state.key_id = key.public_id
        if session is None or request.method not in SAFE:  # what the dashboard reads for its pages is nobody's call
            request.state.service_id = service.id
        return key, service

    async def session(self, request: Request) -> Session | None:
        """Of the person whose browser this is; None where nobody is signed in."""
        token = request.cookies.get(COOKIE)
        return await self.console.sessions.verify(token) if token else None

    async def signed_in(self, request: Request) -> Session:
        """Raises Unauthorized, or Forbidden for an unsafe call without the session's CSRF token."""
        session = await self.session(request)
        if session is None:
            raise Unauthorized("sign in to the dashboard first")
        self._check_csrf(request, session)
        return session

    @staticmethod
    def _check_csrf(request: Request, session: Session) -> None:
        if request.method not in SAFE and not hmac.compare_digest(request.headers.get("x-csrf-token", "").encode(), session.csrf.encode()):
            raise Forbidden("the header X-CSRF-Token must repeat the session's token")

    def webhook(self, value: Any) -> str:
        """The rule of webhook_url. Raises Wrong."""
        if not isinstance(value, str):
            raise Wrong("a string")
        try:
            return check_url(value, self.settings.webhook_allow_private)
        except ValueError as error:
            raise Wrong(f"an address that we may call (it {error})") from error

    def bound(self, request: Request, most: int, seconds: float | None = None) -> None:
        """Let no more than `most` bytes of the body through, declared or not, in `seconds` (`body_timeout` where not given). Raises
        TooLarge, later or at once, or TooSlow."""
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > most:
            raise TooLarge(f"the body must have at most {most} bytes, got {declared[:20]}")
        request._receive = _bounded(request._receive, most, self.settings.body_timeout if seconds is None else seconds)

    async def body(self, request: Request, most: int, seconds: float | None = None) -> bytes:
        """The whole body. Raises TooLarge or TooSlow."""
        self.bound(request, most, seconds)
        return b"".join([chunk async for chunk in request.stream()])


def desk_of(request: Request) -> Desk:
    return request.app.state.desk


def _bounded(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]], most: int, seconds: float
) -> Callable[[], Awaitable[MutableMapping[str, Any]]]:
    """`receive`, until `most` bytes have come or `seconds` are over; without a limit again once the body is whole."""
    seen, deadline = 0, time.monotonic() + seconds
    whole = False

    async def counted() -> MutableMapping[str, Any]:
        nonlocal seen, whole
        if whole:  # what still comes is the news that the client has left
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise TooSlow(f"the body must arrive within {seconds:g} s, got {seen} bytes of it") from error
        seen += len(message.get("body", b""))
        if seen > most:
            raise TooLarge(f"the body must have at most {most} bytes, got more")
        whole = not message.get("more_body", False)
        return message

    return counted
