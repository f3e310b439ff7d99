"""Many imports at once, at the start of a process."""

from __future__ import annotations

import gc
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
