"""What gateway and child say to each other beside the engine's messages and the events."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    log_level: str


@dataclass(frozen=True)
class Started:
    """The nets are about to touch this job."""

    job_id: str


@dataclass(frozen=True)
class Costs:
    """Measured step times, for the gateway's estimates."""

    table: dict[str, dict[str, float]]
