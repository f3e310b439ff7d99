"""The app: routes, error map, lifespan. What it serves is handed in."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import structlog
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darkroom import __version__
from darkroom.errors import DarkroomError, TooMany
from darkroom.http import console, given, jobs, metrics, models, pages, routes
from darkroom.http.desk import COOKIE, SAFE, Desk
from darkroom.http.replies import RATE_HEADERS, quota_headers
from darkroom.http.wishes import EVENTS, media_of
from darkroom.types import Call

log = structlog.get_logger("http")

EXPOSED = [
    "X-Request-Id", "Seed", "Finish-Reason", "X-Model", "X-Steps-Run", "X-Queue-Ms", "X-Inference-Ms", "X-Model-Note", "Retry-After",
    "X-Job-Id", "X-Cache", "X-Queue-Position", "Location", "Preference-Applied", "Idempotency-Replayed", "RateLimit", "RateLimit-Policy", *RATE_HEADERS,
]  # fmt: skip
ABOUT = (
    "Pictures from text, and from pictures and text. To try an operation here, press Authorize and paste an "
    "API_KEY; the replies are those that a program gets."
)
SIGN_INS, SIGN_INS_OF_ONE = 64, 8  # open at once, of all addresses and of one
WITH_KEY = re.compile(r"/(v1|svc-[^/]+/v1|console)/")  # addresses that ask who calls before they wait for anything
IMAGES = ("/v1/images/generate", "/v1/images/control")
SERVICE_API = re.compile(r"/svc-[^/]+/v1/")
MAX_NAME = 50  # characters of what may be a service's id
PROBES = ("/healthz", "/readyz", "/metrics")
NAMES = {404: "not_found", 405: "method_not_allowed", 400: "bad_request"}


def build(desk: Desk, lifespan: Callable[[], Any]) -> ASGIApp:
    """The whole app; `lifespan` is an async context manager that starts and ends what was handed in."""

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan():
            yield

    app = FastAPI(
        title="Darkroom",
        version=__version__,
        description=ABOUT,
        lifespan=living,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.desk = desk
    app.state.metrics = metrics.Metrics()
    app.include_router(given.router)
    app.include_router(jobs.router)
    app.include_router(models.router)
    app.include_router(metrics.router)
    app.include_router(console.router)
    _schema(app)
    pages.mount(app)
    routes.mount(app)
    app.add_exception_handler(DarkroomError, _darkroom_error)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http_error)  # type: ignore[arg-type]
    app.add_exception_handler(given.ClientLeft, _client_left)
    app.add_exception_handler(ClientDisconnect, _client_left)
    app.add_exception_handler(Exception, _fault)
    origins = desk.settings.cors_origins
    bounded = _Bounded(_Faults(app), desk.settings.max_concurrent, desk.settings.max_streams, desk.jobs.retry_after)
    cors = _Cors(
        bounded, allow_origins=origins, allow_methods=["GET", "POST", "PATCH", "DELETE"], allow_headers=["*"], expose_headers=EXPOSED, max_age=600
    )
    return _Requests(cors, desk.console.journal.note, app.state.metrics)


class _Cors(CORSMiddleware):
    """For the API. The dashboard is called by its own pages alone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and f"{scope['path']}/".startswith("/console/"):
            return await self.app(scope, receive, send)
        await super().__call__(scope, receive, send)


