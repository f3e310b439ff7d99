"""The rules of every field that a person may send, checked once. All that is wrong is reported at once, each line
naming the field, the rule and the value given."""

from __future__ import annotations

import difflib
import json
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any

from darkroom.errors import Invalid
from darkroom.types import MAX_SEED, ModelCard

MAX_TEXT = 10_000  # characters of a prompt
MAX_CFG = 35
TEXT_TO_IMAGE = ("model", "prompt", "negative_prompt", "steps", "height", "width", "cfg_scale", "seed")
IMAGE_TO_IMAGE = (*TEXT_TO_IMAGE, "image", "control_strength")
NO_FAULTS: Mapping[str, str] = MappingProxyType({})
SHOWN = 60  # characters of a wrong value that an error repeats


@dataclass(frozen=True)
class Asked:
    """What was asked for, by our rules; width and height are None where the picture's own size is to decide."""

    prompt: str
    negative_prompt: str
    steps: int
    width: int | None
    height: int | None
    cfg: float
    seed: int
    control_strength: Decimal | None


class Wrong(Exception):
    """One rule that one field breaks."""


def check(
    raw: Mapping[str, Any], card: ModelCard, max_pixels: int, textual: bool, image_to_image: bool, faults: Mapping[str, str] = NO_FAULTS
) -> Asked:
    """Fields as they came (`textual`: all are text, as in a form) to what they mean. Raises Invalid with every fault, those
    that are known before (by field) among them.

    A seed of 0 is drawn here: 1 to MAX_SEED.
    """
    faults = {**faults, **_unknown(raw, IMAGE_TO_IMAGE if image_to_image else TEXT_TO_IMAGE)}

    def take(field: str, default: Any, rule: Callable[[Any], Any]) -> Any:
        try:
            return default if field not in raw or field in faults else rule(raw[field])
        except Wrong as wrong:
            faults[field] = f"{field} must be {wrong}, got {shown(raw[field])}"
            return default

    def whole(least: int, most: int, multiple: int = 1) -> Callable[[Any], int]:
        return lambda value: _whole(value, textual, least, most, multiple)

    prompt = take("prompt", "", _prompt)
    if "prompt" not in raw:
        faults["prompt"] = "prompt must be given: 1 to 10000 characters, not only white space"
    side = None if image_to_image else min(card.default_side, int(math.sqrt(max_pixels)) // 64 * 64)
    asked = Asked(
        prompt=prompt,
        negative_prompt=take("negative_prompt", "", _text),
        steps=take("steps", card.default_steps, whole(card.min_steps, card.max_steps)),
        width=take("width", side, whole(128, card.max_side, 64)),
        height=take("height", side, whole(128, card.max_side, 64)),
        cfg=take("cfg_scale", card.default_cfg, lambda value: float(_number(value, textual, 0, MAX_CFG))),
        seed=take("seed", 0, whole(0, MAX_SEED)) or 1 + secrets.randbelow(MAX_SEED),
        control_strength=take("control_strength", Decimal("0.35"), lambda value: _number(value, textual, 0, 1)) if image_to_image else None,
    )
    if asked.width and asked.height and asked.width * asked.height > max_pixels and not {"width", "height"} & faults.keys():
        faults["width"] = f"width x height must be at most {max_pixels} pixels, got {asked.width} x {asked.height}"
    refuse(faults)
    return asked


def refuse(faults: Mapping[str, str]) -> None:
    """Raise Invalid with every fault, if there is any; its name tells the field where it is one alone."""
    if faults:
        name = f"invalid_{next(iter(faults))}" if len(faults) == 1 else "invalid_request"
        raise Invalid(*faults.values(), name=name if name.replace("_", "").isalnum() and name.isascii() and len(name) < 60 else "invalid_request")


def shown(value: Any) -> str:
    """A value as an error may repeat it: short, as JSON."""
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError):
        text = json.dumps(str(value))
    except RecursionError:
        text = f"a {type(value).__name__} within many others"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def _unknown(raw: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, str]:
    faults = {}
    for field in [f for f in raw if f not in known][:20]:
        near = difflib.get_close_matches(field[:100].lower(), known, n=1, cutoff=0.0)
        faults[field] = f"{shown(field)} is not a field of this route, the nearest is {near[0]}; got {shown(raw[field])}"
    return faults


def _text(value: Any) -> str:
    rule = f"a string of at most {MAX_TEXT} characters of valid Unicode"
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise Wrong(rule)
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: no encoder and no PNG could hold it
        raise Wrong(rule) from error
    if "\0" in value:
        raise Wrong(f"{rule}, without NUL")
    return value


def _prompt(value: Any) -> str:
    text = _text(value)
    if not text.strip():
        raise Wrong("1 to 10000 characters, not only white space")
    return text


def _number(value: Any, textual: bool, least: int, most: int) -> Decimal:
    rule = f"a number between {least} and {most}"
    if textual == isinstance(value, str) and not isinstance(value, bool) and isinstance(value, (str, int, float)):
        number = _decimal(value)
        if number is not None and least <= number <= most:
            return number.copy_abs()  # -0 is 0; abs() would round to the 28 digits of its context
    raise Wrong(rule)


def _whole(value: Any, textual: bool, least: int, most: int, multiple: int) -> int:
    rule = f"a whole number between {least} and {most}" if multiple == 1 else f"a multiple of {multiple} between {least} and {most}"
    if textual == isinstance(value, str) and not isinstance(value, bool) and isinstance(value, (str, int, float)):
        number = _decimal(value)
        if number is not None and least <= number <= most and number == int(number) and int(number) % multiple == 0:
            return int(number)
    raise Wrong(rule)


def _decimal(value: str | float) -> Decimal | None:
    """Exactly what was written, or None for what is not a finite number in plain ASCII."""
    text = value.strip() if isinstance(value, str) else repr(value)
    if len(text) > 50 or not text.isascii() or "_" in text:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() and math.isfinite(float(number)) else None
