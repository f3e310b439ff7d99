"""Parameters of an address, and fields of a small JSON body, each by its rule; all that is wrong is told at once."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import Request

from darkroom.checks import shown as quoted
from darkroom.errors import BadRequest, Invalid
from darkroom.http.desk import desk_of

MAX_BODY = 2**16  # bytes
WHOLE = re.compile(r"[0-9]{1,12}")
EARLIEST, LATEST = 946_684_800.0, 253_402_300_800.0  # seconds since the epoch: the years 2000 to 9999


def query(request: Request, rules: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The parameters of the address by their rules, which raise ValueError naming what must be. Raises Invalid."""
    return _checked(request.query_params.multi_items(), rules, "this address")


async def fields(request: Request, rules: Mapping[str, Callable[[Any], Any]], seconds: float | None = None) -> dict[str, Any]:
    """The fields of a JSON body, none of which must be there; it may take `seconds` to come, or as long as the setting says. Raises
    Invalid, BadRequest, TooLarge or TooSlow."""
    content = await desk_of(request).body(request, MAX_BODY, seconds)
    try:
        body = json.loads(content or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body must be JSON") from error
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return _checked(list(body.items()), rules, "this route")


def _checked(pairs: list[tuple[str, Any]], rules: Mapping[str, Callable[[Any], Any]], where: str) -> dict[str, Any]:
    faults, asked = [], {}
    came: dict[str, Any] = {}
    for name, value in pairs:
        if name not in rules:
            faults.append(f"{quoted(name)} is not a field of {where}" + (f", which has {', '.join(rules)}" if rules else ""))
            continue
        first = came.setdefault(name, value)
        if first is not value and first != value:  # of two values neither is the right one
            faults.append(f"{name} must be given once, got {quoted(first)} and {quoted(value)}")
            continue
        try:
            asked[name] = rules[name](value)
        except (ValueError, TypeError) as error:
            faults.append(f"{name} must be {error}, got {quoted(value)}")
    if faults:
        raise Invalid(*faults[:20], name="invalid_request")
    return asked


def whole(least: int, most: int) -> Callable[[Any], int]:
    def rule(value: Any) -> int:
        digits = str(value)
        if isinstance(value, bool) or not WHOLE.fullmatch(digits) or not least <= int(digits) <= most:
            raise ValueError(f"a whole number between {least} and {most}")
        return int(digits)

    return rule


def one_of(*known: str) -> Callable[[Any], str]:
    def rule(value: Any) -> str:
        if value not in known:
            raise ValueError(f"one of {', '.join(known)}")
        return value

    return rule


def text(most: int = 1000) -> Callable[[Any], str]:
    def rule(value: Any) -> str:
        if not isinstance(value, str) or len(value) > most or not _can_be_kept(value):
            raise ValueError(f"a string of at most {most} characters of valid Unicode, without NUL")
        return value

    return rule


def _can_be_kept(value: str) -> bool:
    """No database takes NUL, and no encoder half of a surrogate pair."""
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def flag(value: Any) -> bool:
    if value in (True, "true", "1"):
        return True
    if value in (False, "false", "0"):
        return False
    raise ValueError("true or false")


def names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > 500 or not all(isinstance(one, str) and len(one) < 200 and _can_be_kept(one) for one in value):
        raise ValueError("a list of at most 500 strings")
    return tuple(value)


def instant(value: Any) -> float:
    """ISO 8601, or seconds since the epoch, to seconds; in the years 2000 to 9999."""
    rule = "an instant like 2026-11-25T12:00:00Z, in the years 2000 to 9999"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds: float = value
    else:
        try:
            when = datetime.fromisoformat(str(value))
        except ValueError as error:
            raise ValueError(rule) from error
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    if not EARLIEST <= seconds < LATEST:  # not a number is outside of it too
        raise ValueError(rule)
    return float(seconds)


def cursor_of(when: float, id_: str) -> str:
    """Where the next page begins: after this one."""
    return base64.urlsafe_b64encode(f"{when!r} {id_}".encode()).decode().rstrip("=")


def cursor(value: str) -> tuple[float, str]:
    try:
        when, id_ = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).decode("ascii").split(" ")
        if not id_.isprintable():
            raise ValueError("what no id holds")
        return instant(float(when)), id_
    except (ValueError, binascii.Error) as error:
        raise ValueError("the `next` of a page") from error
