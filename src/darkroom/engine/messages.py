"""What may be put into an Engine's inbox. No torch, so that the gateway can write the first five."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from darkroom.types import Params


@dataclass(frozen=True)
class Submit:
    """Make a picture, for a party (an API key) that gets machine time by its weight."""

    job_id: str
    params: Params
    party: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Cancel:
    """Stop a job at its next step."""

    job_id: str


@dataclass(frozen=True)
class Stop:
    """End the loop."""


@dataclass(frozen=True)
class Load:
    """Bring a model into memory, though no job asks for it yet."""

    model: str


@dataclass(frozen=True)
class Unload:
    """Let go of a model, once no job needs it; one that is asked for meanwhile stays."""

    model: str


@dataclass(frozen=True)
class LoadPart:
    """A model is on its way into memory: `part` of it (0 to 1) is there."""

    model: str
    part: float


@dataclass(frozen=True)
class Loaded:
    """A model is in memory; it took `seconds`."""

    model: str
    runner: Any = field(repr=False)
    seconds: float = 0.0


@dataclass(frozen=True)
class LoadFailed:
    """A model could not be brought into memory; `why` is fit for the client."""

    model: str
    why: str


Message = Submit | Cancel | Stop | Load | Unload | LoadPart | Loaded | LoadFailed
