"""The rules of every field that a person may send, checked once. All that is wrong is reported at once, each line
naming the field, the rule and the value given."""

from __future__ import annotations

import difflib
import json
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any

from darkroom.errors import Invalid
from darkroom.types import MAX_SEED, Lora, LoraCard, ModelCard

MAX_TEXT = 10_000  # characters of a prompt
MAX_CFG = 35
MAX_LORAS = 8  # of one picture
MAX_SCALE = 10
MAX_NAMES = 20  # that an error lists
NO_LORAS: Mapping[str, LoraCard] = MappingProxyType({})
MAX_PICTURES = 8  # of one request
DELIVERY = ("n", "store", "response_format", "preview_every", "webhook_url")  # how many, and how they come back
TEXT_TO_IMAGE = ("model", "prompt", "negative_prompt", "steps", "height", "width", "cfg_scale", "seed", "loras", *DELIVERY)
IMAGE_TO_IMAGE = (*TEXT_TO_IMAGE, "image", "control_strength")
# elsewhere: how much of the image is lost
STRENGTHS = ("strength", "denoising_strength", "image_strength", "prompt_strength")
# what fields are called elsewhere, where the letters alone would lead astray
ELSEWHERE = {
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "guidance": "cfg_scale",
    "num_images": "n",
    "num_images_per_prompt": "n",
    "batch_size": "n",
    "file": "image",
    "init_image": "image",
    "input_image": "image",
    "photo": "image",
    "picture": "image",
    "text": "prompt",
}
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
    loras: tuple[Lora, ...]
    n: int = 1
    store: bool = True
    response_format: str = ""  # b64 or url; empty where it was not said
    preview_every: int = 0
    webhook_url: str = ""
    explicit_seed: bool = False  # one was given, not drawn


class Wrong(Exception):
    """One rule that one field breaks."""


def check(
    raw: Mapping[str, Any], card: ModelCard, max_pixels: int, textual: bool, image_to_image: bool, faults: Mapping[str, str] = NO_FAULTS,
    loras: Mapping[str, LoraCard] = NO_LORAS, webhook: Callable[[Any], str] = str,
) -> Asked:  # fmt: skip
    """Fields as they came (`textual`: all are text, as in a form) to what they mean; `loras` are those that are here, `webhook`
    the rule of webhook_url. Raises Invalid with every fault, those that are known before (by field) among them.

    A seed of 0 is drawn here: 1 to MAX_SEED.
    """
    faults = {**faults, **_unknown(raw, IMAGE_TO_IMAGE if image_to_image else TEXT_TO_IMAGE, "this route")}

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
        loras=_loras(raw["loras"], textual, card, loras, faults) if "loras" in raw else (),
        n=take("n", 1, whole(1, MAX_PICTURES)),
        store=take("store", True, lambda value: _flag(value, textual)),
        response_format=take("response_format", "", _response_format),
        preview_every=take("preview_every", 0, whole(0, card.max_steps)),
        webhook_url=take("webhook_url", "", webhook),
    )
    asked = replace(asked, explicit_seed="seed" in raw and take("seed", 0, whole(0, MAX_SEED)) > 0)
    if asked.width and asked.height and asked.width * asked.height > max_pixels and not {"width", "height"} & faults.keys():
        faults["width"] = f"width x height must be at most {max_pixels} pixels, got {asked.width} x {asked.height}"
    refuse(faults)
    return asked


def refuse(faults: Mapping[str, str]) -> None:
    """Raise Invalid with every fault, if there is any; its name tells the field where it is one alone."""
    if faults:
        fields = {"loras" if field.startswith("loras[") else field for field in faults}
        name = f"invalid_{next(iter(fields))}" if len(fields) == 1 else "invalid_request"
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


def _loras(value: Any, textual: bool, card: ModelCard, here: Mapping[str, LoraCard], faults: dict[str, str]) -> tuple[Lora, ...]:
    """The LoRAs asked for, in the order of their names; what is wrong goes to `faults`."""
    try:
        listed = _objects(value, textual)
    except Wrong as wrong:
        faults["loras"] = f"loras must be {wrong}, got {shown(value)}"
        return ()
    found: dict[str, Lora] = {}
    for i, fields in enumerate(listed):
        lora = _lora(fields, f"loras[{i}]", card, here, faults)
        if lora.name in found and f"loras[{i}].name" not in faults:
            faults[f"loras[{i}].name"] = f"loras[{i}].name must be given once, got {shown(lora.name)} again"
        found[lora.name] = lora
    return tuple(found[name] for name in sorted(found))


