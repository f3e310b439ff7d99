"""Pictures of a service: pages, search, stars, deletion, thumbnails."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from darkroom.http.desk import desk_of
from darkroom.http.query import cursor, cursor_of, fields, flag, instant, names, query, text, whole
from darkroom.jobs.shown import iso
from darkroom.store.pictures import Search
from darkroom.types import MAX_SEED, PictureRow

router = APIRouter()
SEARCH: dict[str, Any] = {
    "prompt": text(1000), "seed": whole(0, MAX_SEED), "model": text(200), "key": text(50), "since": instant, "until": instant, "starred": flag,
}  # fmt: skip


@router.get("/pictures")
async def pictures(request: Request) -> dict[str, Any]:
    """Newest first."""
    desk = desk_of(request)
    await desk.signed_in(request)
    asked = query(request, SEARCH | {"service_id": text(50), "limit": whole(1, 200), "before": cursor})
    limit = asked.get("limit", 60)
    search = Search(
        asked.get("prompt", ""), asked.get("seed"), asked.get("model", ""), asked.get("key", ""), asked.get("since"), asked.get("until"),
        asked.get("starred", False),
    )  # fmt: skip
    found = await desk.console.album.page(asked.get("service_id", ""), search, limit + 1, asked.get("before"))
    last = found[limit - 1] if len(found) > limit else None
    return {"data": [_shown(picture) for picture in found[:limit]], "next": last and cursor_of(last.created_at, last.id)}


@router.get("/pictures/{picture_id}")
async def picture(request: Request) -> dict[str, Any]:
    desk = desk_of(request)
    await desk.signed_in(request)
    return _shown(await desk.console.album.find(request.path_params["picture_id"]))


@router.patch("/pictures/{picture_id}")
async def star(request: Request) -> dict[str, Any]:
    desk = desk_of(request)
    await desk.signed_in(request)
    asked = await fields(request, {"starred": flag})
    return _shown(await desk.console.album.star(request.path_params["picture_id"], asked.get("starred", False)))


@router.get("/pictures/{picture_id}/thumbnail", response_class=Response)
async def thumbnail(request: Request) -> Response:
    desk = desk_of(request)
    await desk.signed_in(request)
    content = await desk.console.album.thumbnail(request.path_params["picture_id"])
    return Response(content, media_type="image/webp", headers={"Cache-Control": "private, max-age=31536000, immutable"})


@router.post("/pictures/delete")
async def delete(request: Request) -> dict[str, int]:
    desk = desk_of(request)
    await desk.signed_in(request)
    asked = await fields(request, {"service_id": text(50), "ids": names})
    deleted, freed = await desk.console.album.delete(asked.get("service_id", ""), asked.get("ids", ()))
    return {"deleted": deleted, "bytes": freed}


def _shown(picture: PictureRow) -> dict[str, Any]:
    place = f"?place={picture.place}" if picture.place else ""
    return {
        "id": picture.id, "job_id": picture.job_id, "place": picture.place, "width": picture.width, "height": picture.height, "bytes": picture.bytes,
        "model": picture.model, "seed": picture.seed, "prompt": picture.parameters.get("prompt", ""), "created_at": iso(picture.created_at),
        "starred": picture.starred, "key_id": picture.key_id, "parameters": picture.parameters,
        "image": f"/{picture.service_id}/v1/jobs/{picture.job_id}/image{place}", "thumbnail": f"/console/pictures/{picture.id}/thumbnail",
    }  # fmt: skip
