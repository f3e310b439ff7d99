"""Wait for a server of ours to run its models as it will from then on: on a new data folder they begin with PyTorch."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

WAIT = 1800  # seconds: a large model is converted at its load


def until_settled(service_id: str) -> None:
    """Wait until all models are in memory and no backend is still to be measured. Raises SystemExit where that takes too long."""
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
