"""The dashboard's files, as built from `web/`: its one page at every address of its own, and the API's
documentation."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles

POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; connect-src 'self'; object-src 'none'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
HEADERS = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip
PAGES = ("", "sign-in", "playground", "gallery", "requests", "usage", "keys", "models", "system")
MISSING = "<!doctype html><title>Darkroom</title><p>The dashboard is not built here. In a checkout, `make run` builds it; the API works without."
MISSING_DOCS = (
    "<!doctype html><title>API · Darkroom</title><p>The page that shows the API is not built here. In a "
    "checkout, `make run` builds it. All that it shows is in "
    '<a href="/openapi.json">/openapi.json</a>; where to begin: '
    "POST /v1/images/generate with the header Authorization: Bearer API_KEY."
)


ROOT = Path(str(resources.files("darkroom"))) / "web"


def mount(app: FastAPI) -> None:
    """Serve the pages that there are; the API's own addresses come first."""
    if (ROOT / "assets").is_dir():
        app.mount("/assets", _Assets(directory=ROOT / "assets"))

    async def shown(request: Request) -> Response:
        return page()

    async def docs(request: Request) -> Response:
        return _file("docs.html", MISSING_DOCS)

    for name in PAGES:
        app.add_route(f"/{name}", shown, include_in_schema=False)
    app.add_route("/docs", docs, include_in_schema=False)


def page(status: int = 200) -> Response:
    """The one page, which finds out by itself what it is to show."""
    return _file("index.html", MISSING, status)


def _file(name: str, missing: str, status: int = 200) -> Response:
    """A page as it was built, or what stands in its place where it was not."""
    if not (ROOT / name).exists():
        return HTMLResponse(missing, status, HEADERS)
    return FileResponse(ROOT / name, status, HEADERS | {"Cache-Control": "no-cache"})


def is_person(request: Request) -> bool:
    """Whether a browser asks for a page, and no program for the API."""
    return request.method == "GET" and "text/html" in request.headers.get("accept", "") and "/v1/" not in request.url.path


class _Assets(StaticFiles):
    """Their names hold a hash of what is in them, so a browser need never ask twice."""

    def file_response(self, *args: object, **options: object) -> Response:
        response = super().file_response(*args, **options)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response
