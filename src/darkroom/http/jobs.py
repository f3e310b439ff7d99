"""Jobs: GET /v1/jobs, and what hangs on one of them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.background import BackgroundTask

from darkroom.http.desk import Desk, desk_of
from darkroom.http.events import stream
from darkroom.http.query import cursor, cursor_of, instant, query, text, whole
from darkroom.http.replies import api_of, picture_reply
from darkroom.http.wishes import PICTURES, Wishes, media_of
from darkroom.jobs import Ended
from darkroom.jobs.shown import shown
from darkroom.types import Job, Status

router = APIRouter(tags=["jobs"])
SECURED: dict[str, Any] = {"security": [{"bearer": []}]}
MAX_PAGE = 100


@router.get("/v1/jobs", summary="Jobs of the service", openapi_extra=SECURED)
@router.get("/{service_id}/v1/jobs", include_in_schema=False)
async def jobs(request: Request) -> dict[str, Any]:
    """Newest first. `limit` (1 to 100), `before` (the `next` of the page before), `status` (several with commas), `model`,
    `created_after` (at that instant or later) and `created_before` (ISO 8601)."""
    desk = desk_of(request)
    _, service = await desk.enter(request)
    asked = query(request, {
        "limit": whole(1, MAX_PAGE), "before": cursor, "status": _statuses, "model": text(200), "created_after": instant, "created_before": instant,
    })  # fmt: skip
    limit = asked.get("limit", 20)
    found = await desk.jobs.page(
        service.id, limit + 1, asked.get("before"), statuses=asked.get("status", ()), model=asked.get("model", ""),
        since=asked.get("created_after"), until=asked.get("created_before"),
    )  # fmt: skip
    page = found[:limit]
    last = page[-1] if len(found) > limit else None
    return {"object": "list", "data": await _shown(desk, request, page), "next": last and cursor_of(last.created_at, last.id)}


@router.get("/v1/jobs/{job_id}", summary="A job", openapi_extra=SECURED)
@router.get("/{service_id}/v1/jobs/{job_id}", include_in_schema=False)
async def job(request: Request) -> dict[str, Any]:
    desk, found = await _enter(request)
    return (await _shown(desk, request, [found]))[0]


@router.get("/v1/jobs/{job_id}/image", summary="The picture of a finished job", openapi_extra=SECURED, response_class=Response)
@router.get("/{service_id}/v1/jobs/{job_id}/image", include_in_schema=False)
async def image(request: Request) -> Response:
    """PNG, or as `Accept` says JPEG or WebP; `place` (0 where absent) tells which of several."""
    desk, found = await _enter(request)
    wishes = Wishes(*media_of(request.headers.get("accept", ""), pictures_only=True))
    ended = await desk.jobs.picture(found, query(request, {"place": whole(0, 7)}).get("place", 0))
    reply = await picture_reply(ended, wishes, _cache_headers(ended, wishes))
    reply.background = BackgroundTask(desk.jobs.delivered, ended)  # once it was sent
    return reply


@router.get("/v1/jobs/{job_id}/events", summary="News of a job, as Server-Sent Events", openapi_extra=SECURED, response_class=Response)
@router.get("/{service_id}/v1/jobs/{job_id}/events", include_in_schema=False)
async def events(request: Request) -> Response:
    """From the beginning, or after the event that `Last-Event-ID` names, to the end."""
    desk, found = await _enter(request)
    query(request, {})
    return stream(desk, found, api_of(desk, request), request.headers.get("last-event-id", "")[:100], True, {"X-Job-Id": found.id})


@router.post("/v1/jobs/{job_id}/cancel", summary="Stop a job", openapi_extra=SECURED)
@router.post("/{service_id}/v1/jobs/{job_id}/cancel", include_in_schema=False)
async def cancel(request: Request) -> dict[str, Any]:
    """At once while it waits, at its next step while it runs; the record stays. A job that has ended is left as it is."""
    desk, found = await _enter(request)
    return (await _shown(desk, request, [await desk.jobs.cancel(found)]))[0]


@router.delete("/v1/jobs/{job_id}", summary="Delete an ended job and its pictures", status_code=204, openapi_extra=SECURED, response_class=Response)
@router.delete("/{service_id}/v1/jobs/{job_id}", include_in_schema=False)
async def delete(request: Request) -> Response:
    desk, found = await _enter(request)
    await desk.jobs.delete(found)
    return Response(status_code=204)


async def _enter(request: Request) -> tuple[Desk, Job]:
    """The job of the address, where it is one of the key's own service. Raises NotFound."""
    desk = desk_of(request)
    _, service = await desk.enter(request)
    return desk, await desk.jobs.find(service.id, request.path_params["job_id"])


def _cache_headers(ended: Ended, wishes: Wishes) -> dict[str, str]:
    """A picture never changes, but it has a tag in each of its forms; what is not kept here is not to be kept elsewhere."""
    form = "" if wishes.media == "image/png" else f"-{PICTURES[wishes.media].lower()}-{wishes.quality}"
    kept = "private, max-age=31536000, immutable" if ended.job.keep else "no-store"
    return {"ETag": f'"{ended.pictures[0].sha256[:32]}{form}"', "Cache-Control": kept, "Vary": "Accept"}


async def _shown(desk: Desk, request: Request, found: list[Job]) -> list[dict[str, Any]]:
    base = api_of(desk, request)
    waiting, pictures = await desk.jobs.outlook(found), await desk.jobs.pictures(found)
    return [shown(one, base, pictures[one.id], waiting.get(one.id), desk.jobs.progress(one)) for one in found]


def _statuses(text: str) -> tuple[str, ...]:
    statuses = tuple(word.strip() for word in text.split(","))
    if not set(statuses) <= set(Status):
        raise ValueError(f"some of {', '.join(Status)}, with commas between")
    return statuses
