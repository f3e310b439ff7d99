"""Ended jobs to replies: the picture itself, JSON, the 202, and the headers that go with each."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from darkroom.http.desk import Desk
from darkroom.http.wishes import PICTURES, Wishes
from darkroom.jobs import Ended, Taken
from darkroom.jobs.runs import seed_at
from darkroom.jobs.shown import shown, timings
from darkroom.picture import converted
from darkroom.types import Job, Quota

RATE_HEADERS = [f"x-ratelimit-{what}-{name}" for name in ("pictures", "pixel-steps") for what in ("limit", "remaining", "reset")]


def base_of(desk: Desk, request: Request) -> str:
    """Where the client finds this server: as it came itself, or by the setting."""
    return desk.settings.public_url.rstrip("/") or str(request.base_url).rstrip("/")


def api_of(desk: Desk, request: Request) -> str:
    """What stands before /v1 in the addresses of a reply: with the service, where the client named it."""
    service_id = request.path_params.get("service_id")
    return base_of(desk, request) + (f"/{service_id}" if service_id else "")


async def picture_reply(ended: Ended, wishes: Wishes, headers: dict[str, str]) -> Response:
    """The first picture, as the client takes it."""
    content = ended.pngs[0]
    if wishes.media != "image/png":
        content = await asyncio.to_thread(converted, content, PICTURES[wishes.media], wishes.quality)
    return Response(content, media_type=wishes.media, headers=picture_headers(ended.job) | headers)


def json_reply(ended: Ended, base: str, as_url: bool, headers: dict[str, str]) -> Response:
    job = ended.job
    images = images_of(ended, base, as_url)
    body = {
        "id": job.id, "model": job.params.model, "seed": job.params.seed, "steps_run": job.steps_run, "finish_reason": "SUCCESS",
        "image": images[0], "images": images, "timings": timings(job), "notes": list(job.notes),
    }  # fmt: skip
    return JSONResponse(body, headers=picture_headers(job) | headers)


def images_of(ended: Ended, base: str, as_url: bool) -> list[dict[str, Any]]:
    """Each picture with its seed, as base64 of the PNG or as its address."""
    job, images = ended.job, []
    for place, png in enumerate(ended.pngs):
        url = f"{base}/v1/jobs/{job.id}/image" + (f"?place={place}" if place else "")
        image = {"url": url} if as_url else {"b64": base64.b64encode(png).decode()}
        images.append({**image, "seed": seed_at(job, place), "media_type": "image/png"})
    return images


async def later_reply(desk: Desk, request: Request, taken: Taken, wishes: Wishes) -> Response:
    """The 202: where the job is found, and how long it should take."""
    waiting = (await desk.jobs.outlook([taken.job], roughly=True)).get(taken.job.id)
    pictures = (await desk.jobs.pictures([taken.job]))[taken.job.id]
    applied = ["respond-async"] if wishes.later else []
    applied += [] if wishes.wait is None else [f"wait={wishes.wait}"]
    headers = {"Location": f"/v1/jobs/{taken.job.id}", "Preference-Applied": ", ".join(applied), "X-Job-Id": taken.job.id}
    if waiting is not None:
        headers["X-Queue-Position"] = str(waiting.position)
    return JSONResponse(shown(taken.job, api_of(desk, request), pictures, waiting), 202, headers | taken_headers(taken))


def taken_headers(taken: Taken) -> dict[str, str]:
    """Whether the work was done before, and what is left of the key's limits."""
    replayed = {"Idempotency-Replayed": "true"} if taken.joined else {}
    return {"X-Cache": "hit" if taken.hit else "miss"} | replayed | quota_headers(taken.quotas)


def quota_headers(quotas: Sequence[Quota]) -> dict[str, str]:
    """RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers), and the x-ratelimit-* that most clients read."""
    if not quotas:
        return {}
    headers = {
        "RateLimit-Policy": ", ".join(f'"{one.name}";q={one.limit};w={one.window}' for one in quotas),
        "RateLimit": ", ".join(f'"{one.name}";r={one.remaining};t={round(one.reset)}' for one in quotas),
    }
    for one in quotas:
        values = {"limit": one.limit, "remaining": one.remaining, "reset": round(one.reset)}
        headers |= {f"x-ratelimit-{what}-{one.name}": str(value) for what, value in values.items()}
    return headers


def picture_headers(job: Job) -> dict[str, str]:
    params, times = job.params, timings(job) or {"queue_ms": 0, "inference_ms": 0}
    headers = {
        "Seed": str(params.seed), "Finish-Reason": "SUCCESS", "X-Model": params.model, "X-Steps-Run": str(job.steps_run), "X-Job-Id": job.id,
        "X-Queue-Ms": str(times["queue_ms"]), "X-Inference-Ms": str(times["inference_ms"]),
    }  # fmt: skip
    if job.notes:
        headers["X-Model-Note"] = "; ".join(job.notes)
    return {name: value.encode("ascii", "backslashreplace").decode() for name, value in headers.items()}
