"""What a caller who missed a route is told: the nearest one, and its method. What a service's own address
answers."""

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
BODIES = {
    GENERATE: ' with a JSON body like {"prompt": "a cat"}',
    CONTROL: " with a form that holds image and prompt",
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
        here = f"{base}/{service_id}"
        return JSONResponse(
            {
                "service": service_id,
                "routes": {summary: f"{method} {here}{path}" for path, method, summary in _listed(app)},
                "authorization": "every call carries the header `Authorization: Bearer API_KEY`",
                "documentation": f"{base}/docs",
            }
        )

    for path in ("/{service_id:service_id}", "/{service_id:service_id}/", "/{service_id:service_id}/v1"):
        app.add_route(path, index, methods=["GET"], include_in_schema=False)


def _listed(app: FastAPI) -> list[tuple[str, str, str]]:
    """Path, method and summary of each route that a service has."""
    paths: Paths = app.openapi()["paths"]
    own = {path: methods for path, methods in paths.items() if path.startswith("/v1/")}
    return [
        (path, name.upper(), what["summary"])
        for path, methods in own.items()
        for name, what in methods.items()
    ]


def missing(app: FastAPI, method: str, path: str) -> str:
    """The line of a 404: the route nearest to this address."""
    service = SERVICE.match(path)
    prefix = service[0] if service else ""
    found = _nearest(path[len(prefix) :], app.openapi()["paths"])
    if not found:
        return f"there is no address {method} {path[:LONGEST]}; /docs lists them all"
    methods = " or ".join(name.upper() for name in app.openapi()["paths"][found])
    near = f"{methods} {prefix}{found}"
    return f"there is no address {method} {path[:LONGEST]}; the nearest is {near}; /docs lists them all"


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
    paths: Paths = app.openapi()["paths"]
    matching = [methods for template, methods in paths.items() if _matches(template, own)]
    allowed = [name.upper() for methods in matching for name in methods]
    if not allowed:
        return f"{method} {path[:LONGEST]}: this address does not take {method}", ""
    send = f"send a {' or a '.join(allowed)}"
    send += BODIES.get(own, "")
    return f"{path[:LONGEST]} does not take {method}: {send}; /docs shows how", ", ".join(allowed)


def _matches(template: str, path: str) -> bool:
    return re.fullmatch("[^/]+".join(map(re.escape, re.split(r"\{[^}]+\}", template))), path) is not None