class _Bounded:
    """Bounds how many requests are open: of all callers, and of one, so that none takes every place. Streams of events are apart,
    since most of these only wait, and so is what needs no key: whoever has none cannot keep out those who have one. Whether the
    server is well is always answered."""

    def __init__(self, app: ASGIApp, most: int, most_streams: int, retry_after: Callable[[], int]):
        self._app, self._retry_after = app, retry_after
        shares = {kind: (places, max(1, places * 3 // 4)) for kind, places in {"requests": most, "streams": most_streams, "pages": most}.items()}
        self._places = shares | {"sign-ins": (SIGN_INS, SIGN_INS_OF_ONE)}
        self._open: Counter[str] = Counter()
        self._of: Counter[tuple[str, str]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES[:2]:
            return await self._app(scope, receive, send)
        kind = _kind(scope)
        one = kind, _caller(scope)
        line = self._full(one)
        if line:
            reply = _shape(scope["state"]["request_id"], 429, TooMany.name, [line], {"Retry-After": str(self._retry_after())})
            return await reply(scope, receive, send)
        self._open[kind] += 1
        self._of[one] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open[kind] -= 1
            self._of[one] -= 1
            if not self._of[one]:
                del self._of[one]

    def _full(self, one: tuple[str, str]) -> str:
        """What is full, "" where there is room."""
        kind = one[0]
        places, share = self._places[kind]
        if self._open[kind] >= places:
            return f"the server has {places} {kind} open, which is as many as it takes"
        return f"this caller has {share} {kind} open, which is as many as one may have" if self._of[one] >= share else ""


def _kind(scope: Scope) -> str:
    path = scope["path"]
    if path == "/console/sign-in":
        return "sign-ins"
    if not WITH_KEY.match(path):
        return "pages"
    return "streams" if path.endswith("/events") or (scope["method"] == "POST" and path.endswith(IMAGES) and _asks_for_events(scope)) else "requests"


def _asks_for_events(scope: Scope) -> bool:
    try:
        return media_of(Headers(scope=scope).get("accept", ""))[0] == EVENTS
    except DarkroomError:  # the route itself will say so
        return False


def _caller(scope: Scope) -> str:
    """Who calls, before it is known whether the key is one: by the key, and without one by the address."""
    token = Headers(scope=scope).get("authorization", "").partition(" ")[2].strip()
    if token and WITH_KEY.match(scope["path"]) and scope["path"] != "/console/sign-in":
        return f"key {token}"
    return f"address {scope['client'][0] if scope.get('client') else ''}"


class _Requests:
    """Outermost: gives every reply its X-Request-Id, and writes the log."""

    def __init__(self, app: ASGIApp, note: Callable[[Call], None], counted: metrics.Metrics):
        self._app, self._note, self._counted = app, note, counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = f"req-{secrets.token_hex(8)}"
        scope.setdefault("state", {})["request_id"] = request_id
        start, status = time.perf_counter(), 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, tell)
        finally:
            shown = 499 if scope["state"].get("left") else status
            key = scope["state"].get("key_id", "")
            ms = round((time.perf_counter() - start) * 1000)
            method, path = scope["method"], quote(scope["path"])
            tell_of = log.info if _is_news(scope, shown) else log.debug
            tell_of("request", id=request_id, method=method, path=path, status=shown, key=key, ms=ms)
            self._counted.note(scope["method"], _route(scope), shown, ms / 1000)
            if scope["state"].get("service_id") or _is_refused(scope, shown):
                self._note(_call(scope, shown, ms))


def _is_news(scope: Scope, status: int) -> bool:
    """Whether the log tells of a request at `info`: of what changes something and of what went wrong. What
    pages and monitors read every few seconds would carry the key and the link that the server printed out of
    sight."""
    path, reads = scope["path"], scope["method"] in SAFE
    if path in PROBES:
        return False
    if status >= 500:
        return True
    is_api = WITH_KEY.match(path) and not path.startswith("/console/")
    return (not reads or status >= 400) if is_api else (not reads and status >= 400)


def _is_refused(scope: Scope, status: int) -> bool:
    """Whether the log of requests lists a call that did not come in: one to a service's address, but none of
    a page whose session is over, which asks again every few seconds."""
    if not SERVICE_API.match(scope["path"]) or status not in (401, 403, 404, 405):
        return False
    headers = Headers(scope=scope)
    return "authorization" in headers or COOKIE not in headers.get("cookie", "")


def _route(scope: Scope) -> str:
    """The template of the address that was asked for, with or without the service the same."""
    return scope["route"].path.removeprefix("/{service_id}") if "route" in scope else "none"


def _call(scope: Scope, status: int, ms: float) -> Call:
    """A request as the log keeps it; what the routes know of it stands in its state."""
    state = scope["state"]
    service_id = state.get("service_id") or scope["path"].split("/")[1][:MAX_NAME]
    return Call(
        id=state["request_id"],
        at=time.time() - ms / 1000,
        service_id=service_id,
        key_id=state.get("key_id", ""),
        method=scope["method"],
        route=_route(scope),
        status=status,
        ms=ms,
        model=state.get("model", ""),
        job_id=state.get("job_id"),
        error=state.get("error"),
        body=state.get("body"),
    )


class _Faults:
    """A fault of ours, already answered by `_fault`, is logged with its trace under the request's id and goes no further. Nor does
    an address with NUL, which no file and no database can have."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "\0" in scope["path"]:
            reply = _shape(scope["state"]["request_id"], 404, NAMES[404], ["no address has NUL in it"])
            return await reply(scope, receive, send)
        try:
            await self._app(scope, receive, send)
        except Exception:
            if scope["type"] != "http":
                raise
            log.exception("a fault of ours", id=scope["state"]["request_id"])


def _shape(request_id: str, status: int, name: str, lines: list[str], headers: dict[str, str] | None = None) -> JSONResponse:
    """The one JSON shape of errors on these routes."""
    return JSONResponse({"id": request_id, "name": name, "errors": lines}, status, headers)


async def _darkroom_error(request: Request, error: DarkroomError) -> JSONResponse:
    private = getattr(request.state, "private", False)
    request.state.error = error.name if private else f"{error.name}: {error}"[:1000]
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.status == 408:  # what still trickles in would otherwise be taken for the next request's body
        headers["Connection"] = "close"
    if error.status in (429, 503):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after or 1)))
    if isinstance(error, TooMany):
        headers |= quota_headers(error.quotas)
    return _shape(request.state.request_id, error.status, error.name, error.lines, headers)


async def _fault(request: Request, error: Exception) -> JSONResponse:
    request.state.error = f"{DarkroomError.name}: {type(error).__name__}"
    return _shape(request.state.request_id, 500, DarkroomError.name, ["the server failed; its log has the reason under this id"])


async def _http_error(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404 and pages.is_person(request):
        return pages.page(404)
    name, headers = NAMES.get(error.status_code, "http_error"), dict(error.headers or {})
    method, path = request.method, request.url.path
    line = f"{method} {path[:100]}: {error.detail}"
    if error.status_code == 404:
        line = routes.missing(request.app, method, path)
    elif error.status_code == 405:
        line, allowed = routes.refused(request.app, method, path)
        headers |= {"Allow": allowed} if allowed else {}
    request.state.error = f"{name}: {line}"
    return _shape(request.state.request_id, error.status_code, name, [line], headers)


async def _client_left(request: Request, error: Exception) -> JSONResponse:
    request.state.left = True
    return _shape(request.state.request_id, 499, "client_left", ["the client left"])


def _schema(app: FastAPI) -> None:
    """/openapi.json, which names the key that every call carries."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            schema.setdefault("components", {})["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


