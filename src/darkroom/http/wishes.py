"""What a request wishes by its headers: the form of the reply, whether to wait for it, and what may stand in for the work."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastapi import Request

from darkroom.checks import shown
from darkroom.errors import DarkroomError, Invalid
from darkroom.http.query import WHOLE

PICTURES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
ANY_PICTURE = {"*/*", "image/*", "image/png"}
JSON, EVENTS = "application/json", "text/event-stream"
QUALITY = 90  # of a JPEG or WebP, where none is asked for
MAX_WAIT = 600  # seconds of Prefer: wait
MAX_TIMEOUT = 86_400  # seconds of X-Timeout-Seconds
KEY = re.compile(r"[\x21-\x7e]{1,255}")


class NotAcceptable(DarkroomError):
    name, status = "not_acceptable", 406


@dataclass(frozen=True)
class Wishes:
    """media: of the reply. later: a 202 is wished, after `wait` seconds where they are given. timeout: seconds by which the job
    must have begun. fresh: no picture that was made before."""

    media: str = "image/png"
    quality: int = QUALITY
    later: bool = False
    wait: int | None = None
    timeout: float | None = None
    idempotency_key: str = ""
    fresh: bool = False
    embed_prompt: bool = True

    @property
    def is_picture(self) -> bool:
        return self.media in PICTURES

    @property
    def attached(self) -> bool:
        """Whether the client waits on the line, and the job ends with it."""
        return not self.later and self.wait is None and self.media != EVENTS


def wishes_of(request: Request) -> Wishes:
    """Raises NotAcceptable, or Invalid naming the header."""
    media, quality = media_of(request.headers.get("accept", ""))
    later, wait = _prefer(request.headers.getlist("prefer"))
    return Wishes(media, quality, later, wait, _timeout(request), _key(request), _fresh(request), _embed_prompt(request))


def media_of(accept: str, pictures_only: bool = False) -> tuple[str, int]:
    """The media type of the reply, and the quality of its picture, by RFC 9110's Accept: the manual's PNG wherever it is admitted and
    nothing else that the route has is named before it. Raises NotAcceptable, or Invalid naming the header."""
    ranges = [(name, quality) for name, quality in _ranges(accept) if not pictures_only or name not in (JSON, EVENTS)]
    if not accept.strip(" ,"):
        ranges = [("*/*", QUALITY)]
    names = [name for name, _ in ranges]
    first, quality = ranges[0] if ranges else ("", QUALITY)
    if first in (EVENTS, "image/jpeg", "image/webp"):
        return first, quality
    if ANY_PICTURE & set(names):
        return "image/png", quality
    for wanted in ("image/jpeg", "image/webp", JSON, EVENTS):
        if wanted in names:
            return wanted, dict(ranges)[wanted]
    offered = "image/png, image/jpeg or image/webp" if pictures_only else "image/png, image/jpeg, image/webp, application/json or text/event-stream"
    raise NotAcceptable(f"this route answers with {offered}, and Accept admits only {accept[:80]!r}")


def _ranges(accept: str) -> list[tuple[str, int]]:
    """Media ranges, dearest first, each with its `quality` (1 to 100), without those that are excluded (q=0)."""
    ranked: list[tuple[float, int, str, int]] = []
    for part in accept.split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        given = dict(p.split("=", 1) for p in parameters if "=" in p)
        try:
            weight = float(given.get("q", "1"))
        except ValueError:
            weight = 1.0
        if name and weight > 0:
            ranked.append((-weight, len(ranked), name, _quality(given.get("quality"))))
    return [(name, quality) for _, _, name, quality in sorted(ranked)]


def _quality(text: str | None) -> int:
    if text is None:
        return QUALITY
    if not WHOLE.fullmatch(text) or not 1 <= int(text) <= 100:
        raise Invalid(f"quality in the header Accept must be a whole number between 1 and 100, got {shown(text)}", name="invalid_request")
    return int(text)


def _prefer(headers: list[str]) -> tuple[bool, int | None]:
    """respond-async and wait of RFC 7240; preferences that we do not know are let be, as it says."""
    later, wait = False, None
    for token in (word.strip() for header in headers for word in header.split(",")):
        name, _, value = (part.strip().lower() for part in token.partition("="))
        if name == "respond-async":
            later = True
        elif name == "wait":
            if not WHOLE.fullmatch(value) or not 0 <= int(value) <= MAX_WAIT:
                raise Invalid(f"wait in the header Prefer must be a whole number between 0 and {MAX_WAIT}, got {shown(value)}", name="invalid_request")
            wait = int(value)
    return later, wait


def _timeout(request: Request) -> float | None:
    text = request.headers.get("x-timeout-seconds")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", text.strip()) or not 0 < float(text) <= MAX_TIMEOUT:
        raise Invalid(f"the header X-Timeout-Seconds must be a number above 0 and at most {MAX_TIMEOUT}, got {shown(text)}", name="invalid_request")
    return float(text)


def _key(request: Request) -> str:
    text = request.headers.get("idempotency-key")
    if text is None:
        return ""
    if not KEY.fullmatch(text):
        raise Invalid(f"the header Idempotency-Key must be 1 to 255 visible ASCII characters, got {shown(text)}", name="invalid_request")
    return text


def _fresh(request: Request) -> bool:
    directives = {word.split("=")[0].strip().lower() for word in request.headers.get("cache-control", "").split(",")}
    return bool(directives & {"no-cache", "no-store"})


def _embed_prompt(request: Request) -> bool:
    text = request.headers.get("x-embed-prompt", "true").strip().lower()
    if text not in ("true", "1", "yes", "on", "false", "0", "no", "off"):
        raise Invalid(f"the header X-Embed-Prompt must be true or false, got {shown(text)}", name="invalid_request")
    return text in ("true", "1", "yes", "on")
