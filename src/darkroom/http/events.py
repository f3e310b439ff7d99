"""News of a job as Server-Sent Events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from darkroom.errors import DarkroomError
from darkroom.http.desk import Desk
from darkroom.http.replies import images_of
from darkroom.jobs import Ended, News
from darkroom.jobs.shown import shown, told_waiting
from darkroom.types import Job, Loading, Preview, Progress, Retrying, Status, Waiting

PING = 15.0  # seconds of silence after which a comment keeps the connection from being cut
HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}  # proxies must pass each event on at once


def stream(desk: Desk, job: Job, base: str, last_id: str, as_url: bool, headers: dict[str, str]) -> StreamingResponse:
    """The events of a job after `last_id`, until its end."""
    return StreamingResponse(_events(desk, job, base, last_id, as_url), media_type="text/event-stream", headers=HEADERS | headers)


async def _events(desk: Desk, job: Job, base: str, last_id: str, as_url: bool) -> AsyncIterator[bytes]:
    if job.status == Status.QUEUED and not last_id:
        waiting = (await desk.jobs.outlook([job], roughly=True)).get(job.id) or Waiting(job.id, 1, 0.0)
        yield _sse("queued", _queued(job, waiting))
    async for news in desk.jobs.watch(job, last_id, PING):
        if news is None:
            yield KEEPALIVE_COMMENT
            continue
        told = await _told(desk, job, news, base, as_url)
        if told is not None:
            yield _sse(*told, news.id)


async def _told(desk: Desk, job: Job, news: News, base: str, as_url: bool) -> tuple[str, dict[str, Any]] | None:
    """An event's name and its data; None for what clients are not told."""
    match news.event:
        case Waiting():
            return "queued", _queued(job, news.event)
        case Loading(_, part):
            return "loading", {"id": job.id, "part": round(part, 3)}
        case Progress(_, step, of):
            left = await desk.jobs.seconds_left(job.id)
            return "progress", {"id": job.id, "picture": news.place, "step": step, "of": of, "seconds_left": left and round(left, 2)}
        case Preview(_, step, jpeg):
            image = {"b64": base64.b64encode(jpeg).decode(), "media_type": "image/jpeg"}
            return "preview", {"id": job.id, "picture": news.place, "step": step, "image": image}
        case Retrying(_, attempts):
            return "retrying", {"id": job.id, "attempts": attempts}
        case Ended():
            return await _ended(desk, news.event, base, as_url)
    return None


def _queued(job: Job, waiting: Waiting) -> dict[str, Any]:
    return {"id": job.id, "status": Status.QUEUED.value, **told_waiting(waiting)}


async def _ended(desk: Desk, ended: Ended, base: str, as_url: bool) -> tuple[str, dict[str, Any]]:
    job = ended.job
    if job.status != Status.FINISHED:
        told = asdict(job.fault) if job.fault else {"name": job.status.value, "message": "", "status": 500, "retry_after": None}
        return job.status.value, {"id": job.id, "name": told["name"], "errors": [told["message"]], "status": told["status"], "retry_after": told["retry_after"]}
    pictures = (await desk.jobs.pictures([job]))[job.id]
    try:
        images = images_of(await desk.jobs.pngs(Ended(job, tuple(pictures), ended.pngs)), base, as_url) if not as_url else None
    except DarkroomError as error:  # fetched and not kept, or deleted meanwhile
        return "finished", shown(job, base, pictures) | {"image": None, "note": str(error)}
    body = shown(job, base, pictures)
    images = images or [{"url": image["url"], "seed": image["seed"], "media_type": "image/png"} for image in body["images"]]
    return "finished", body | {"image": images[0] if images else None, "images": images or body["images"]}


def _sse(event: str, data: dict[str, Any], id_: str | None = None) -> bytes:
    return format_sse_event(event=event, data_str=json.dumps(data), id=id_)
