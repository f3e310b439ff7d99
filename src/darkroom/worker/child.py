"""The child process: an Engine behind a socket. `python -m darkroom.worker.child FD`; only `local.py` starts it.

Ends when the socket closes, so also when the gateway is killed.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from darkroom import log
from darkroom.engine.cost import CostModel
from darkroom.engine.messages import Message, Stop
from darkroom.engine.residents import Residents, Source
from darkroom.errors import DarkroomError
from darkroom.imports import uncollected
from darkroom.types import FINAL, Event, ModelCard, Preview, Progress, WorkerState
from darkroom.worker.watchdog import Beat
from darkroom.worker.wire import Costs, Order, Started

COSTS_SECONDS = 1.0  # between two reports of the measured costs; what is measured for the first time is told at once
PROGRESS_SECONDS = 0.2  # between two reports of progress


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    send = _sender(connection)
    order: Order = connection.recv()
    log.to_stderr(order.log_level)
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    built = threading.Event()
    threading.Thread(target=_listen, args=(connection, inbox, built), daemon=True).start()
    send(WorkerState("loading"))
    try:
        engine, cost, state = _build(order, send, inbox)
    except Exception as error:
        lines = error.lines if isinstance(error, DarkroomError) else [f"the engine could not be started ({type(error).__name__}: {error})"]
        send(WorkerState("failed", error="; ".join(lines)))
        return
    built.set()
    send(Costs(cost.table()))
    reporter = _Reporter(send, cost, state)
    threading.Thread(target=_beat, args=(send, lambda: reporter.turns, order.beat_seconds), daemon=True).start()
    reporter([])  # what it does before the first message comes: without a model to load that may be for ever
    engine.run(reporter)
    cost.save()
    os._exit(0)  # a load may be deep in a library on its thread, where Python's own end would abort it with a cry


def _build(order: Order, send: Callable[[Any], None], inbox: queue.SimpleQueue[Message]) -> tuple[Any, CostModel, Callable[[], WorkerState]]:
    """The engine, and how it says what it does. torch is imported here and not before, so that `loading` is out at once."""
    with uncollected():
        from darkroom.engine.backend import Backends
        from darkroom.engine.hardware import choose, room_for_weights, use_threads

        device, dtype = choose(order.device, order.dtype)
        budget = room_for_weights(order.memory_budget, device)
        threads = use_threads(order.threads)
        backends = Backends(order.backend, order.graphs, budget, order.exact, threads)
        for card in order.cards:
            if card.name in order.preload[:1]:
                with suppress(DarkroomError, OSError):  # its load will say what is wrong
                    backends.begin(card, order.device, order.dtype)

        from darkroom.engine.engine import Engine
        from darkroom.engine.load import import_families
        from darkroom.engine.preparation import Preparation

        import_families(order.cards)
    preparation = Preparation(backends, lambda card: _task(card, order, budget, threads)) if order.prepare else None
    residents = Residents({card.name: _source(card, order, backends, threads, preparation) for card in order.cards}, budget)
    cost = CostModel(order.costs)
    engine = Engine(residents, cost, order.max_rows, order.exact, started=lambda job_id: send(Started(job_id)), inbox=inbox)
    if preparation is not None:
        preparation.start(engine)
    residents.preload(order.preload)
    return engine, cost, lambda: _state(residents, str(device), str(dtype).removeprefix("torch."))


def _task(card: ModelCard, order: Order, budget: int, threads: int) -> Any:
    from darkroom.engine.convert import Task

    return Task(
        card=card, device=order.device, dtype=order.dtype, graphs=order.graphs, budget=budget, threads=threads, log_level=order.log_level
    )


def _source(card: ModelCard, order: Order, backends: Any, threads: int, preparation: Any) -> Source:
    from darkroom.engine.hardware import use_threads
    from darkroom.engine.load import bytes_needed, load_family
    from darkroom.engine.runner import Runner

    def needed() -> int:
        weights = bytes_needed(card, order.device, order.dtype)
        return weights if backends.obstacle(weights, order.device, order.dtype) else 2 * weights  # PyTorch's and the graphs'

    def load(tell: Callable[[float], None]) -> Runner:
        use_threads(threads)  # this thread began with what the engine's had just then
        family = load_family(card, order.device, order.dtype, lambda part: tell(0.5 * part))
        if backends.defers(family, card):
            runner = Runner(family, order.loras, order.max_lora_bytes, threads=threads, undecided=preparation is not None)
            if preparation is not None:
                preparation.add(card, runner)
            return runner
        fast = backends.accelerate(family, card, lambda part: tell(0.5 + 0.5 * part))
        return Runner(family, order.loras, order.max_lora_bytes, fast, threads)

    return Source(needed, load)


def _state(residents: Residents, device: str, dtype: str) -> WorkerState:
    """Ready is who has a model, or has not been asked for one."""
    loaded, failures = residents.loaded, residents.failures
    status = "ready" if loaded or not (failures or residents.loading) else "loading" if residents.loading else "failed"
    error = "; ".join(failures)
    return WorkerState(status, tuple(loaded), tuple(loaded.values()), residents.loading or "", device, dtype, error, residents.preparing)


def _listen(connection: Connection, inbox: queue.SimpleQueue[Message], built: threading.Event) -> None:
    """Hand messages to the engine; without a gateway there is nothing left to do, and nobody to do it for. While imports go on, who is to
    stop need not wait for them."""
    try:
        while True:
            message = connection.recv()
            if isinstance(message, Stop) and not built.is_set():
                os._exit(0)
            inbox.put(message)
    except (EOFError, OSError):
        os._exit(0)


def _beat(send: Callable[[Any], None], turns: Callable[[], int], seconds: float) -> None:
    """Tell the gateway now and then that this process is there, and whether its engine goes on."""
    while True:
        send(Beat(turns(), time.process_time()))
        time.sleep(seconds)


def _sender(connection: Connection) -> Callable[[Any], None]:
    lock = threading.Lock()

    def send(message: Any) -> None:
        try:
            with lock:
                connection.send(message)
        except OSError:
            os._exit(0)

    return send


class _Reporter:
    """Sends the events of each step, what the engine does whenever that has changed, and the costs now and then.

    Progress but the first of a job is held back and sent for all jobs together: each message wakes the gateway, and where that takes a core from the
    nets' threads, which wait for each other many times a step, a step takes a tenth longer.
    """

    def __init__(self, send: Callable[[Any], None], cost: CostModel, state: Callable[[], WorkerState], clock: Callable[[], float] = time.monotonic):
        self._send, self._cost, self._state, self._clock = send, cost, state, clock
        self._known = cost.known
        self._last: WorkerState | None = None
        self._progress: dict[str, Progress | None] = {}  # by job that is under way: None where nothing is held back
        self._told_progress = self._told_costs = clock()
        self.turns = 0  # of the engine

    def __call__(self, events: list[Event]) -> None:
        self.turns += 1
        state = self._state()
        if state != self._last:
            self._last = state
            self._send(state)
        for event in events:
            if isinstance(event, Progress) and event.job_id in self._progress:
                self._progress[event.job_id] = event
            else:
                self._tell(event)
        self._tell_progress(self._clock())
        self._tell_costs(self._clock())

    def _tell(self, event: Event) -> None:
        """At once; it says more than a progress of the same job that is held back."""
        self._send(event)
        if isinstance(event, FINAL):
            self._progress.pop(event.job_id, None)
        elif isinstance(event, (Progress, Preview)):
            self._progress[event.job_id] = None

    def _tell_progress(self, now: float) -> None:
        if now - self._told_progress < PROGRESS_SECONDS:
            return
        self._told_progress = now
        for event in filter(None, list(self._progress.values())):
            self._tell(event)

    def _tell_costs(self, now: float) -> None:
        late = now - self._told_costs >= COSTS_SECONDS
        if late:
            self._told_costs = now
            self._cost.save()
        if late or self._cost.known != self._known:
            self._known = self._cost.known
            self._send(Costs(self._cost.table()))


if __name__ == "__main__":
    main()
