"""What may be put into an Engine's inbox. No torch, so that the gateway can write the first five."""

from __future__ import annotations

from collections.abc import Callable
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


@dataclass(frozen=True)
class Prepared:
    """The graphs of a model in memory are there to be measured against PyTorch.

    runner: returns the Runner they were opened for, or None once it has left the memory. settle: called on
    the thread that owns the nets, measures both and returns what is faster than PyTorch, or None.
    """

    model: str
    runner: Callable[[], Any] = field(repr=False)
    settle: Callable[[], Any] = field(repr=False)


Message = Submit | Cancel | Stop | Load | Unload | LoadPart | Loaded | LoadFailed | Prepared
