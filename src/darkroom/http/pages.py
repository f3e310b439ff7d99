"""The dashboard's files, as built from `web/`: every address that is not the API's shows its one page."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.exceptions import HTTPException
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


def mount(app: FastAPI) -> None:
    """Serve the pages that there are; the API's own addresses come first."""
    root = Path(str(resources.files("darkroom"))) / "web"
    if (root / "assets").is_dir():
        app.mount("/assets", _Assets(directory=root / "assets"))

    async def page(request: Request) -> Response:
        index = root / "index.html"
        return FileResponse(index, headers=HEADERS | {"Cache-Control": "no-cache"}) if index.exists() else HTMLResponse(MISSING, headers=HEADERS)

    async def file(request: Request) -> Response:
        """Files beside the page, such as its icon."""
        path = root / request.path_params["name"]
        if not path.is_file() or path.parent != root:
            raise HTTPException(404)
        return FileResponse(path, headers=HEADERS)

    for name in PAGES:
        app.add_route(f"/{name}", page, include_in_schema=False)
    app.add_route("/static/{name}", file, include_in_schema=False)


class _Assets(StaticFiles):
    """Their names hold a hash of what is in them, so a browser need never ask twice."""

    def file_response(self, *args: object, **options: object) -> Response:
        response = super().file_response(*args, **options)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response
