"""What may be put into an Engine's inbox. No torch, so that the gateway can write them."""

from __future__ import annotations

from dataclasses import dataclass

from darkroom.types import Params


@dataclass(frozen=True)
class Submit:
    """Make a picture."""

    job_id: str
    params: Params


@dataclass(frozen=True)
class Cancel:
    """Stop a job at its next step."""

    job_id: str


@dataclass(frozen=True)
class Stop:
    """End the loop."""


Message = Submit | Cancel | Stop
