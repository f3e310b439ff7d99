"""What gateway and child say to each other beside the engine's messages and the events."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from darkroom.types import ModelCard


@dataclass(frozen=True)
class Order:
    """What the gateway asks of a new child; the first message over the socket."""

    cards: tuple[ModelCard, ...]
    device: str
    dtype: str
    threads: int
    max_rows: int
    exact: bool
    costs: Path
    memory_budget: float  # GB; 0 leaves the choice to the child
    preload: tuple[str, ...]  # names of the models to load at once, as far as they fit
    loras: Path  # the folder
    max_lora_bytes: int
    backend: str
    graphs: Path  # the folder of converted models
    prepare: bool  # whether models may be converted beside the work
    log_level: str
    beat_seconds: float  # between two signs of life


@dataclass(frozen=True)
class Started:
    """The nets are about to touch this job."""

    job_id: str


@dataclass(frozen=True)
class Costs:
    """Measured step times, for the gateway's estimates."""

    table: dict[str, dict[str, float]]


class Sender:
    """Sends messages to a process from a thread of its own: one that does not read holds up this thread and nobody else. What waits
    is bounded by the jobs that a gateway holds at once; an init picture waits as one object, however many pictures come of it."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def send(self, message: Any) -> None:
        self._waiting.put(message)

    def close(self) -> None:
        """Nothing more will be sent."""
        self._waiting.put(None)

    def _run(self) -> None:
        try:
            while (message := self._waiting.get()) is not None:
                self._connection.send(message)
        except OSError:
            return  # the process is gone; whoever reads from it says so