def _objects(value: Any, textual: bool) -> list[dict[str, Any]]:
    """A list of JSON objects; in a form it is JSON as text."""
    rule = f'a list of at most {MAX_LORAS} objects like {{"name": "a", "scale": 0.8}}{", as JSON text" if textual else ""}'
    if textual:
        try:
            value = json.loads(value, object_pairs_hook=_once)
        except (ValueError, TypeError, RecursionError) as error:
            raise Wrong(rule) from error
    if not isinstance(value, list) or len(value) > MAX_LORAS or not all(isinstance(item, dict) for item in value):
        raise Wrong(rule)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)


def _lora(fields: dict[str, Any], where: str, card: ModelCard, here: Mapping[str, LoraCard], faults: dict[str, str]) -> Lora:
    """One of the list; without a name it has none, and `faults` says so."""
    for field, fault in _unknown(fields, ("name", "scale"), where).items():
        faults[f"{where}.{field}"] = fault
    name, scale = fields.get("name"), fields.get("scale", 1)
    try:
        _usable(name, card, here)
    except Wrong as wrong:
        faults[f"{where}.name"] = f"{where}.name must be {wrong}" + (f", got {shown(name)}" if "name" in fields else "")
    try:
        return Lora(str(name), float(_number(scale, False, -MAX_SCALE, MAX_SCALE)))
    except Wrong as wrong:
        faults[f"{where}.scale"] = f"{where}.scale must be {wrong}, got {shown(scale)}"
        return Lora(str(name))


def _usable(name: Any, card: ModelCard, here: Mapping[str, LoraCard]) -> None:
    fits = sorted(lora.name for lora in here.values() if card.family in lora.families)
    if not isinstance(name, str) or name not in here:
        more = f" and {len(fits) - MAX_NAMES} more" if len(fits) > MAX_NAMES else ""
        raise Wrong(f"one of {', '.join(fits[:MAX_NAMES])}{more}" if fits else f"the name of a LoRA that is here, and there is none for {card.family}")
    if here[name].fault:
        raise Wrong(f"a LoRA that can be used; of this one, {here[name].fault}")
    if name not in fits:
        raise Wrong(f"a LoRA for {card.family}, not one for {here[name].families[0]}")


def _unknown(raw: Mapping[str, Any], known: tuple[str, ...], where: str) -> dict[str, str]:
    faults = {}
    for field in [f for f in raw if f not in known][:20]:
        meant = _nearest(field, raw[field], known)
        faults[field] = f"{shown(field)} is not a field of {where}, {meant}; got {_short(raw[field])}"
    return faults


def _nearest(field: str, value: Any, known: tuple[str, ...]) -> str:
    """The field that was meant: by what other services call it, by being a file, else by its letters."""
    name = field[:100].lower()
    if "prompt" not in known:  # what lies within a field
        return f"the nearest is {'scale' if name in ('strength', 'weight') else _closest(name, known)}"
    if name in IMAGE_TO_IMAGE[-2:] and name not in known:
        return "only of /v1/images/control"
    if name in STRENGTHS:
        here = "control_strength" if "control_strength" in known else "control_strength of /v1/images/control"
        is_number = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        number = _decimal(value) if is_number else None
        example = f": {1 - number} in place of {number}" if number is not None and 0 <= number <= 1 else ""
        return f"the nearest is {here}, which is 1 - strength{example}"
    if "image" in known and isinstance(value, bytes):
        return "the nearest is image"
    meant = ELSEWHERE.get(name)
    if meant in known:
        return f"the nearest is {meant}"
    if meant == "image":
        return "a picture to begin from is the field image of /v1/images/control"
    if name == "size" and "width" in known:
        return "the nearest are width and height"
    return f"the nearest is {_closest(name, known)}"


def _closest(name: str, known: tuple[str, ...]) -> str:
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]


def _short(value: Any) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else shown(value)


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


def _flag(value: Any, textual: bool) -> bool:
    if isinstance(value, bool) and not textual:
        return value
    if textual and isinstance(value, str) and value.strip().lower() in ("true", "false", "1", "0"):
        return value.strip().lower() in ("true", "1")
    raise Wrong("true or false")


def _response_format(value: Any) -> str:
    if value not in ("b64", "url"):
        raise Wrong("b64 or url")
    return value


def _number(value: Any, textual: bool, least: int, most: int) -> Decimal:
    rule = f"a number between {least} and {most}"
    if textual == isinstance(value, str) and not isinstance(value, bool) and isinstance(value, (str, int, float)):
        number = _decimal(value)
        if number is not None and least <= number <= most:
            return number or Decimal(0)  # -0 is 0
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
