"""Wait until a server of ours has chosen its backends: on a new data folder it begins with PyTorch."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

WAIT = 1800  # seconds: a large model is converted at its load


def until_settled(service_id: str) -> None:
    """Wait until no load and no measurement of a backend is left. Raises SystemExit after WAIT."""
    address = f"{service_id.rpartition('/')[0]}/readyz"
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=10) as reply:
                state = json.load(reply)
            if not state["loading"] and not state["preparing"]:
                return
        except (urllib.error.URLError, TimeoutError):
            pass  # it does not listen yet, or its model is not there
        time.sleep(0.5)
    raise SystemExit(f"{address}: models were not ready after {WAIT} s")
