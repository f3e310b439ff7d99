"""/metrics, for Prometheus: requests by route, their times, and what waits."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from darkroom.http.desk import desk_of

router = APIRouter(tags=["service"])
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 300)  # seconds: a picture takes some


class Metrics:
    """What one app has counted."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self._requests = Counter("darkroom_requests", "requests answered", labels, registry=self.registry)
        self._seconds = Histogram("darkroom_request_seconds", "seconds of a request", ["route"], buckets=BUCKETS, registry=self.registry)
        self.queue = Gauge("darkroom_queue_depth", "jobs that wait or run, on all gateways", registry=self.registry)
        self.running = Gauge("darkroom_jobs_in_hand", "jobs that this gateway has given to its worker", registry=self.registry)
        self.ready = Gauge("darkroom_worker_ready", "1 where a picture can be made at once", registry=self.registry)
        self.backlog = Gauge("darkroom_backlog_seconds", "machine time that the jobs in hand still need, by measured step times", registry=self.registry)

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request; the route is its template, so that there are few of them."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


@router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    desk, kept = desk_of(request), request.app.state.metrics
    kept.queue.set(await desk.jobs.depth())
    kept.running.set(desk.jobs.in_hand)
    kept.ready.set(desk.worker.state().status == "ready")
    kept.backlog.set(desk.worker.backlog_seconds())
    return Response(generate_latest(kept.registry), media_type=CONTENT_TYPE_LATEST)
