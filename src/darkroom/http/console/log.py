"""The log of requests, and what was used."""

from __future__ import annotations

import csv
import io
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from darkroom.errors import NotFound
from darkroom.http.desk import desk_of
from darkroom.http.query import cursor, cursor_of, instant, one_of, query, text, whole
from darkroom.jobs.shown import iso

router = APIRouter()
PLAIN = ("id", "key_id", "method", "route", "status", "model", "job_id", "steps", "error", "outcome", "job_error")
MONTH = 30 * 86_400


@router.get("/requests")
async def requests(request: Request) -> dict[str, Any]:
    """Newest first."""
    desk = desk_of(request)
    await desk.signed_in(request)
    asked = query(request, {
        "service_id": text(50), "limit": whole(1, 200), "before": cursor, "status": _statuses, "key": text(50), "route": text(200), "since": instant,
        "until": instant,
    })  # fmt: skip
    limit = asked.get("limit", 100)
    found = await desk.console.calls.page(
        asked.get("service_id", ""), limit + 1, asked.get("before"), asked.get("status"), asked.get("key", ""), asked.get("route", ""),
        asked.get("since"), asked.get("until"),
    )  # fmt: skip
    last = found[limit - 1] if len(found) > limit else None
    return {"data": [_shown(call) for call in found[:limit]], "next": last and cursor_of(last["at"], last["id"])}


@router.get("/requests/{call_id}")
async def one(request: Request) -> dict[str, Any]:
    desk = desk_of(request)
    await desk.signed_in(request)
    found = await desk.console.calls.find(request.path_params["call_id"])
    if found is None:
        raise NotFound("there is no such request in the log")
    return _shown(found) | {"body": found["body"], "service_id": found["service_id"]}


@router.get("/usage")
async def usage(request: Request) -> Any:
    """By day (UTC), key or model; also as CSV."""
    desk = desk_of(request)
    await desk.signed_in(request)
    asked = query(request, {
        "service_id": text(50), "since": instant, "until": instant, "by": one_of("day", "key", "model"), "format": one_of("json", "csv"),
    })  # fmt: skip
    until = asked.get("until", time.time() + 1)
    lines = await desk.console.calls.summary(asked.get("service_id", ""), asked.get("since", until - MONTH), until, asked.get("by", "day"))
    if asked.get("format") != "csv":
        return {"data": lines, "queue_depth": await desk.jobs.depth()}
    out = io.StringIO()
    writer = csv.DictWriter(out, ["group", "pictures", "pixel_steps", "requests", "errors", "cancelled", "p50_ms", "p95_ms"])
    writer.writeheader()
    writer.writerows(lines)
    return Response(out.getvalue(), media_type="text/csv", headers={"Content-Disposition": f'attachment; filename="usage-by-{asked.get("by", "day")}.csv"'})


def _statuses(value: str) -> tuple[int, int]:
    if len(value) == 3 and value[0] in "12345" and value[1:] == "xx":
        return int(value[0]) * 100, int(value[0]) * 100 + 100
    if len(value) == 3 and value.isascii() and value.isdigit():
        return int(value), int(value) + 1
    raise ValueError("a status like 404, or a class like 4xx")


def _shown(call: dict[str, Any]) -> dict[str, Any]:
    plain = {name: call[name] for name in PLAIN}
    seconds = {"queue_ms": call["queue_seconds"], "run_ms": call["inference_seconds"]}
    times = {name: None if value is None else round(value * 1000) for name, value in seconds.items()}
    return plain | times | {"at": iso(call["at"]), "ms": round(call["ms"])}
