"""One image in flight, and those that step together. No torch: what the nets need hangs on a Sample as an opaque state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from darkroom.types import Params


@dataclass(frozen=True)
class LoraKey:
    """A LoRA as it lay in its folder when it was asked for; another file under the same name has another version."""

    name: str
    scale: float
    version: str


@dataclass(frozen=True)
class BatchKey:
    """What Samples must have in common to share a forward pass, and nothing else. Sides in pixels."""

    model: str
    height: int
    width: int
    dtype: str = "float32"
    loras: tuple[LoraKey, ...] = ()


@dataclass(eq=False)
class Sample:
    """One image in flight: `steps` to run in all, `step` of them done; `rows` is 2 with guidance, else 1.

    arrived, started: seconds on the engine's clock. served: seconds of forward passes it took part in.
    alone: shares no batch, because a batch with it has failed before.
    party: whom it is for; the machine's time is shared between parties, by weight.
    """

    id: str
    params: Params
    key: BatchKey
    steps: int
    rows: int
    arrived: float
    step: int = 0
    started: float | None = None
    served: float = 0.0
    alone: bool = False
    party: str = ""
    weight: float = 1.0
    jobs: dict[str, float] = field(default_factory=dict)  # who gets the picture, and when each came
    state: Any = field(default=None, repr=False)

    @property
    def remaining(self) -> int:
        return self.steps - self.step

    @property
    def prepared(self) -> bool:
        return self.state is not None


@dataclass(frozen=True)
class Batch:
    """The Samples that take this step; all have the same key."""

    samples: tuple[Sample, ...]

    @property
    def key(self) -> BatchKey:
        return self.samples[0].key

    @property
    def rows(self) -> int:
        return sum(sample.rows for sample in self.samples)
