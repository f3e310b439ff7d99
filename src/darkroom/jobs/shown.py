"""A job as clients see it: in the API, and in what webhooks are told."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from darkroom.jobs.runs import seed_at
from darkroom.picture import described
from darkroom.types import Job, PictureRow, Status, Waiting


def shown(
    job: Job, base: str = "", pictures: Sequence[PictureRow] = (), waiting: Waiting | None = None, progress: dict[str, Any] | None = None
) -> dict[str, Any]:  # fmt: skip
    """JSON of a job; `base` stands before its addresses. Times in ISO 8601 (UTC), lengths of time in seconds."""
    here = f"{base}/v1/jobs/{job.id}"
    parameters = {name: value for name, value in described(job.params, job.steps_run, job.with_prompt).items() if name not in ("schema", "versions")}
    return {
        "id": job.id, "object": "job", "status": job.status.value, "model": job.params.model, "seed": job.params.seed, "n": job.n,
        "created_at": iso(job.created_at), "started_at": iso(job.started_at), "ended_at": iso(job.ended_at),
        "parameters": parameters, "steps_run": job.steps_run, "store": job.keep,
        "queue": None if waiting is None else told_waiting(waiting), "progress": progress,
        "finish_reason": "SUCCESS" if job.status == Status.FINISHED else None, "notes": list(job.notes), "timings": timings(job),
        "error": job.fault and {"name": job.fault.name, "errors": [job.fault.message], "status": job.fault.status},
        "images": [
            {"id": row.id, "seed": seed_at(job, row.place), "width": row.width, "height": row.height, "bytes": row.bytes, "sha256": row.sha256,
             "url": f"{here}/image" + (f"?place={row.place}" if row.place else "")}
            for row in pictures if row.key
        ],
        "urls": {"self": here, "image": f"{here}/image", "events": f"{here}/events", "cancel": f"{here}/cancel"},
    }  # fmt: skip


def told_waiting(waiting: Waiting) -> dict[str, Any]:
    """Position among those that wait (1 is next), and the seconds until it should begin and be finished."""
    return {
        "position": waiting.position, "seconds_to_start": waiting.start and round(waiting.start, 2),
        "seconds_to_finish": waiting.finish and round(waiting.finish, 2),
    }  # fmt: skip


def timings(job: Job) -> dict[str, int] | None:
    """Milliseconds that a finished job waited, and that its pictures took."""
    if job.queue_seconds is None or job.inference_seconds is None:
        return None
    return {"queue_ms": round(job.queue_seconds * 1000), "inference_ms": round(job.inference_seconds * 1000)}


def iso(seconds: float | None) -> str | None:
    """An instant as ISO 8601 in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
