"""Which models are in memory. Weights load on a thread of their own while the others step; within a budget the least
recently used idle model leaves where another needs the room."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from darkroom.engine.messages import Loaded, LoadFailed, LoadPart, Message
from darkroom.errors import DarkroomError, ModelUnavailable

log = structlog.get_logger("engine")

PATIENCE = 5.0  # seconds that a model waits for another to be idle before that one's newcomers wait for it
RETRY_SECONDS = 30.0  # after a load that failed, until it is tried again
PATIENCE_LOADS = 3  # the same, in times that loading took: switching must not cost more than it serves


@dataclass(frozen=True)
class Source:
    """How a model comes into memory. bytes_needed: an estimate before it is there; load: called on a thread, with a function
    to be told the part that is done (0 to 1), it returns the model's Runner."""

    bytes_needed: Callable[[], int]
    load: Callable[[Callable[[float], None]], Any]


@dataclass
class _Resident:
    runner: Any
    used: float  # when last, on the engine's clock


class Residents:
    """Models by name: in memory, on their way, or asked for. All calls belong to the engine's thread."""

    def __init__(self, sources: Mapping[str, Source], budget: int | None = None, clock: Callable[[], float] = time.perf_counter):
        """budget: bytes of weights at most; None sets no limit."""
        self._sources, self._budget, self._clock = sources, budget, clock
        self._here: dict[str, _Resident] = {}
        self._wanted: dict[str, float] = {}  # asked for, since when
        self._load_seconds: dict[str, float] = {}
        self._failed: dict[str, tuple[float, LoadFailed]] = {}  # when, and how
        self._put: Callable[[Message], None] = lambda message: None
        self.loading: str | None = None

    @classmethod
    def of(cls, runners: Mapping[str, Any]) -> Residents:
        """Models that are in memory already."""
        residents = cls({})
        for model, runner in runners.items():
            residents.settle(Loaded(model, runner))
        return residents

    def report_to(self, put: Callable[[Message], None]) -> None:
        """Where LoadPart, Loaded and LoadFailed go: the engine's inbox. They come back by `settle`."""
        self._put = put

    def __contains__(self, model: str) -> bool:
        return model in self._here

    def runner(self, model: str) -> Any:
        """The Runner of a model that is in memory."""
        resident = self._here[model]
        resident.used = self._clock()
        return resident.runner

    def holds(self, model: str, runner: Any) -> bool:
        """Whether this Runner of the model is the one in memory."""
        return model in self._here and self._here[model].runner is runner

    @property
    def preparing(self) -> tuple[str, ...]:
        """Models in memory whose backend is still to be chosen."""
        return tuple(name for name, resident in self._here.items() if resident.runner.undecided)

    @property
    def loaded(self) -> dict[str, int]:
        """Bytes by model."""
        return {name: resident.runner.nbytes for name, resident in self._here.items()}

    @property
    def failures(self) -> list[str]:
        return [failed.why for _, failed in self._failed.values()]

    @property
    def waits_for_room(self) -> bool:
        """Whether a load is asked for and none is under way: `advance` has something to do."""
        return bool(self._wanted) and self.loading is None

    def preload(self, models: Iterable[str]) -> None:
        """Ask for models in this order, as far as they fit side by side. One whose size cannot be told is asked for too: the
        load will say what is wrong with it."""
        room = self._budget
        for model in models:
            try:
                needed = self._sources[model].bytes_needed()
            except Exception:
                needed = 0
            if room is None or needed <= room:
                self.want(model)
                room = room and room - needed

    def want(self, model: str) -> None:
        """Ask for a model. One that failed a moment ago fails again at once, and so does one that this process was not told of: a
        message from outside must not end it."""
        if model not in self._sources:
            self._put(LoadFailed(model, f"the weights of {model} are not here"))
            return
        when, failed = self._failed.pop(model, (0.0, None))
        if failed is not None and self._clock() - when < RETRY_SECONDS:
            self._failed[model] = when, failed
            self._put(failed)
        elif model not in self._here:
            self._wanted.setdefault(model, self._clock())

    def forget(self, model: str) -> None:
        """Nobody waits for this model any more; a load that has begun goes on."""
        if model != self.loading:
            self._wanted.pop(model, None)

    def unload(self, model: str, busy: Collection[str]) -> None:
        """Let go of a model that is in memory and not in `busy`; any other is let be."""
        if model in self._here and model not in busy:
            self._here.pop(model).runner.release()

    def holds_back(self, model: str) -> bool:
        """Whether newcomers of a model in memory must wait: another has waited long enough for its room."""
        overdue = (name for name, since in self._wanted.items() if self._clock() - since > self._patience(name))
        return self.loading is None and any(name != model for name in overdue)

    def advance(self, busy: Collection[str]) -> None:
        """Begin the next load, if there is room or models that are not in `busy` can make it."""
        if not self.waits_for_room:
            return
        model = min(self._wanted, key=lambda name: self._wanted[name])
        try:
            if self._make_room(model, self._sources[model].bytes_needed(), busy):
                self.loading = model
                threading.Thread(target=self._load, args=(model,), daemon=True).start()
        except Exception as error:
            self._wanted.pop(model)
            self._put(_failure(model, error))

    def settle(self, message: Loaded | LoadFailed) -> None:
        """A load has ended."""
        if self.loading == message.model:
            self.loading = None
        self._wanted.pop(message.model, None)
        if isinstance(message, LoadFailed):
            if message.model in self._sources and message.model not in self._failed:
                self._failed[message.model] = self._clock(), message
            return
        self._failed.pop(message.model, None)
        self._load_seconds[message.model] = message.seconds
        self._here[message.model] = _Resident(message.runner, self._clock())

    def _make_room(self, model: str, needed: int, busy: Collection[str]) -> bool:
        """Let go of idle models, the least recently used first, until there is room, if that is enough. Raises
        ModelUnavailable where there never can be."""
        if self._budget is None:
            return True
        if needed > self._budget:
            raise ModelUnavailable(f"{model} needs {needed / 1e9:.2f} GB of memory and the budget is {self._budget / 1e9:.2f} GB (setting memory_budget)")
        loaded = self.loaded
        excess, leaving = sum(loaded.values()) + needed - self._budget, []
        for name in sorted(self._here, key=lambda name: self._here[name].used):
            if excess > 0 and name not in busy:
                leaving.append(name)
                excess -= loaded[name]
        if excess > 0:
            return False
        for name in leaving:
            log.info("a model leaves the memory", model=name, room_for=model)
            self._here.pop(name).runner.release()
        return True

    def _patience(self, model: str) -> float:
        return max(PATIENCE, PATIENCE_LOADS * self._load_seconds.get(model, 0.0))

    def _load(self, model: str) -> None:
        """Thread: load a model and put it, or why it could not be loaded, into the inbox."""
        start = self._clock()
        try:
            self._put(LoadPart(model, 0.0))
            runner = self._sources[model].load(lambda part: self._put(LoadPart(model, part)))
            self._put(Loaded(model, runner, self._clock() - start))
        except Exception as error:
            self._put(_failure(model, error))


def _failure(model: str, error: Exception) -> LoadFailed:
    log.error("a model could not be loaded", model=model, error=repr(error))
    if isinstance(error, DarkroomError):
        return LoadFailed(model, "; ".join(error.lines))
    return LoadFailed(model, f"{model} could not be loaded ({type(error).__name__}); the log says more")
