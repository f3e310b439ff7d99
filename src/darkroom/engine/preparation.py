"""Brings new models from PyTorch to the backend that is fastest here, while they serve. No torch at import.

Once the engine is idle, a process of low priority converts a model (`convert.py`); then the engine's thread
measures it (message `Prepared`).
"""

from __future__ import annotations

import queue
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from darkroom.engine import convert
from darkroom.engine.backend import Backends, getting_ready
from darkroom.engine.messages import Message, Prepared
from darkroom.types import ModelCard

log = structlog.get_logger("engine")

IDLE = 2.0  # seconds that the engine is idle before a model is converted
PATIENCE = 60.0  # seconds after which it is converted beside the work of an engine that never is
POLL = 0.2  # seconds
CONVERT_SECONDS = 3600.0  # that a conversion may take before it counts as hung; it is tried again at the next load
# Sent by someone, or for lack of memory: no fault of the model.
ENDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)


class Host(Protocol):
    """What is asked of an Engine."""

    @property
    def idle(self) -> bool: ...
    def put(self, message: Message) -> None: ...


class Preparation:
    """Models to be converted, one at a time, in the order they came. task: returns the Task for a card."""

    def __init__(
        self,
        backends: Backends,
        task: Callable[[ModelCard], convert.Task],
        idle: float = IDLE,
        patience: float = PATIENCE,
    ):
        self._backends, self._task, self._idle, self._patience = backends, task, idle, patience
        self._queue: queue.SimpleQueue[tuple[ModelCard, weakref.ref[Any]]] = queue.SimpleQueue()

    def add(self, card: ModelCard, runner: Any) -> None:
        """Prepare a model that is about to be in memory. One that leaves it meanwhile is left alone."""
        self._queue.put((card, weakref.ref(runner)))

    def start(self, engine: Host) -> None:
        threading.Thread(target=self._run, args=(engine,), daemon=True).start()

    def _run(self, engine: Host) -> None:
        while True:
            self._take_next(engine)

    def _take_next(self, engine: Host) -> None:
        """Wait for a model and prepare it. Nothing of it is held afterwards: it may leave the memory."""
        card, runner = self._queue.get()
        self._wait_until_idle(engine)
        settle = self._prepare(card, runner)
        if settle is not None:
            engine.put(Prepared(card.name, runner, settle))

    def _wait_until_idle(self, engine: Host) -> None:
        start = busy = time.monotonic()
        while (now := time.monotonic()) - busy < self._idle and now - start < self._patience:
            time.sleep(POLL)
            if not engine.idle:
                busy = time.monotonic()

    def _prepare(self, card: ModelCard, runner: weakref.ref[Any]) -> Callable[[], Any] | None:
        try:
            if not self._is_converted(card, runner):
                log.info(getting_ready(card.name))
                self._convert(card)
            family = _family_of(runner)
            return family and self._backends.candidate(family, card)
        except Exception as error:
            log.error("a model could not be prepared", model=card.name, error=repr(error))
            return lambda: None

    def _is_converted(self, card: ModelCard, runner: weakref.ref[Any]) -> bool:
        family = _family_of(runner)
        return family is None or self._backends.is_converted(family, card)

    def _convert(self, card: ModelCard) -> None:
        with convert.started(self._task(card)) as process:
            try:
                code = process.wait(CONVERT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        if code == 0:
            return
        log.error("a model could not be converted", model=card.name, code=code)
        if -code not in ENDED:
            self._backends.give_up(card, RuntimeError(f"exit code {code}"))


def _family_of(runner: weakref.ref[Any]) -> Any:
    """The family of a Runner; None once it has left the memory."""
    here = runner()
    return None if here is None else here.family
