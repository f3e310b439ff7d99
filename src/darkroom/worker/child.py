"""The child process: an Engine behind a socket. `python -m darkroom.worker.child FD`; only `local.py` starts it.

Ends when the socket closes, so also when the gateway is killed.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from darkroom.engine.cost import CostModel
from darkroom.engine.messages import Message
from darkroom.engine.residents import Residents, Source
from darkroom.errors import DarkroomError
from darkroom.types import Event, ModelCard, WorkerState
from darkroom.worker.wire import Costs, Order, Started

COSTS_EVERY = 25  # steps between two reports of the measured costs; what is measured for the first time is told at once


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    send = _sender(connection)
    order: Order = connection.recv()
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    send(WorkerState("loading"))
    try:
        engine, cost, state = _build(order, send, inbox)
    except Exception as error:
        lines = error.lines if isinstance(error, DarkroomError) else [f"the engine could not be started ({type(error).__name__}: {error})"]
        send(WorkerState("failed", error="; ".join(lines)))
        return
    send(Costs(cost.table()))
    engine.run(_Reporter(send, cost, state))
    cost.save()
    os._exit(0)  # a load may be deep in a library on its thread, where Python's own end would abort it with a cry


def _build(order: Order, send: Callable[[Any], None], inbox: queue.SimpleQueue[Message]) -> tuple[Any, CostModel, Callable[[], WorkerState]]:
    """The engine, and how it says what it does. torch is imported here and not before, so that `loading` is out at once."""
    from darkroom.engine.backend import Backends
    from darkroom.engine.engine import Engine
    from darkroom.engine.hardware import choose, room_for_weights, use_threads

    use_threads(order.threads)
    device, dtype = choose(order.device, order.dtype)
    budget = room_for_weights(order.memory_budget, device)
    backends = Backends(order.backend, order.graphs, budget, order.exact, order.threads)
    residents = Residents({card.name: _source(card, order, backends) for card in order.cards}, budget)
    cost = CostModel(order.costs)
    engine = Engine(residents, cost, order.max_rows, order.exact, started=lambda job_id: send(Started(job_id)), inbox=inbox)
    residents.preload(order.preload)
    return engine, cost, lambda: _state(residents, str(device), str(dtype).removeprefix("torch."))


def _source(card: ModelCard, order: Order, backends: Any) -> Source:
    from darkroom.engine.load import bytes_needed, load_family
    from darkroom.engine.runner import Runner

    def needed() -> int:
        weights = bytes_needed(card, order.device, order.dtype)
        return weights if backends.obstacle(weights, order.device, order.dtype) else 2 * weights  # PyTorch's and the graphs'

    def load(tell: Callable[[float], None]) -> Runner:
        family = load_family(card, order.device, order.dtype, lambda part: tell(0.5 * part))
        fast = backends.accelerate(family, card, lambda part: tell(0.5 + 0.5 * part))
        return Runner(family, order.loras, order.max_lora_bytes, fast)

    return Source(needed, load)


def _state(residents: Residents, device: str, dtype: str) -> WorkerState:
    """Ready is who has a model, or has not been asked for one."""
    loaded, failures = residents.loaded, residents.failures
    status = "ready" if loaded or not (failures or residents.loading) else "loading" if residents.loading else "failed"
    return WorkerState(status, tuple(loaded), tuple(loaded.values()), residents.loading or "", device, dtype, "; ".join(failures))


def _listen(connection: Connection, inbox: queue.SimpleQueue[Message]) -> None:
    """Hand messages to the engine; without a gateway there is nothing left to do, and nobody to do it for."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


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
    """Sends the events of each step, what the engine does whenever that has changed, and the costs now and then."""

    def __init__(self, send: Callable[[Any], None], cost: CostModel, state: Callable[[], WorkerState]):
        self._send, self._cost, self._state, self._steps = send, cost, state, 0
        self._known = cost.known
        self._last: WorkerState | None = None

    def __call__(self, events: list[Event]) -> None:
        state = self._state()
        if state != self._last:
            self._last = state
            self._send(state)
        for event in events:
            self._send(event)
        self._steps += 1
        if self._steps % COSTS_EVERY == 0:
            self._cost.save()
        if self._steps % COSTS_EVERY == 0 or self._cost.known != self._known:
            self._known = self._cost.known
            self._send(Costs(self._cost.table()))


if __name__ == "__main__":
    main()
