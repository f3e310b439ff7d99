"""Many imports at once, at the start of a process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's garbage collector, which would look again and again through what imports make, none of it garbage: a tenth of
    their time and more. Later it leaves out what is there by now, so what may once be dropped must come after."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def without(package: str) -> Iterator[None]:
    """As if this package were not installed: for libraries that import it because it is there, and do as well without. Who has it
    already keeps it."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
