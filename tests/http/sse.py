"""Reading Server-Sent Events as a client does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import requests


@dataclass(frozen=True)
class Told:
    event: str
    data: dict[str, Any]
    id: str


def told(reply: requests.Response) -> Iterator[Told]:
    """Events as they come, to the end of the stream."""
    assert reply.status_code == 200, reply.text
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    fields: dict[str, str] = {}
    for line in reply.iter_lines(decode_unicode=True):
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield Told(fields["event"], json.loads(fields["data"]), fields.get("id", ""))
            fields = {}
