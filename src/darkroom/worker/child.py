"""The child process: an Engine behind a socket. `python -m darkroom.worker.child FD`; only `local.py` starts it.

Ends when the socket closes, so also when the gateway is killed.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from darkroom.engine.cost import CostModel
from darkroom.errors import DarkroomError
from darkroom.types import Event, WorkerState
from darkroom.worker.wire import Costs, Order, Started

COSTS_EVERY = 50  # steps between two reports of the measured costs


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    send = _sender(connection)
    order: Order = connection.recv()
    send(WorkerState("loading"))
    try:
        engine, cost, state = _build(order, send)
    except Exception as error:
        lines = error.lines if isinstance(error, DarkroomError) else [f"the model could not be loaded ({type(error).__name__}: {error})"]
        send(WorkerState("failed", error="; ".join(lines)))
        return
    threading.Thread(target=_listen, args=(connection, engine), daemon=True).start()
    send(Costs(cost.table()))
    send(state)
    engine.run(_Reporter(send, cost))
    cost.save()


def _build(order: Order, send: Callable[[Any], None]) -> tuple[Any, CostModel, WorkerState]:
    """Load the nets; torch is imported here and not before, so that the state `loading` is out at once."""
    from darkroom.engine.engine import Engine
    from darkroom.engine.hardware import use_threads
    from darkroom.engine.load import load_family
    from darkroom.engine.runner import Runner

    use_threads(order.threads)
    runners = {card.name: Runner(load_family(card, order.device, order.dtype), order.loras, order.max_lora_bytes) for card in order.cards}
    cost = CostModel(order.costs)
    engine = Engine(runners, cost, order.max_rows, order.exact, started=lambda job_id: send(Started(job_id)))
    family = next(iter(runners.values())).family
    return engine, cost, WorkerState("ready", tuple(runners), str(family.device), str(family.dtype).removeprefix("torch."))


def _listen(connection: Connection, engine: Any) -> None:
    """Hand messages to the engine; without a gateway there is nothing left to do, and nobody to do it for."""
    try:
        while True:
            engine.put(connection.recv())
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
    """Sends the events of each step, and the costs now and then."""

    def __init__(self, send: Callable[[Any], None], cost: CostModel):
        self._send, self._cost, self._steps = send, cost, 0

    def __call__(self, events: list[Event]) -> None:
        for event in events:
            self._send(event)
        self._steps += 1
        if self._steps % COSTS_EVERY == 0:
            self._cost.save()
            self._send(Costs(self._cost.table()))


if __name__ == "__main__":
    main()
