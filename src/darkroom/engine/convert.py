"""Converts a model into graphs in a process of its own: `python -m darkroom.engine.convert`.

It is a process because tracing runs the nets' modules, which belong to the engine's thread, and because only
a process can have a lower priority. Its standard input brings the Task and stays open: the process ends when
that closes, so also when the worker that started it is killed. No torch at import.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from darkroom import log
from darkroom.types import ModelCard

NICE = 19  # of 0 to 19: a thread of the engine gets a core sixty times as long
STDIN, STDERR = 0, 2  # file descriptors: standard output is not for what a library may print


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model to convert, and what `Backends` takes."""

    card: ModelCard
    device: str
    dtype: str
    graphs: Path
    budget: int
    threads: int
    log_level: str


@contextmanager
def started(task: Task) -> Iterator[subprocess.Popen[bytes]]:
    """A process that converts; it ends with the block, and with this process."""
    command = [sys.executable, "-m", "darkroom.engine.convert"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=STDERR)
    assert process.stdin is not None
    try:
        with suppress(BrokenPipeError):  # it has died, and its exit code says so
            process.stdin.write(pickle.dumps(task))
            process.stdin.flush()
        yield process
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()


def main() -> None:
    os.nice(NICE)  # before any library starts a thread: each has a priority of its own
    task: Task = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log.to_stderr(task.log_level)
    from darkroom.imports import uncollected

    with uncollected():
        from darkroom.engine.backend import Backends
        from darkroom.engine.hardware import use_threads
        from darkroom.engine.load import load_family

        family = load_family(task.card, task.device, task.dtype)
    use_threads(1)  # tracing gains nothing from more, and threads that wait for it would spin
    Backends("auto", task.graphs, task.budget, threads=task.threads).convert(family, task.card)


def _end_with_parent() -> None:
    os.read(STDIN, 1)  # not by Python's own file, whose lock would stop the interpreter's end
    os._exit(1)


if __name__ == "__main__":
    main()
