"""What a caller who missed a route is told: the nearest one, its method, and what a service's own address is for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import JSONResponse, Response

from darkroom.http.desk import desk_of
from darkroom.http.replies import base_of

NEAR = 0.6  # of difflib's ratio: below it two addresses have nothing to do with each other
LONGEST = 100  # characters of an address that an error repeats
SERVICE = re.compile(r"/svc-[^/]+(?=/|$)")
GENERATE, CONTROL = "/v1/images/generate", "/v1/images/control"
# last words of addresses that other services have for the same
ELSEWHERE = {
    "generations": GENERATE,
    "txt2img": GENERATE,
    "text-to-image": GENERATE,
    "edits": CONTROL,
    "variations": CONTROL,
    "img2img": CONTROL,
    "image-to-image": CONTROL,
    "edit": CONTROL,
}
Paths = Mapping[str, Mapping[str, Any]]


class _ServiceId(Convertor[str]):
    """The one segment that only a service's own address has, so that /nowhere stays an unknown address."""

    regex = "svc-[^/]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def mount(app: FastAPI) -> None:
    """Answer at the address that SERVICE_ID stands for."""
    register_url_convertor("service_id", _ServiceId())

    async def index(request: Request) -> Response:
        desk, service_id = desk_of(request), request.path_params["service_id"]
        if "authorization" in request.headers:
            await desk.enter(request)
        base = base_of(desk, request)
        return JSONResponse({
            "service": service_id,
            "routes": {_summary(what): f"{method.upper()} {base}/{service_id}{path}" for path, method, what in _listed(app)},
            "authorization": "every call carries the header `Authorization: Bearer API_KEY`",
            "documentation": f"{base}/docs",
        })

    for path in ("/{service_id:service_id}", "/{service_id:service_id}/", "/{service_id:service_id}/v1"):
        app.add_route(path, index, methods=["GET"], include_in_schema=False)


def _listed(app: FastAPI) -> list[tuple[str, str, Mapping[str, Any]]]:
    paths: Paths = app.openapi()["paths"]
    return [(path, method, what) for path, methods in paths.items() for method, what in methods.items() if path.startswith("/v1/")]


def _summary(what: Mapping[str, Any]) -> str:
    return str(what["summary"])


def missing(app: FastAPI, method: str, path: str) -> str:
    """The line of a 404: the route nearest to this address."""
    service = SERVICE.match(path)
    prefix = service[0] if service else ""
    found = _nearest(path[len(prefix) :], app.openapi()["paths"])
    if not found:
        return f"there is no address {method} {path[:LONGEST]}; /docs lists them all"
    methods = " or ".join(name.upper() for name in app.openapi()["paths"][found])
    return f"there is no address {method} {path[:LONGEST]}; the nearest is {methods} {prefix}{found}; /docs lists them all"


def _nearest(path: str, paths: Paths) -> str | None:
    words = path[:LONGEST].lower().rstrip("/")
    last = words.rpartition("/")[2]
    if last in ELSEWHERE:
        return ELSEWHERE[last]
    return next(iter(difflib.get_close_matches(words, list(paths), n=1, cutoff=NEAR)), None)


def refused(app: FastAPI, method: str, path: str) -> tuple[str, str]:
    """The line of a 405, and the methods for `Allow`; "" where the address is none of the API's."""
    service = SERVICE.match(path)
    own = path[len(service[0]) :] if service else path
    allowed = [name.upper() for template, methods in app.openapi()["paths"].items() if _matches(template, own) for name in methods]
    if not allowed:
        return f"{method} {path[:LONGEST]}: this address does not take {method}", ""
    send = f"send a {' or a '.join(allowed)}"
    if own in (GENERATE, CONTROL):
        send += " with a form that holds image and prompt" if own == CONTROL else ' with a JSON body like {"prompt": "a cat"}'
    return f"{path[:LONGEST]} does not take {method}: {send}; /docs shows how", ", ".join(allowed)


def _matches(template: str, path: str) -> bool:
    return re.fullmatch("[^/]+".join(map(re.escape, re.split(r"\{[^}]+\}", template))), path) is not None
