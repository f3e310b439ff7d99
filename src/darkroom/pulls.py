"""Use cases of bringing weights from the hub while the server runs: one thread a model, with progress and a way to stop."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from tqdm import tqdm

from darkroom.errors import DarkroomError, Invalid
from darkroom.models.pull import pull
from darkroom.types import ModelCard

log = structlog.get_logger("pulls")


@dataclass
class Pull:
    """One under way, or the last one: the part that is here (0 to 1), and why it ended, where it did not end well."""

    part: float = 0.0
    error: str | None = None
    stopped: bool = False
    done: bool = False


class Stopped(Exception):
    """Somebody asked the pull to stop."""


class Pulls:
    """Pulls by the name of their model."""

    def __init__(self, data_dir: Path):
        self._data_dir = data_dir
        self._pulls: dict[str, Pull] = {}

    def of(self, name: str) -> Pull | None:
        return self._pulls.get(name)

    def start(self, card: ModelCard) -> None:
        """Begin; returns at once. Raises Invalid where there is nothing to pull, or it goes on already."""
        known = self._pulls.get(card.name)
        if card.path is not None or card.hub_id is None or (known is not None and not known.done):
            raise Invalid(f"{card.name} is here, or on its way, or not on the hub", name="invalid_model")
        self._pulls[card.name] = Pull()
        threading.Thread(target=self._run, args=(card, self._pulls[card.name]), daemon=True).start()

    def stop(self, name: str) -> None:
        """What came so far stays, and the next pull goes on from there."""
        if name in self._pulls:
            self._pulls[name].stopped = True

    def _run(self, card: ModelCard, state: Pull) -> None:
        try:
            pull(card, self._data_dir, lambda **options: _Bar(state, **options))
            state.part = 1.0
        except Exception as error:  # the hub's client may wrap what the bar raised
            state.error = "stopped" if state.stopped else _why(card, error)
        finally:
            state.done = True


def _why(card: ModelCard, error: Exception) -> str:
    if isinstance(error, DarkroomError):
        return str(error)
    log.error("a pull failed", model=card.name, error=repr(error))
    return f"the pull failed ({type(error).__name__}); the log says more"


class _Bar(tqdm):
    """A progress bar that nobody sees: it notes the part that is done, and breaks off where that is wanted."""

    def __init__(self, state: Pull, **options: Any):
        self._state = state
        self._nowhere = open(os.devnull, "w")  # noqa: SIM115 - closed with the bar
        super().__init__(**(options | {"file": self._nowhere, "disable": False}))

    def update(self, n: float | None = 1) -> bool | None:
        if self._state.stopped:
            raise Stopped
        shown = super().update(n)
        self._state.part = min(1.0, self.n / self.total) if self.total else 0.0
        return shown

    def close(self) -> None:
        super().close()
        self._nowhere.close()
