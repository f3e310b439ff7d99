"""Signing in and out, the password, the sessions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from darkroom import __version__, checks
from darkroom.commands import command
from darkroom.errors import Forbidden, UnsupportedMedia
from darkroom.http.desk import COOKIE, Desk, desk_of
from darkroom.http.query import fields, text
from darkroom.http.replies import base_of
from darkroom.jobs.shown import iso
from darkroom.sessions import LASTS
from darkroom.types import Session

router = APIRouter()
COMMANDS = ("link", "password", "generate", "edit")  # that pages show, as they can be pasted
BODY_SECONDS = 10.0  # that a body may take to arrive of a person whom nobody knows yet


@router.get("/state")
async def state(request: Request) -> dict[str, Any]:
    desk = desk_of(request)
    return await _state(desk, request, await desk.session(request))


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    desk = desk_of(request)
    _check_origin(request, base_of(desk, request))
    seconds = min(BODY_SECONDS, desk.settings.body_timeout)
    asked = await fields(request, {"link": text(200), "password": text(1000)}, seconds)
    address, agent = request.client.host if request.client else "", request.headers.get("user-agent", "")
    session, token = await desk.console.sessions.sign_in(address, agent, asked.get("link", ""), asked.get("password", ""))
    reply = JSONResponse(await _state(desk, request, session))
    secure = base_of(desk, request).startswith("https:")
    reply.set_cookie(COOKIE, token, max_age=int(LASTS), httponly=True, samesite="strict", secure=secure, path="/")
    return reply


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    desk = desk_of(request)
    session = await desk.signed_in(request)
    await desk.console.sessions.end(session.id)
    reply = JSONResponse({"signed_in": False})
    reply.delete_cookie(COOKIE, path="/")
    return reply


@router.post("/password")
async def password(request: Request) -> dict[str, Any]:
    desk = desk_of(request)
    session = await desk.signed_in(request)
    asked = await fields(request, {"password": text(1000), "old": text(1000)})
    address = request.client.host if request.client else ""
    await desk.console.sessions.set_password(asked.get("password", ""), session, asked.get("old", ""), address)
    return await _state(desk, request, session)


@router.get("/sessions")
async def sessions(request: Request) -> dict[str, Any]:
    desk = desk_of(request)
    mine = await desk.signed_in(request)
    shown = [asdict(one) | {"current": one.id == mine.id} for one in await desk.console.sessions.all()]
    times = ("created_at", "last_seen_at", "expires_at")
    return {"data": [{k: iso(v) if k in times else v for k, v in one.items() if k != "csrf"} for one in shown]}


@router.delete("/sessions/{session_id}", status_code=204, response_class=Response)
async def end(request: Request) -> Response:
    desk = desk_of(request)
    await desk.signed_in(request)
    await desk.console.sessions.end(request.path_params["session_id"])
    return Response(status_code=204)


def _check_origin(request: Request, base: str) -> None:
    """Refuse what a page of another origin sends: it could try passwords by the browsers of others. Behind a proxy that changes
    Host the browser's own word is the better one, where it gives it. Raises UnsupportedMedia or Forbidden."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMedia(f"Content-Type must be application/json, got {checks.shown(kind)}")
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    hosts = {request.headers.get("host"), urlsplit(base).netloc}
    own = site in ("same-origin", "none") if site else origin is None or urlsplit(origin).netloc in hosts
    if not own:
        raise Forbidden(f"sign-in must come from the dashboard's own page, got one of the origin {checks.shown(origin or site or '')}")


def _is_here(request: Request) -> bool:
    """Whether the browser runs on this machine, as far as can be told: a person who may know where files
    lie."""
    forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for"))
    return request.client is not None and request.client.host in ("127.0.0.1", "::1") and not forwarded


async def _state(desk: Desk, request: Request, session: Session | None) -> dict[str, Any]:
    """What every page needs to know first; of services only to who is signed in."""
    from darkroom.http.console.keys import service_shown

    base = base_of(desk, request)
    public = session is None and not _is_here(request)
    known = {
        "signed_in": session is not None,
        "password_set": await desk.console.sessions.has_password(),
        "version": __version__,
        "base": base,
        "commands": {words: command(words, public) for words in COMMANDS},
    }
    if session is None:
        return known | {"csrf": None, "services": [], "notices": []}
    services = [service_shown(service, base) for service in await desk.access.services()]
    notices = [line for card in desk.cards.values() if card.licence.asks for line in (card.licence.badge, card.licence.notice) if line]
    return known | {"csrf": session.csrf, "services": services, "notices": list(dict.fromkeys(notices))}
