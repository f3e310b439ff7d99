"""What the desk asks of whatever an Engine lives in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from darkroom.types import Event, Forecast, Params, WorkerState


class Worker(Protocol):
    """Where an Engine lives. All calls belong to one event loop; above it there are only dataclasses and bytes."""

    async def start(self) -> None:
        """Begin; returns at once, while the model still loads. Jobs given before it is ready wait."""

    def submit(self, job_id: str, params: Params, party: str = "", weight: float = 1.0, attempts: int = 0) -> AsyncIterator[Event]:
        """Events of one Job as they come; the last is the one Finished, Failed or Cancelled.

        party: whom it is for; parties share the machine's time by weight (above 0).
        attempts: deaths of a worker with this Job in its nets' hands that were counted before.

        Closing the iterator before its end cancels the Job at its next step.
        """

    def cancel(self, job_id: str) -> None:
        """Stop a Job at its next step; an unknown or ended one is let be."""

    def state(self) -> WorkerState:
        """What the Worker is doing."""

    def load(self, model: str) -> None:
        """Bring a model into memory before a Job asks for it."""

    def unload(self, model: str) -> None:
        """Let go of a model, unless a Job needs it."""

    def costs(self) -> dict[str, dict[str, float]]:
        """Measured seconds of a step by size and rows, and of a decode."""

    def backlog_seconds(self) -> float:
        """Seconds of work that the accepted Jobs still need, by measured step times."""

    def forecast(self, others: Sequence[tuple[str, Params, str, float]] = ()) -> dict[str, Forecast]:
        """When each Job begins and ends, by id, by measured step times: those that it has and, after them, `others` (job_id,
        params, party, weight) that it was not given yet, in their order. Their images may be left out of the params."""

    def give_up(self) -> None:
        """Take no more Jobs and end those that there are, each with a Failed: the server is about to close."""

    async def close(self) -> None:
        """End the Engine and every Job in it (each with a Failed)."""
